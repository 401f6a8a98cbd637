"""Line charts over time as SVG, with a table of the same figures for those who cannot see them."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from epara_opt.report.markup import el, num

_WIDTH, _HEIGHT = 1000.0, 280.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 16.0, 26.0, 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line. Gaps in `y` break it."""

    name: str
    css: str  # "s0" .. "s3": colour and dash
    y: tuple[float | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    at: float
    text: str


def line_chart(
    title: str,
    at: Sequence[float],
    series: Sequence[Series],
    events: Sequence[Event] = (),
    *,
    show: Callable[[float | None], str],
    top: float | None = None,
) -> ET.Element:
    """Lines over Unix time. `show` writes a value; `top` fixes the scale's end, else it is found."""
    values = [v for s in series for v in s.y if v is not None]
    ceiling = top if top is not None else nice_ceiling(max(values, default=1.0))
    times = [*at, *(e.at for e in events)]
    first, last = min(times), max(times)
    span = (last - first) or 1.0

    def x(t: float) -> float:
        return _LEFT + (t - first) / span * (_WIDTH - _LEFT - _RIGHT)

    def y(v: float) -> float:
        return _HEIGHT - _BOTTOM - min(v, ceiling) / ceiling * (_HEIGHT - _TOP - _BOTTOM)

    grid = [
        (
            el("path", d=f"M{num(_LEFT)} {num(y(v))}H{num(_WIDTH - _RIGHT)}", class_="grid"),
            el("text", show(v), x=_LEFT - 8, y=y(v) + 4, text_anchor="end"),
        )
        for v in (ceiling * i / 4 for i in range(5))
    ]
    ticks = [
        el("text", clock(first + span * i / 5), x=x(first + span * i / 5), y=_HEIGHT - 8, text_anchor=_anchor(i))
        for i in range(6 if last > first else 1)
    ]
    marks = [
        (
            el("path", d=f"M{num(x(e.at))} {num(_TOP)}V{num(_HEIGHT - _BOTTOM)}", class_="event"),
            el(
                "g",
                el("title", f"{clock(e.at)} {e.text}"),
                el("circle", cx=x(e.at), cy=_TOP - 10, r="9", class_="event"),
                el("text", str(i), x=x(e.at), y=_TOP - 6, text_anchor="middle", class_="event"),
            ),
        )
        for i, e in enumerate(events, start=1)
    ]
    lines = [_line(s, at, x, y, show) for s in series]
    keys = [el("li", el("span", class_=f"key {s.css}"), s.name) for s in series]
    told = [el("li", f"{clock(e.at)}  {e.text}") for e in events]
    return el(
        "figure",
        el(
            "div",
            el(
                "svg",
                el("title", title),
                el("g", grid, ticks, class_="axis"),
                marks,
                lines,
                viewbox=f"0 0 {num(_WIDTH)} {num(_HEIGHT)}",
                class_="chart",
                role="img",
                aria_label=title,
            ),
            class_="scroll",
        ),
        el("ul", keys, class_="legend"),
        el("ol", told, class_="events") if told else None,
        _table(title, at, series, show),
    )


def nice_ceiling(value: float) -> float:
    """The next of 1, 2, 2.5, 4, 5, 8 x 10^k that is not below the value."""
    if value <= 0 or not math.isfinite(value):
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next((m * power for m in (1, 2, 2.5, 4, 5, 8) if m * power >= value * 0.9999), 10 * power)


def clock(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S")


def _anchor(i: int) -> str:
    return "start" if i == 0 else "end" if i == 5 else "middle"


def _line(
    s: Series,
    at: Sequence[float],
    x: Callable[[float], float],
    y: Callable[[float], float],
    show: Callable[[float | None], str],
) -> ET.Element:
    path, joined = "", False
    dots: list[ET.Element] = []
    for t, v in zip(at, s.y, strict=True):
        if v is None:
            joined = False
            continue
        path += f"{'L' if joined else 'M'}{num(x(t))} {num(y(v))}"
        joined = True
        title = el("title", f"{clock(t)}  {s.name}: {show(v)}")
        dots.append(el("circle", title, cx=x(t), cy=y(v), r="3" if len(at) <= 150 else "1.5"))
    return el("g", el("path", d=path or "M0 0"), dots, class_=f"line {s.css}")


def _table(
    title: str, at: Sequence[float], series: Sequence[Series], show: Callable[[float | None], str]
) -> ET.Element:
    head = el("tr", el("th", "UTC", scope="col"), [el("th", s.name, scope="col", class_="n") for s in series])
    rows = [
        el("tr", el("td", clock(t)), [el("td", show(s.y[i]), class_="n") for s in series]) for i, t in enumerate(at)
    ]
    return el(
        "details",
        el("summary", f"The same figures as a table ({len(at)} rows)"),
        el("div", el("table", el("caption", title), el("thead", head), el("tbody", rows)), class_="scroll"),
    )
