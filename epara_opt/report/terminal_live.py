"""What runs, what was observed, what was loaded, which solvers there are: live tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from epara_opt.control.ports import ExecutorState, FetchObservation, FleetState, ServiceObservation
from epara_opt.domain.topology import Topology
from epara_opt.plan import Plan
from epara_opt.report.cells import cell, grid, share, spaced
from epara_opt.report.figures import millis, number
from epara_opt.report.history import HistoryPoint
from epara_opt.report.load import LoadWindow, per_service
from epara_opt.report.replicas import energy_grid, figures_of, replicas_grid

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def status_table(fleet: FleetState, topology: Topology, plan: Plan | None) -> Group:
    """Executors, services and troubles. `plan` is the one that should be in force, if there is one."""
    planned: dict[str, int] = {}
    for r in plan.replicas if plan else ():
        for server in r.servers:
            planned[server] = planned.get(server, 0) + 1
    names = [*topology.servers, *sorted((fleet.executors.keys() | fleet.down.keys()) - topology.servers.keys())]
    rows = [_executor(fleet, n, planned.get(n, 0), plan) for n in names if _is_expected(fleet, topology, n)]
    heads = ["Server", "State", "#Plan", "#Live", "#Planned", "#Queued", "#Arrived", "#SLO met", "#Offloaded"]
    parts = [grid("Executors; counts since each one's start", heads, rows), _observed(fleet)]
    told = [(server, f) for server, e in sorted(fleet.executors.items()) for f in e.fetches]
    fetches = [_fetch(server, f) for server, f in told if f.state != "failed"]
    if fetches:
        parts.append(grid("Models on their way", ["Server", "Model", "!State", "From", "#MB", "#Of MB"], fetches))
    if measured := figures_of(fleet):
        parts.append(replicas_grid(measured))
    if (energy := energy_grid(fleet)) is not None:
        parts.append(energy)
    if chains := _chains(fleet):
        heads = ["Chain", "Stage", "Server", "!State", "#MiB a device", "Detail"]
        parts.append(grid("Chains over several servers, stage by stage", heads, chains))
    troubles = [
        *([n, "executor", cell("down", "red"), why] for n, why in sorted(fleet.down.items())),
        *(
            [e.server, r.replica, cell(r.state, "red"), r.detail or "no detail given"]
            for e in fleet.executors.values()
            for r in e.replicas
            if r.state == "failed"
        ),
        *([server, f.source, cell("no model", "red"), f.detail] for server, f in told if f.state == "failed"),
    ]
    if troubles:
        parts.append(grid("Troubles", ["Server", "What", "!State", "Detail"], troubles))
    return spaced(parts)


def _fetch(server: str, f: FetchObservation) -> list[Text | str]:
    total = f"{f.total_bytes / 1e6:,.1f}" if f.total_bytes else "–"
    return [server, f.source, cell(f.state, "yellow"), f.origin or "–", f"{f.done_bytes / 1e6:,.1f}", total]


def _is_expected(fleet: FleetState, topology: Topology, name: str) -> bool:
    server = topology.servers.get(name)
    return server is None or server.address is not None or name in fleet.executors or name in fleet.down


def _executor(fleet: FleetState, name: str, planned: int, plan: Plan | None) -> list[Text | str]:
    state = fleet.executors.get(name)
    if state is None:
        word = cell("down", "red") if name in fleet.down else cell("not asked", "dim")
        return [name, word, "–", "–", str(planned), "–", "–", "–", "–"]
    arrived, on_time = sum(s.arrived for s in state.services), sum(s.on_time for s in state.services)
    return [
        name,
        _health(state, plan),
        str(state.generation) if state.generation else "none",
        str(sum(r.state == "live" for r in state.replicas)),
        str(planned),
        str(sum(r.queued for r in state.replicas)),
        f"{arrived:,}",
        share(on_time / arrived if arrived else None),
        f"{sum(s.forwarded for s in state.services):,}",
    ]


def _chains(fleet: FleetState) -> list[list[Text | str]]:
    """Each chain's stages where they run, in order."""
    found = [(r.replica, r.stages, e.server, r) for e in fleet.executors.values() for r in e.replicas if r.num_stages]
    return [
        [
            replica,
            f"{', '.join(str(s + 1) for s in stages)} of {r.num_stages}",
            server,
            cell(r.state, "green" if r.state == "live" else "yellow"),
            f"{r.memory_bytes / 2**20:,.1f}" if r.memory_bytes else "–",
            r.detail if r.state != "live" else "",
        ]
        for replica, stages, server, r in sorted(found, key=lambda f: f[:3])
    ]


def _health(state: ExecutorState, plan: Plan | None) -> Text:
    """Worst first: failed replicas, an older or newer plan than expected, else what is in progress."""
    seen = {r.state for r in state.replicas}
    if "failed" in seen:
        return cell("failing", "red")
    if plan is not None and state.generation != plan.generation:
        return cell("behind" if state.generation < plan.generation else "ahead", "yellow")
    for passing in ("loading", "draining"):
        if passing in seen:
            return cell(passing, "yellow")
    return cell("up", "green")


def _observed(fleet: FleetState) -> Table:
    by_service: dict[str, list[ServiceObservation]] = {}
    for state in fleet.executors.values():
        for s in state.services:
            by_service.setdefault(s.service, []).append(s)
    rows: list[list[Text | str]] = []
    for name, seen in sorted(by_service.items()):
        arrived = sum(s.arrived for s in seen)
        rows.append(
            [
                name,
                f"{arrived:,}",
                share(sum(s.on_time for s in seen) / arrived if arrived else None),
                f"{sum(s.late for s in seen):,}",
                f"{sum(s.shed for s in seen):,}",
                f"{sum(s.failed for s in seen):,}",
                f"{sum(s.forwarded for s in seen):,}",
                str(sum(s.streams for s in seen)),
                number(sum(s.arrived_per_s for s in seen)),
                millis(max(s.latency_p50_ms for s in seen)),
                millis(max(s.latency_p99_ms for s in seen)),
            ]
        )
    heads = [
        "Service", "#Arrived", "#SLO met", "#Late", "#Shed", "#Failed", "#Offloaded", "#Streams", "#Per s", "#p50 ms",
        "#p99 ms",
    ]  # fmt: skip
    return grid("Services; latencies: the worst executor's, over 30 s", heads, rows)


def history_table(cycles: Sequence[HistoryPoint], *, max_rows: int | None = None) -> Table:
    """Cycles, the last ones if there are more than max_rows."""
    ordered = sorted(cycles, key=lambda p: p.at)
    shown = ordered if max_rows is None else ordered[-max_rows:]
    rows = [
        [
            datetime.fromtimestamp(p.at, UTC).strftime("%H:%M:%S"),
            str(p.generation) if p.generation else "–",
            number(p.goodput),
            number(p.offered),
            share(min(1.0, p.goodput / p.offered) if p.goodput is not None and p.offered else None),
            number(p.dual_bound),
            p.event,
        ]
        for p in shown
    ]
    heads = ["!UTC", "#Plan", "#Goodput", "#Offered", "#SLO met", "#Bound", "Event"]
    return grid("Cycles; goodput, offered and bound in weighted work/s", heads, rows)


def load_table(results: Sequence[LoadWindow]) -> Table:
    """Per service over the whole run, and the sum. Percentiles are those of the worst window."""
    services = per_service(results)
    rows = [_load(w.service, [w], w.p50_ms, w.p99_ms) for w in services]
    if len(services) > 1:
        rows.append(_load("all", services, None, None))
    heads = ["Service", "#Sent", "#SLO met", "#On time", "#Late", "#Shed", "#Failed", "#p50 ms", "#p99 ms"]
    return grid("Load, in requests or frames", heads, rows, sections=(len(services) - 1,))


def _load(name: str, windows: Sequence[LoadWindow], p50: float | None, p99: float | None) -> list[Text | str]:
    sent, on_time = sum(w.sent for w in windows), sum(w.on_time for w in windows)
    return [
        name,
        f"{sent:,}",
        share(on_time / sent if sent else None),
        f"{on_time:,}",
        f"{sum(w.late for w in windows):,}",
        f"{sum(w.shed for w in windows):,}",
        f"{sum(w.failed for w in windows):,}",
        millis(p50),
        millis(p99),
    ]


def solvers_table(solvers: Sequence[DataclassInstance]) -> Table:
    """One row per solver, one column per field that says anything: whatever the registry knows of them."""
    records: list[dict[str, Any]] = [asdict(s) for s in solvers]
    keys = list(dict.fromkeys(k for r in records for k, v in r.items() if v not in (None, "", (), [])))
    rows = [[_word(r.get(k)) for k in keys] for r in records]
    return grid("Solvers on this machine", [_head(k) for k in keys], rows)


def _head(key: str) -> str:
    return ("!" if key == "name" else "") + key.replace("_", " ").capitalize()


def _word(value: object) -> Text:
    if isinstance(value, bool):
        return cell("yes" if value else "no", "green" if value else "dim")
    if isinstance(value, list | tuple):
        return cell(", ".join(map(str, value)) or "–")
    return cell("–" if value in (None, "") else value)
