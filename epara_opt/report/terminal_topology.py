"""A topology on a terminal: servers, device types, links, and services with their categories and why."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Group
from rich.table import Table

from epara_opt.domain.category import Category
from epara_opt.domain.topology import Topology
from epara_opt.report.cells import grid, short_unit, spaced
from epara_opt.report.figures import millis, num_devices, number, plain
from epara_opt.units import bytes_to_gib


def topology_table(topology: Topology, categories: Mapping[str, Category], *, max_rows: int | None = 60) -> Group:
    """What `epara topology show` prints: servers, device types, links, services with category and operators."""
    devices = grid(
        "Device types",
        ["Type", "Kind", "#Memory, GiB", "#In the edge"],
        [
            [
                t.name,
                t.kind.value,
                number(bytes_to_gib(t.memory_bytes)),
                str(sum(p.count for s in topology.servers.values() for p in s.devices if p.type == t.name)),
            ]
            for t in topology.device_types.values()
        ],
    )
    addressed = any(s.address for s in topology.servers.values())
    located = any(s.location for s in topology.servers.values())
    servers = grid(
        f"Servers of {plain(topology.name)}: {len(topology.servers)}, with {num_devices(topology)} devices",
        ["Server", "Kind", "Devices", *(["Executor"] if addressed else []), *(["#Lat.", "#Lon."] if located else [])],
        [
            [
                s.name,
                s.kind.value,
                ", ".join(f"{p.count} x {p.type}" for p in s.devices) or "none",
                *([s.address or "none"] if addressed else []),
                *((f"{s.location.lat:.3f}", f"{s.location.lon:.3f}") if s.location else ("–", "–") if located else ()),
            ]
            for s in topology.servers.values()
        ],
        max_rows=max_rows,
    )
    links = grid(
        f"Links: {len(topology.links)}",
        ["From", "To", "#RTT, ms", "#Bandwidth, Mbit/s"],
        [[*x.between, millis(x.rtt_ms), number(x.bandwidth_bytes_per_s * 8 / 1e6)] for x in topology.links],
        max_rows=max_rows,
    )
    return spaced([servers, devices, links, *_services(topology, categories)])


def _services(topology: Topology, categories: Mapping[str, Category]) -> list[Table]:
    offered: dict[str, float] = {}
    origins: dict[str, int] = {}
    for d in topology.demand:
        offered[d.service] = offered.get(d.service, 0.0) + d.offered
        origins[d.service] = origins.get(d.service, 0) + 1
    rows = [
        [
            s.name,
            str(categories[s.name]).replace("-device", "") if s.name in categories else s.sensitivity.value,
            " ".join(categories[s.name].operators) if s.name in categories else "–",
            millis(s.deadline_ms),
            number(s.fps) if s.fps else "–",
            number(offered.get(s.name, 0.0)),
            short_unit(s.work_unit),
            str(origins.get(s.name, 0)),
        ]
        for s in topology.services.values()
    ]
    heads = ["Service", "Category", "Operators", "#Limit ms", "#Frames/s", "#Offered", "!Unit", "#Origins"]
    why = [[n, c.reason] for n, c in categories.items() if n in topology.services]
    made = [grid(f"Services: {len(rows)}", heads, rows)]
    return [*made, grid("Why single or multi-device", ["Service", "Reason"], why)] if why else made
