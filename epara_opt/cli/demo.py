"""demo: the whole of epara-opt on this machine, in a few minutes, leaving no process behind."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from epara_opt.cli.output import err, out, write_text
from epara_opt.errors import EparaError

if TYPE_CHECKING:
    from epara_executors.load_report import LoadReport

    from epara_opt.cli.demo_edge import Planner
    from epara_opt.cli.demo_figures import Phase
    from epara_opt.domain.topology import Topology
    from epara_opt.plan import Plan
    from epara_opt.topology import LoadedTopology

TRACE = "traces/azure_llm_2023_conv_slice.csv"
CPU_SHARE = 0.3  # of this machine's cores that the demo's demand may keep busy; clients, agents, planner need the rest
RESTART_S = 60.0


def register(app: typer.Typer) -> None:
    """Add the command to the root."""
    app.command("demo")(demo)


def demo(
    seconds: Annotated[float, typer.Option(min=15, max=600, help="How long to load the edge.")] = 60.0,
    every: Annotated[float, typer.Option(min=1, help="Seconds between planning cycles.")] = 10.0,
    folder: Annotated[Path, typer.Option(help="Everything is written here.")] = Path("runs/demo"),
    solver: Annotated[str, typer.Option(help="A name from `epara solvers`.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of models, inputs and arrivals.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures here.")] = None,
) -> None:
    """Make models, profile them, plan, apply, load the edge with a real trace, kill an executor, re-plan, report.

    Three executors run as processes on this machine and serve small models of real architectures. Ends by itself.
    """
    from epara_opt.importers.catalogue import shipped_topologies
    from epara_opt.topology import load_topology

    began = time.monotonic()
    folder = folder.resolve()
    for old in ("state", "logs", "planner"):
        shutil.rmtree(folder / old, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    source = shipped_topologies() / "demo.yaml"
    with _step("making models of real architectures with random weights"):
        from epara_opt.cli.demo_edge import epara

        epara("models", "make", str(folder / "models"), "--seed", str(seed), cwd=folder)
    with _step("profiling them on this machine"):
        epara("profile", str(source), "--out", str(folder / "profiles.csv"), "--budget", "2", cwd=folder)
    names = list(load_topology(source, with_profiles=False).topology.servers)
    from epara_opt.cli.demo_edge import executors

    with _together(executors, names, folder) as running:
        topology = _topology(source, folder, {n: e.address for n, e in running.items()})
        loaded = load_topology(topology)
        measured = _measure(
            loaded, topology, folder, running, seconds_=seconds, every_s=every, solver=solver, seed=seed
        )
    phases, more = _report(measured, loaded, folder)
    more["wall_s"] = time.monotonic() - began
    if json_file is not None:
        from epara_opt.cli.demo_figures import as_json

        write_text(json_file, json.dumps(as_json(phases, more), indent=1) + "\n")
        err.print(f"figures written to {json_file}", highlight=False)
    err.print(f"report written to {folder / 'report.html'}", highlight=False)
    err.print(f"ended by itself after {more['wall_s']:.0f} s; no process is left", highlight=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """What one run left behind."""

    report: LoadReport
    killed: str
    killed_at_s: float  # since the load began
    back_at_s: float
    replanned_at_s: float | None
    end_s: float


@contextmanager
def _step(what: str) -> Generator[None]:
    """Say what is going on, and afterwards how long it took."""
    began = time.monotonic()
    if err.is_terminal:
        with err.status(what):
            yield
    else:
        yield
    err.print(f"{what}: {time.monotonic() - began:.1f} s", highlight=False)


@contextmanager
def _together(executors: Any, names: list[str], folder: Path) -> Generator[dict[str, Any]]:
    began = time.monotonic()
    with executors(names, folder) as running:
        err.print(f"started executors {', '.join(names)}: {time.monotonic() - began:.1f} s", highlight=False)
        yield running


def _topology(source: Path, folder: Path, addresses: dict[str, str]) -> Path:
    """The demo's topology for this run; demand is scaled down where this machine is too slow for it."""
    import os

    from epara_opt.cli.demo_edge import busy_cores, write_topology
    from epara_opt.topology import load_topology

    target = folder / "topology.yaml"
    write_topology(source, target, addresses=addresses, profiles="profiles.csv", factor=1.0)
    loaded = load_topology(target)
    need = busy_cores(loaded.topology, loaded.catalogue)
    have = CPU_SHARE * (os.cpu_count() or 1)
    factor = min(1.0, have / need)
    err.print(
        f"the demand keeps {need:.2f} cores busy, {have:.2f} are set aside: scaled by {factor:.2f}", highlight=False
    )
    write_topology(source, target, addresses=addresses, profiles="profiles.csv", factor=factor)
    return target


def _measure(
    loaded: LoadedTopology,
    topology: Path,
    folder: Path,
    running: dict[str, Any],
    *,
    seconds_: float,
    every_s: float,
    solver: str,
    seed: int,
) -> _Measured:
    """Plan and apply through `epara run`, load, kill, restart; the planner runs on all the while."""
    from epara_executors.load import LoadGenerator, LoadRun

    from epara_opt.cli.demo_edge import Planner, start_executor
    from epara_opt.cli.load import load_specs
    from epara_opt.importers.catalogue import shipped_topologies

    planner = Planner(topology, folder / "planner", every_s=every_s, solver=solver, log=folder / "logs" / "planner.log")
    try:
        with _step("planning and applying the first plan"):
            planner.wait_for(lambda e: e["kind"] == "applied", timeout_s=120.0)
        plan = _plan_in_force(folder)
        _say(plan, loaded.topology)
        victim = _busiest(plan)
        specs = load_specs(loaded.topology, seconds_, trace=shipped_topologies() / TRACE)
        load = LoadRun(LoadGenerator(specs, duration_s=seconds_, seed=seed)).start()
        started = time.monotonic()
        killed_at_s, back_at_s = seconds_ / 3.0, 2.0 * seconds_ / 3.0
        _until(started + killed_at_s, load, "before: all executors serve", seconds_)
        listen = running[victim].address
        running.pop(victim).kill()
        killed_at_s = time.monotonic() - started
        killed_wall = time.time()
        err.print(f"killed the executor of {victim}, which served most", highlight=False)
        _until(started + back_at_s, load, f"during: {victim} is gone", seconds_)
        replanned_at_s = _replanned(planner, killed_wall, killed_at_s)
        restart = time.monotonic()
        running[victim] = start_executor(victim, folder, listen=listen)
        back_at_s = time.monotonic() - started
        err.print(f"{victim} is back after {time.monotonic() - restart:.1f} s of starting", highlight=False)
        _until(started + seconds_, load, "after: all executors serve again", seconds_)
        report = load.result(timeout_s=RESTART_S)
    finally:
        planner.stop()
    return _Measured(
        report=report,
        killed=victim,
        killed_at_s=killed_at_s,
        back_at_s=back_at_s,
        replanned_at_s=replanned_at_s,
        end_s=seconds_,
    )


def _replanned(planner: Planner, since_wall: float, killed_at_s: float) -> float | None:
    """When, since the load began, a plan without the killed executor came into force."""
    kinds = ("applied", "rerouted")
    event = next((e for e in list(planner.events) if e["kind"] in kinds and e["at"] >= since_wall), None)
    return killed_at_s + float(event["at"]) - since_wall if event else None


def _until(instant: float, load: Any, what: str, total_s: float) -> None:
    """Let time pass while the load runs; its failure ends the demo at once."""
    left = instant - time.monotonic()
    if err.is_terminal:
        with err.status(what):
            load.join(left)
    else:
        err.print(what, highlight=False)
        load.join(left)
    if not load.running and instant - time.monotonic() > 0.5:
        load.result()
        raise EparaError(f"the load of {total_s:g} s ended early")


def _plan_in_force(folder: Path) -> Plan:
    from epara_opt.cli.cycle import STORE_FILE
    from epara_opt.control.store import Store

    with Store(folder / "planner" / STORE_FILE, writer=False) as store:
        plan = store.in_force()
    if plan is None:
        raise EparaError("the planner applied no plan")
    return plan


def _busiest(plan: Plan) -> str:
    """The server whose replicas serve most of the plan's value."""
    server_of = {r.id: r.server for r in plan.replicas}
    offered = {s.service: max(s.offered, 1e-9) for s in plan.predicted.services}
    served: dict[str, float] = {}
    for route in plan.routes:
        server = server_of[route.replica]
        served[server] = served.get(server, 0.0) + route.rate / offered[route.service]
    return max(sorted(served), key=lambda s: served[s])


def _say(plan: Plan, topology: Topology) -> None:
    from epara_opt.report.terminal import plan_view

    out.print(plan_view(plan, topology))


def _report(m: _Measured, loaded: LoadedTopology, folder: Path) -> tuple[list[Phase], dict[str, Any]]:
    """Print the figures, write the page; returns what goes into the JSON."""
    from dataclasses import asdict

    from rich.table import Table

    from epara_opt.cli.cycle import history_points
    from epara_opt.cli.demo_figures import phase, recovery_s
    from epara_opt.cli.load import totals, windows
    from epara_opt.domain.category import categorize
    from epara_opt.report.history import HistoryPoint
    from epara_opt.report.html import render
    from epara_opt.report.terminal_live import load_table

    edge = loaded.topology
    spans = (
        ("before", 0.0, m.killed_at_s),
        (f"during: {m.killed} is gone", m.killed_at_s, m.back_at_s),
        ("after: it is back", m.back_at_s, m.end_s),
    )
    phases = [phase(name, m.report, edge.services, start, end) for name, start, end in spans]
    recovered = recovery_s(m.report, m.killed_at_s, m.end_s)
    load = windows(m.report)
    out.print(load_table(totals(m.report)))
    table = Table("phase", "seconds", "goodput", "offered", "SLO attainment", "p99 ms", "timeouts")
    for p in phases:
        span = f"{p.start_s:.0f}-{p.end_s:.0f}"
        shown = (f"{p.goodput:.2f}", f"{p.offered:.2f}", f"{p.slo_attainment:.1%}", f"{p.p99_ms:.0f}", str(p.timeouts))
        table.add_row(p.name, span, *shown)
    out.print(table)
    plan = _plan_in_force(folder)
    if m.replanned_at_s is not None:
        out.print(f"re-planned {m.replanned_at_s - m.killed_at_s:.1f} s after the kill", highlight=False)
    if recovered is not None:
        out.print(f"clients were served again {recovered:.1f} s after the kill", highlight=False)
    started = m.report.started_at
    events = (
        HistoryPoint(at=started + m.killed_at_s, event=f"executor of {m.killed} killed"),
        HistoryPoint(at=started + m.back_at_s, event=f"executor of {m.killed} started again"),
    )
    history = tuple(sorted((*history_points(folder / "planner"), *events), key=lambda h: h.at))
    categories = {s.name: categorize(s, edge, loaded.catalogue) for s in edge.services.values()}
    page = render(plan, edge, categories=categories, history=history, load=load, rules=loaded.rules)
    write_text(folder / "report.html", page)
    write_text(folder / "plan.json", plan.to_json())
    more: dict[str, Any] = {
        "killed": m.killed,
        "replanned_after_s": None if m.replanned_at_s is None else m.replanned_at_s - m.killed_at_s,
        "served_again_after_s": recovered,
        "services": [asdict(s) for s in m.report.services()],
        "plan": {"objective": plan.objective, "dual_bound": plan.dual_bound, "gap": plan.gap, "solver": plan.solver},
    }
    return phases, more
