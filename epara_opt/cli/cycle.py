"""run: the control cycle as a process, and reading back what it stored."""

from __future__ import annotations

import json
import signal
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from epara_opt.cli.output import JsonFlag, TopologyArgument, emit, err, seconds
from epara_opt.errors import InputError, Violation

if TYPE_CHECKING:
    from epara_opt.control.events import CycleEvent
    from epara_opt.report.history import HistoryPoint

STORE_FILE = "planner.sqlite"
INTERRUPTED = 130  # exit code


def register(app: typer.Typer) -> None:
    """Add these commands to the root."""
    app.command("run")(run)
    app.command("history")(history)


def run(
    topology: TopologyArgument,
    every: Annotated[str, typer.Option(help="Time between cycles: 30s, 2m.")] = "30s",
    solver: Annotated[str, typer.Option(help="A name from `epara solvers`.")] = "auto",
    time_limit: Annotated[float, typer.Option(min=0.1, help="Seconds the solver may take per cycle.")] = 10.0,
    store: Annotated[Path, typer.Option(help="Directory of the planner's store.")] = Path("runs/planner"),
    refine: Annotated[
        float | None, typer.Option(min=0.1, help="Of those seconds, how many go to refining under simulated bursts.")
    ] = None,
    cycles: Annotated[int | None, typer.Option(min=1, help="Stop after so many; never if omitted.")] = None,
    apply_timeout: Annotated[float, typer.Option(min=1, help="Seconds a change may take, loading included.")] = 120.0,
    learn_profiles: Annotated[
        bool, typer.Option(help="Let batch times that executors measure correct the profiles.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Plan TOPOLOGY again and again: observe, forecast, solve, verify, apply what is worth it, record.

    Survives its own restart. Executors keep serving the last plan while no planner runs. Ctrl-C ends it after the
    cycle under way, a second one at once (exit 130): a change half made is then taken up by the next planner.
    """
    from epara_executors.client import GrpcFleet
    from epara_solvers.registry import make_planner
    from epara_solvers.simulate.planner import RefiningPlanner

    from epara_opt.control.clock import SystemClock
    from epara_opt.control.cycle import ControlCycle
    from epara_opt.control.events import EventKind
    from epara_opt.control.settings import CycleSettings
    from epara_opt.control.store import Store
    from epara_opt.topology import load_topology

    every_s = seconds(every)
    loaded = load_topology(topology)
    without = [s.name for s in loaded.topology.servers.values() if s.devices and not s.address]
    if without:
        law = "expected host:port of its executor; `epara run` plans for servers that it can reach"
        raise InputError([Violation(path=f"servers.{name}.address", law=law, value="none") for name in without])
    settings = CycleSettings(
        every_s=every_s,
        time_limit_s=time_limit,
        apply_deadline_s=apply_timeout,
        learn_profiles=learn_profiles,
        rules=loaded.rules,
    )
    planner = make_planner(solver)
    if refine is not None:
        planner = RefiningPlanner(planner, refine_s=refine)
    clock = SystemClock()

    def show(event: CycleEvent) -> None:
        if as_json:
            # One write: events come from several threads, and a line must stay whole.
            sys.stdout.write(json.dumps(event.to_dict(), default=str) + "\n")
            sys.stdout.flush()
        elif event.kind not in (EventKind.OBSERVED, EventKind.PROGRESS):
            err.print(f"{event.kind.value:>12}  {event.message}", highlight=False, markup=False)

    at_once = threading.Event()

    def leave(fleet: GrpcFleet) -> None:
        if clock.stopped:
            at_once.set()
            # Ends the calls under way. On a thread: this one may hold the fleet's lock.
            threading.Thread(target=fleet.close, daemon=True).start()
            raise KeyboardInterrupt
        clock.stop()
        sys.stderr.write("stopping after this cycle; once more to leave at once\n")

    with GrpcFleet() as fleet, Store(store / STORE_FILE) as kept:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: leave(fleet))
        cycle = ControlCycle(
            loaded.topology, loaded.catalogue, planner, fleet, kept, clock, settings=settings, on_event=show
        )
        try:
            cycle.run(max_cycles=cycles)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        if at_once.is_set():  # raised where Python lets nothing through, in a callback of its collector
            raise typer.Exit(INTERRUPTED)


def history_points(store: Path) -> tuple[HistoryPoint, ...]:
    """Cycles and events of a planner's store, oldest first."""
    from epara_opt.control.events import EventKind
    from epara_opt.control.store import Store
    from epara_opt.report.history import HistoryPoint

    with Store(store / STORE_FILE, writer=False) as kept:
        cycles, events = kept.history(limit=1000), kept.events(limit=1000)
    points = [
        HistoryPoint(
            at=c.started_at,
            goodput=c.goodput_seen,
            offered=c.offered_seen,
            dual_bound=c.dual_bound,
            generation=c.generation,
        )
        for c in cycles
    ]
    marks = (EventKind.SERVER_DOWN, EventKind.SERVER_UP, EventKind.APPLIED, EventKind.REROUTED)
    points += [HistoryPoint(at=at, event=str(e.get("message", kind))) for at, kind, e in events if kind in marks]
    return tuple(sorted(points, key=lambda p: p.at))


def history(
    store: Annotated[Path, typer.Option(help="Directory of the planner's store.")] = Path("runs/planner"),
    limit: Annotated[int, typer.Option(min=1, help="How many cycles, newest last.")] = 20,
    as_json: JsonFlag = False,
) -> None:
    """What the planner did and saw, cycle by cycle."""
    from epara_opt.control.store import Store
    from epara_opt.report.terminal_live import history_table

    with Store(store / STORE_FILE, writer=False) as kept:
        records = kept.history(limit=limit)
    emit([asdict(r) for r in records], history_table(history_points(store)[-3 * limit :]), as_json=as_json)
