"""What runs where: per server its devices as slots, each group as a box over them, its tenants as shares of time."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from itertools import groupby

from epara_opt.domain.topology import Server, Topology
from epara_opt.plan import Plan, Replica
from epara_opt.report.edge_map import KIND_WORDS
from epara_opt.report.figures import deadline_ms, devices_label, millis, number, percent, replicas_at, unit
from epara_opt.report.markup import Child, el
from epara_opt.report.tables import filter_box, service_name, table, used_bar
from epara_opt.units import bytes_to_gib

_MOST_OPEN = 8  # servers whose details start unfolded


def anchors(plan: Plan, topology: Topology) -> dict[str, str]:
    """Server to the page's id of its details. Names may hold anything, so ids are numbers."""
    names = [*topology.servers, *(s for s in replicas_at(plan) if s not in topology.servers)]
    return {name: f"server-{i}" for i, name in enumerate(names)}


def hues(topology: Topology, plan: Plan) -> dict[str, int]:
    """Service to a hue, in the order of the topology; neighbours in the order look unlike."""
    names = [*topology.services, *(r.service for r in plan.replicas if r.service not in topology.services)]
    return {name: round(i * 137.508 + 210) % 360 for i, name in enumerate(dict.fromkeys(names))}


def server_cards(plan: Plan, topology: Topology, ids: Mapping[str, str], hue: Mapping[str, int]) -> list[Child]:
    hosted = replicas_at(plan)
    busy = sorted(hosted, key=lambda s: (-plan.predicted.utilization.get(s, 0.0), s))
    idle = [s for s in topology.servers.values() if s.name not in hosted]
    cards = [
        _card(plan, topology, name, topology.servers.get(name), hosted[name], ids[name], hue, len(busy) <= _MOST_OPEN)
        for name in busy
    ]
    return [
        el(
            "p",
            "One row per device. A box is a device group, colours are shares of its time, grey is idle.",
            class_="sub",
        ),
        el(
            "div",
            filter_box("servers and what they run") if len(cards) > _MOST_OPEN else None,
            el("div", cards, class_="rows cards"),
            class_="filterable",
        ),
        _idle(idle, ids),
    ]


def _idle(servers: Sequence[Server], ids: Mapping[str, str]) -> ET.Element | None:
    if not servers:
        return None
    words = [
        el(
            "li",
            s.name,
            el("span", " " + (_devices(s) if s.devices else "has no devices"), class_="sub"),
            id=ids[s.name],
        )
        for s in servers
    ]
    return el("div", el("h3", f"Nothing runs on {len(servers)} of the servers"), el("ul", words, class_="idle"))


def _devices(server: Server) -> str:
    return ", ".join(f"{p.count} × {p.type}" for p in server.devices)


def _card(
    plan: Plan,
    topology: Topology,
    name: str,
    server: Server | None,
    replicas: Sequence[Replica],
    anchor: str,
    hue: Mapping[str, int],
    is_open: bool,
) -> ET.Element:
    what = f"{KIND_WORDS[server.kind]} · {_devices(server)}" if server else "not in this topology"
    where = f" · {server.address}" if server and server.address else ""
    heads = [
        "Service", "Devices", "#TP", "#PP", "#Batch", "#Frames", "#Share of time", "#Capacity", "Unit",
        "#Response, ms", "#Deadline, ms", "#Memory per device, GiB", "#Load, s",
    ]  # fmt: skip
    rows: list[list[Child]] = [
        [
            service_name(r.service, hue.get(r.service, 0)),
            devices_label(r),
            str(r.tp),
            str(r.pp),
            str(r.batch),
            str(r.frames),
            percent(r.share),
            number(r.capacity),
            unit(topology, r.service),
            millis(r.response_ms),
            millis(deadline_ms(topology, r.service)),
            number(bytes_to_gib(r.memory_bytes)),
            number(r.load_s) if r.load_s else "resident",
        ]
        for r in replicas
    ]
    summary = el(
        "summary",
        el("span", name, class_="name"),
        el("span", what + where + _runs_text(replicas), class_="sub"),
        used_bar(plan.predicted.utilization.get(name, 0.0)),
    )
    counts = {p.type: p.count for p in server.devices} if server else {}
    types = sorted({*counts, *(r.device_type for r in replicas)})
    pools = [_pool(t, counts.get(t, 0), [r for r in replicas if r.device_type == t], hue) for t in types]
    return el(
        "details", summary, pools, table(f"Replicas at {name}", heads, rows), class_="card", id=anchor, open=is_open
    )


def _runs_text(replicas: Sequence[Replica]) -> str:
    names = list(dict.fromkeys(r.service for r in replicas))
    left = len(names) - 4
    return " · runs " + ", ".join(names[:4]) + (f" and {left} more" if left > 0 else "")


def _pool(device_type: str, count: int, replicas: Sequence[Replica], hue: Mapping[str, int]) -> ET.Element:
    """One row per device; a group spans the rows of its devices, in pieces where they do not adjoin."""
    count = max([count, *(1 + d for r in replicas for d in r.devices)])
    cells: list[ET.Element] = [
        el("span", f"{device_type} {i}", class_="slot", style=f"grid-row:{i + 1}") for i in range(count)
    ]
    taken: set[int] = set()
    for _, members in groupby(sorted(replicas, key=lambda r: (r.devices, r.group)), key=lambda r: (r.devices, r.group)):
        tenants = list(members)
        runs = _runs(tenants[0].devices)
        taken |= set(tenants[0].devices)
        for i, (first, last) in enumerate(runs):
            part = f" (part {i + 1} of {len(runs)})" if len(runs) > 1 else ""
            cells.append(_group(tenants, first, last, part, hue))
    cells += [
        el("span", "free", class_="group free", style=f"grid-row:{i + 1}") for i in range(count) if i not in taken
    ]
    return el("div", cells, class_="pool")


def _runs(devices: Sequence[int]) -> list[tuple[int, int]]:
    """Maximal runs of adjoining devices: 0, 1, 3 becomes (0, 1), (3, 3)."""
    made: list[tuple[int, int]] = []
    for d in sorted(devices):
        if made and made[-1][1] == d - 1:
            made[-1] = (made[-1][0], d)
        else:
            made.append((d, d))
    return made


def _group(tenants: Sequence[Replica], first: int, last: int, part: str, hue: Mapping[str, int]) -> ET.Element:
    head = tenants[0]
    shape = f"TP{head.tp} PP{head.pp}" if head.tp * head.pp > 1 else ""
    scale = max(1.0, sum(t.share for t in tenants))
    bars = [
        el(
            "i",
            f"{t.service} {percent(t.share)}",
            title=f"{t.service} {percent(t.share)}",
            style=f"width:{100 * t.share / scale:.1f}%;--h:{hue.get(t.service, 0)}",
        )
        for t in tenants
    ]
    return el(
        "span",
        bars,
        el("em", shape + part) if shape or part else None,
        class_="group",
        style=f"grid-row:{first + 1}/{last + 2}",
        title=f"{head.group}{part}",
    )
