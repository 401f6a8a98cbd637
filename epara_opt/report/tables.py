"""Pieces of the page: tables that can be filtered, bars, chips. Each is a plain function to an element."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence

from epara_opt.report.figures import Tone, percent, tone
from epara_opt.report.markup import Child, el

_MOST_ROWS_UNFILTERED = 12  # beyond, a table gets a filter box
_MOST_ROWS_OPEN = 60  # beyond, it starts folded


def table(
    caption: str, heads: Sequence[str], rows: Sequence[Sequence[Child]], *, folded: bool | None = None
) -> ET.Element:
    """A table; a head that starts with '#' is a column of numbers. Long ones fold and can be filtered."""
    numeric = [h.startswith("#") for h in heads]
    head = el(
        "tr",
        [
            el("th", h.removeprefix("#"), scope="col", class_="n" if n else None)
            for h, n in zip(heads, numeric, strict=True)
        ],
    )
    body = [
        el("tr", [el("td", cell, class_="n" if n else None) for cell, n in zip(row, numeric, strict=True)])
        for row in rows
    ]
    made = el(
        "div",
        el("table", el("caption", caption), el("thead", head), el("tbody", body, class_="rows")),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label=caption,
    )
    content: list[Child] = [made]
    if len(rows) > _MOST_ROWS_UNFILTERED:
        content = [filter_box(caption), made]
    if folded is None and len(rows) <= _MOST_ROWS_OPEN:
        return el("div", content, class_="filterable")
    return el(
        "details",
        el("summary", f"{caption} ({len(rows)} rows)"),
        content,
        class_="filterable",
        open=folded is False,
    )


def filter_box(what: str) -> ET.Element:
    """Hides what does not contain the words typed. Without scripts it is not shown."""
    return el("input", type="search", class_="filter", placeholder="Filter …", aria_label=f"Filter: {what}")


def bar(share: float, *, css: str | None = None, label: str | None = None) -> ET.Element:
    """A horizontal bar, with its number beside it."""
    width = 100.0 * min(1.0, max(0.0, share))
    return el(
        "span",
        el("span", el("i", style=f"width:{width:.1f}%", class_=css or tone(share).value), class_="track"),
        el("b", label or percent(share)),
        class_="bar",
    )


def used_bar(utilization: float) -> ET.Element:
    """Device time in use: neither good nor bad by itself, so in one colour."""
    return bar(utilization, css="used")


def budget_bar(network_ms: float, service_ms: float, deadline_ms: float | None) -> ET.Element | None:
    """How a deadline is spent: network, then service; what stays empty is slack."""
    if not deadline_ms:
        return None
    net = 100.0 * min(1.0, network_ms / deadline_ms)
    srv = min(100.0 - net, 100.0 * service_ms / deadline_ms)
    over = network_ms + service_ms > deadline_ms * (1 + 1e-6)
    return el(
        "span",
        el("i", class_="net", style=f"width:{net:.1f}%"),
        el("i", class_="over" if over else "srv", style=f"width:{srv:.1f}%"),
        class_="track wide",
    )


def chip(text: str, css: str = "") -> ET.Element:
    return el("span", text, class_=f"chip {css}".strip())


def tiles(items: Iterable[tuple[str, str, str]]) -> ET.Element:
    """Key figures: (value, what it is, a remark)."""
    return el(
        "dl",
        [
            el("div", el("dt", what), el("dd", value, el("small", remark) if remark else None), class_="tile")
            for value, what, remark in items
        ],
        class_="tiles",
    )


def service_name(name: str, hue: int) -> ET.Element:
    return el("span", name, class_="service", style=f"--h:{hue}")


__all__ = ["Tone", "bar", "budget_bar", "chip", "filter_box", "service_name", "table", "tiles", "used_bar"]
