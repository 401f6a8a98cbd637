"""The edge as SVG: servers by kind and utilization, links by round trip, offloaded work as arrows."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from dataclasses import dataclass

from epara_opt.domain.topology import Server, ServerKind, Topology
from epara_opt.plan import Plan
from epara_opt.report.figures import hosts, millis, number, percent, plain, unit, weight
from epara_opt.report.layout import Layout, place
from epara_opt.report.markup import el, num

_MOST_ARROWS = 400  # drawn at all
_MOST_BOLD = 40  # shown before a node is pointed at
_MOST_LABELLED_LINKS = 40
_SMALL_MAP = 25  # servers up to which every label shows its utilization too

KIND_WORDS: dict[ServerKind, str] = {
    ServerKind.EDGE_SERVER: "edge server",
    ServerKind.EMBEDDED: "embedded device",
    ServerKind.MICROCOMPUTER: "microcomputer",
    ServerKind.CLOUD: "cloud",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrow:
    """All work of one origin that one other server does."""

    origin: str
    host: str
    value: float  # weighted, so that requests and streams add up
    lines: tuple[str, ...]  # one per service, for people


def arrows(plan: Plan, topology: Topology) -> tuple[Arrow, ...]:
    """Offloaded work by origin and host, the most valuable first."""
    at = hosts(plan)
    values: dict[tuple[str, str], float] = {}
    rates: dict[tuple[str, str], dict[str, float]] = {}
    for r in plan.routes:
        host = at.get(r.replica)
        if host is None or host == r.origin:
            continue
        pair = (r.origin, host)
        values[pair] = values.get(pair, 0.0) + weight(topology, r.service) * r.rate
        per_service = rates.setdefault(pair, {})
        per_service[r.service] = per_service.get(r.service, 0.0) + r.rate
    made = [
        Arrow(
            origin=o,
            host=h,
            value=v,
            lines=tuple(f"{s}: {number(q)} {unit(topology, s)}" for s, q in sorted(rates[o, h].items())),
        )
        for (o, h), v in values.items()
    ]
    return tuple(sorted(made, key=lambda a: (-a.value, a.origin, a.host)))


def draw(plan: Plan, topology: Topology, *, anchors: dict[str, str]) -> ET.Element:
    """The map. `anchors` gives the page's id of each server's details, where its node leads."""
    spots = place(topology)
    radius = 15.0 if len(spots.points) <= _SMALL_MAP else 10.0 if len(spots.points) <= 150 else 6.0
    moved = [a for a in arrows(plan, topology) if a.origin in spots.points and a.host in spots.points]
    shown = moved[:_MOST_ARROWS]
    taken = _Boxes()
    for x, y in spots.points.values():
        taken.claim(x - radius, y - radius, x + radius, y + radius)
    nodes = [_node(plan, s, spots, radius, taken, anchors) for s in _important_first(topology, plan)]
    links = _links(topology, spots, taken)
    svg = el(
        "svg",
        el("title", f"Map of {topology.name}"),
        el("desc", _described(topology, spots, len(moved), len(shown))),
        el(
            "defs",
            el(
                "marker",
                el("path", d="M0 0 8 4 0 8Z"),
                id="tip",
                viewbox="0 0 8 8",
                refx="7",
                refy="4",
                markerwidth="15",
                markerheight="13",
                markerunits="userSpaceOnUse",
                orient="auto",
            ),
        ),
        el("g", links, class_="links"),
        el(
            "g",
            [_arrow(a, shown[0].value, spots, radius, i < _MOST_BOLD) for i, a in enumerate(shown)],
            class_="arrows",
        ),
        el("g", nodes, class_="nodes"),
        viewbox=f"0 0 {num(spots.width)} {num(spots.height)}",
        class_="map",
        role="group",
        aria_label=f"Map of {topology.name}: {len(topology.servers)} servers, {len(topology.links)} links",
    )
    return el(
        "figure",
        el("div", svg, class_="scroll"),
        el("figcaption", _described(topology, spots, len(moved), len(shown))),
        _legend(topology),
    )


def _described(topology: Topology, spots: Layout, num_moved: int, num_shown: int) -> str:
    how = "at their coordinates (moved apart where they would overlap)" if spots.is_geographic else "by round-trip time"
    arrows_text = f"{num_moved} arrows of offloaded work, from origin to host, as wide as their share of value"
    if num_moved > _MOST_BOLD:
        arrows_text += f"; the {_MOST_BOLD} widest are shown, a server's others when it is pointed at or focused"
    if num_shown < num_moved:
        arrows_text += f" (the {num_moved - num_shown} thinnest are left out)"
    if not num_moved:
        arrows_text = "no work is offloaded: every origin serves its own"
    return f"{len(topology.servers)} servers placed {how}, {len(topology.links)} links; {arrows_text}."


def _important_first(topology: Topology, plan: Plan) -> list[Server]:
    """Labels are granted in this order: busy and big servers first, then by name."""

    def key(s: Server) -> tuple[float, float, str]:
        return (-sum(p.count for p in s.devices), -plan.predicted.utilization.get(s.name, 0.0), s.name)

    return sorted(topology.servers.values(), key=key)


class _Boxes:
    """Rectangles already drawn on, so that labels do not cover each other."""

    def __init__(self) -> None:
        self._boxes: list[tuple[float, float, float, float]] = []

    def claim(self, x0: float, y0: float, x1: float, y1: float) -> None:
        self._boxes.append((x0, y0, x1, y1))

    def is_free(self, x0: float, y0: float, x1: float, y1: float) -> bool:
        return not any(x0 < b[2] and b[0] < x1 and y0 < b[3] and b[1] < y1 for b in self._boxes)


def heat(utilization: float) -> str:
    """CSS class of a utilization: u0 (idle) to u5 (full)."""
    return f"u{0 if utilization <= 0.001 else min(5, 1 + int(utilization * 5))}"


def _node(
    plan: Plan, server: Server, spots: Layout, radius: float, taken: _Boxes, anchors: dict[str, str]
) -> ET.Element:
    x, y = spots.points[server.name]
    used = plan.predicted.utilization.get(server.name, 0.0)
    count = sum(p.count for p in server.devices)
    devices = ", ".join(f"{p.count} x {p.type}" for p in server.devices) or "no devices"
    full = f"{server.name}: {KIND_WORDS[server.kind]}, {devices}, {percent(used)} of device time used"
    name = server.name if len(server.name) <= 18 else server.name[:17] + "…"
    lines = [name]
    if len(spots.points) <= _SMALL_MAP:
        lines.append(f"{percent(used)} of {count} device{'s' if count != 1 else ''}" if count else "no devices")
    half = 0.5 * max(map(len, lines)) * 6.6
    label, hidden = _label(lines, x, y, half, radius, spots, taken)
    grow = radius * min(1.5, 0.75 + 0.18 * math.sqrt(count))
    return el(
        "a",
        el("title", full),
        _shape(server.kind, x, y, grow, heat(used) if count else "none"),
        label,
        href=f"#{anchors[server.name]}" if server.name in anchors else None,
        class_="node thin" if hidden else "node",
        data_n=server.name,
        tabindex="0" if server.name not in anchors else None,
        aria_label=full,
    )


def _label(
    lines: list[str], x: float, y: float, half: float, radius: float, spots: Layout, taken: _Boxes
) -> tuple[ET.Element, bool]:
    """Below the node, else above it, else hidden until the node is pointed at."""
    tall = 13.0 * len(lines)
    x = min(max(x, half + 2), spots.width - half - 2)
    below, above = y + radius * 1.3 + 1, y - radius * 1.3 - tall - 1
    for top in (below, above):
        inside = top >= 0 and top + tall <= spots.height
        if inside and taken.is_free(x - half, top, x + half, top + tall):
            taken.claim(x - half, top, x + half, top + tall)
            return _text(lines, x, top), False
    return _text(lines, x, below if below + tall <= spots.height else above), True


def _text(lines: list[str], x: float, top: float) -> ET.Element:
    rows = [el("tspan", s, x=x, dy=None if i == 0 else "13", class_="sub" if i else None) for i, s in enumerate(lines)]
    return el("text", rows, x=x, y=top + 10.5)


def _shape(kind: ServerKind, x: float, y: float, r: float, css: str) -> ET.Element:
    if kind is ServerKind.EDGE_SERVER:
        return el("rect", x=x - r, y=y - r, width=2 * r, height=2 * r, rx="3", class_=css)
    if kind is ServerKind.EMBEDDED:
        return el("circle", cx=x, cy=y, r=r, class_=css)
    corners = 4 if kind is ServerKind.MICROCOMPUTER else 6
    turns = [2 * math.pi * i / corners for i in range(corners)]
    points = " ".join(f"{num(x + 1.15 * r * math.cos(t))},{num(y + 1.15 * r * math.sin(t))}" for t in turns)
    return el("polygon", points=points, class_=css)


def _links(topology: Topology, spots: Layout, taken: _Boxes) -> list[ET.Element]:
    drawn: list[ET.Element] = []
    labels: list[ET.Element] = []
    for link in topology.links:
        (x0, y0), (x1, y1) = (spots.points[end] for end in link.between)
        mbps = link.bandwidth_bytes_per_s * 8 / 1e6
        full = f"{link.between[0]} - {link.between[1]}: {millis(link.rtt_ms)} ms round trip, {number(mbps)} Mbit/s"
        drawn.append(
            el("path", el("title", full), d=f"M{num(x0)} {num(y0)} {num(x1)} {num(y1)}", data_l=" ".join(link.between))
        )
        if len(topology.links) > _MOST_LABELLED_LINKS:
            continue
        text = f"{millis(link.rtt_ms)} ms"
        half = 3.2 * len(text)
        for t in (0.5, 0.4, 0.6, 0.3, 0.7):
            x, y = x0 + t * (x1 - x0), y0 + t * (y1 - y0)
            if taken.is_free(x - half, y - 7, x + half, y + 7):
                taken.claim(x - half, y - 7, x + half, y + 7)
                labels.append(el("text", text, x=x, y=y + 3.5))
                break
    return drawn + labels


def _arrow(arrow: Arrow, most: float, spots: Layout, radius: float, is_bold: bool) -> ET.Element:
    """A bow to the right of the straight line, so that both directions of a pair can be told apart."""
    (x0, y0), (x1, y1) = spots.points[arrow.origin], spots.points[arrow.host]
    dx, dy = x1 - x0, y1 - y0
    far = math.hypot(dx, dy) or 1.0
    bend = min(60.0, 0.18 * far)
    cx, cy = (x0 + x1) / 2 - dy / far * bend, (y0 + y1) / 2 + dx / far * bend
    back = math.hypot(x1 - cx, y1 - cy) or 1.0
    stop = radius * 1.4 + 4
    ex, ey = x1 - (x1 - cx) / back * stop, y1 - (y1 - cy) / back * stop
    title = el("title")
    title.text = "\n".join(map(plain, (f"{arrow.origin} → {arrow.host}", *arrow.lines)))
    return el(
        "path",
        title,
        d=f"M{num(x0)} {num(y0)}Q{num(cx)} {num(cy)} {num(ex)} {num(ey)}",
        stroke_width=max(1.2, (6.5 if len(spots.points) <= 60 else 4.5) * math.sqrt(arrow.value / most))
        if most > 0
        else 1.2,
        marker_end="url(#tip)",
        class_=None if is_bold else "faint",
        data_o=arrow.origin,
        data_h=arrow.host,
    )


def _legend(topology: Topology) -> ET.Element:
    kinds = [k for k in ServerKind if any(s.kind is k for s in topology.servers.values())]
    items = [
        el("li", el("svg", _shape(k, 9, 9, 6.5, "u2"), width="18", height="18", aria_hidden="true"), KIND_WORDS[k])
        for k in kinds
    ]
    steps = [("u0", "idle"), ("u1", "to 20 %"), ("u2", "40 %"), ("u3", "60 %"), ("u4", "80 %"), ("u5", "full")]
    ramp = [el("li", el("span", class_=f"dot {c}"), t) for c, t in steps]
    return el("ul", items, el("li", "device time used:"), ramp, class_="legend")
