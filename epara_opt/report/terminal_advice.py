"""Terminal views of explanations and advice."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from epara_opt.advise import Advice
from epara_opt.explain import Explanation
from epara_opt.report.cells import cell, grid, pairs
from epara_opt.report.figures import number, percent

NO_HELP = 1e-3  # of what is asked for: a change that serves no more of the service than this is for others


def explanation_view(found: Explanation, tried: Sequence[Advice]) -> Group:
    """The verdict, where it runs and why there, what is not served and why, and what would help."""
    unit = found.unit
    verdict = f"{found.service} ({found.category}): {number(found.served)} of {number(found.offered)} {unit} served"
    parts: list[RenderableType] = [cell(verdict, "bold")]
    if found.placed:
        rows = [(p.server, p.where, "; ".join(p.origins), ", ".join(p.company), p.why) for p in found.placed]
        parts += [
            Text(),
            grid("Where it runs", ["Server", "On", "For", "With", "Why there"], rows, max_rows=20),
        ]
    if found.unserved:
        rows = [(u.origin, number(u.rate), u.reason) for u in sorted(found.unserved, key=lambda u: -u.rate)]
        parts += [Text(), grid("Not served", ["Origin", f"#{unit}", "Why"], rows, max_rows=20)]
    helping = [a for a in tried if a.service_gain > NO_HELP * found.offered]
    if helping:
        rows = [
            (a.change, number(a.service_gain), number(a.gain), "proved" if a.proved else f"within {percent(a.gap)}")
            for a in helping
        ]
        heads = ["Change", f"#{unit} more", "#Goodput more", "Certainty"]
        parts += [Text(), grid("What would help, by planning again", heads, rows)]
    elif found.unserved:
        nothing = "nothing that this command knows how to change" if not tried else "nothing that was tried"
        parts += [Text(), pairs([("What would help", nothing)])]
    elsewhere = [f"{a.change} (goodput {a.gain:+.3g})" for a in tried if a not in helping]
    if elsewhere:
        parts += [Text(), pairs([("Tried, no help here", "; ".join(elsewhere))])]
    return Group(*parts)


def advice_table(tried: Sequence[Advice]) -> Table:
    """What pays most first."""
    rows = [
        (a.change, a.kind, number(a.gain), "proved" if a.proved else f"plans within {percent(a.gap)}") for a in tried
    ]
    return grid(
        "What would pay, by planning again", ["Change", "Kind", "#Goodput more (weighted/s)", "Certainty"], rows
    )
