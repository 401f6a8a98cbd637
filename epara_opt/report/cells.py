"""Terminal tables of one make: plain frames, numbers to the right, names folded, nothing read as markup."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from epara_opt.report.figures import Tone, percent, plain, tone

TONES = {Tone.GOOD: "green", Tone.FAIR: "yellow", Tone.POOR: "red"}


def cell(value: object, style: str = "") -> Text:
    return Text(plain(value), style=style)


def grid(
    title: str,
    heads: Sequence[str],
    rows: Sequence[Sequence[Text | str]],
    *,
    max_rows: int | None = None,
    sections: Sequence[int] = (),
) -> Table:
    """A table; a head that starts with '#' is a column of numbers, with '!' one that must not be folded.

    sections: indexes of rows after which a rule is drawn. Rows beyond max_rows are counted, not shown.
    """
    shown = rows if max_rows is None else rows[:max_rows]
    left = len(rows) - len(shown)
    made = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption=f"... and {left:,} more; --json and epara report show all" if left else None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        header_style="bold",
        padding=(0, 1, 0, 0),
    )
    for i, head in enumerate(heads):
        column = [str(row[i]) for row in shown]
        if head.startswith("#"):
            made.add_column(
                head[1:] if "\n" in head else "\n".join(head[1:].rsplit(" ", 1)), justify="right", no_wrap=True
            )
        elif head.startswith("!"):
            made.add_column(head[1:], no_wrap=True)
        else:
            made.add_column(head, overflow="fold", min_width=_least_width(head, column))
    ends = set(sections)
    for i, row in enumerate(shown):
        made.add_row(*(c if isinstance(c, Text) else cell(c) for c in row), end_section=i in ends)
    return made


def _least_width(head: str, column: Sequence[str]) -> int:
    """A name is never squeezed below eight characters; where there is room it has all it needs."""
    words = [len(w) for text in (head, *column) for w in text.split()]
    return min(8, max(words, default=1))


def share(value: float | None) -> Text:
    """A share of served work, coloured; the number says the same without colour."""
    return cell(percent(value), TONES[tone(value)] if value is not None else "")


def pairs(rows: Sequence[tuple[str, Text | str]]) -> Table:
    """Label and value, one a line."""
    made = Table.grid(padding=(0, 2, 0, 0))
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for label, value in rows:
        made.add_row(cell(label), value if isinstance(value, Text) else cell(value))
    return made


def spaced(parts: Sequence[RenderableType]) -> Group:
    """An empty line between parts."""
    return Group(*[item for i, part in enumerate(parts) for item in ((Text(), part) if i else (part,))])


def short_unit(unit: str) -> str:
    """req/s for requests/s: tables are narrow."""
    return unit.replace("requests", "req")
