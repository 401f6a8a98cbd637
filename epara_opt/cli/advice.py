"""explain and advise: why a plan is as it is, and what would make it better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from epara_opt.cli.output import JsonFlag, TopologyArgument, emit, err, working

if TYPE_CHECKING:
    from epara_opt.advise import Advice, Replan
    from epara_opt.domain.topology import Topology
    from epara_opt.plan import Plan
    from epara_opt.problem import PlacementProblem
    from epara_opt.topology import LoadedTopology
    from epara_opt.whatif import Change

SolverOption = Annotated[str, typer.Option(help="A name from `epara solvers`; it plans the changed edges.")]
LimitOption = Annotated[float, typer.Option(min=0.1, help="Seconds for each plan.")]
PlanArgument = Annotated[Path, typer.Argument(metavar="PLAN", help="plan.json", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add these commands to the root."""
    app.command("explain")(explain)
    app.command("advise")(advise)


def explain(
    topology: TopologyArgument,
    plan_file: PlanArgument,
    service: Annotated[str, typer.Option(help="The service to explain.")],
    origin: Annotated[str | None, typer.Option(help="Only its demand from this server.")] = None,
    solver: SolverOption = "auto",
    time_limit: LimitOption = 3.0,
    as_json: JsonFlag = False,
) -> None:
    """Why SERVICE is served as it is in PLAN, what binds where it is not, and what would help, found by re-planning."""
    from epara_opt.advise import fixes
    from epara_opt.explain import explain as read
    from epara_opt.report.terminal_advice import explanation_view

    loaded, problem, made = _read(topology, plan_file)
    found = read(problem, made, service, origin)
    changes: dict[str, Change] = {}
    for unserved in sorted(found.unserved, key=lambda u: -u.rate)[:2]:  # the two that lose most
        changes |= {c.name: c for c in fixes(problem, made, unserved)}
    tried = _try(list(changes.values()), loaded, made, solver, time_limit, service, quiet=as_json)
    shown = {**asdict(found), "fixes": [asdict(a) for a in tried]}
    emit(shown, explanation_view(found, tried), as_json=as_json)


def advise(
    topology: TopologyArgument,
    plan_file: PlanArgument,
    top: Annotated[int, typer.Option(min=1, help="How many to show.")] = 5,
    solver: SolverOption = "auto",
    time_limit: LimitOption = 3.0,
    as_json: JsonFlag = False,
) -> None:
    """Where the next device, link or memory would pay most: chosen by the plan's prices, gains found by re-planning."""
    from epara_opt.advise import candidates
    from epara_opt.report.terminal_advice import advice_table

    loaded, problem, made = _read(topology, plan_file)
    if made.certificate is None:
        err.print(f"{plan_file} carries no prices: plan again with --solver auto", highlight=False)
    tried = _try(candidates(problem, made), loaded, made, solver, time_limit, "", quiet=as_json)[:top]
    emit([asdict(a) for a in tried], advice_table(tried), as_json=as_json)


def _read(topology: Path, plan_file: Path) -> tuple[LoadedTopology, PlacementProblem, Plan]:
    from epara_opt.cli.planning import check_same_edge, read_plan
    from epara_opt.problem import build_problem
    from epara_opt.topology import load_topology

    loaded = load_topology(topology)
    made = read_plan(plan_file)
    check_same_edge(made, loaded.topology, str(plan_file))
    return loaded, build_problem(loaded.topology, loaded.catalogue, rules=loaded.rules), made


def _try(
    changes: Sequence[Change],
    loaded: LoadedTopology,
    made: Plan,
    solver: str,
    time_limit_s: float,
    service: str,
    *,
    quiet: bool,
) -> list[Advice]:
    from epara_opt.advise import try_all

    if not changes:
        return []
    replan = _planner(loaded, made, solver, time_limit_s)
    with working(f"planning the edge as it is and {len(changes)} changes, {time_limit_s:g} s each", quiet=quiet):
        return try_all(changes, loaded.topology, replan, service)


def _planner(loaded: LoadedTopology, in_force: Plan, solver: str, time_limit_s: float) -> Replan:
    from epara_solvers.registry import make_planner

    from epara_opt.problem import build_problem
    from epara_opt.verify import verify

    planner = make_planner(solver)

    def replan(topology: Topology) -> Plan:
        problem = build_problem(topology, loaded.catalogue, rules=loaded.rules, in_force=in_force)
        made = planner.plan(problem, generation=in_force.generation + 1, time_limit_s=time_limit_s, in_force=in_force)
        verify(made, topology, loaded.catalogue, problem=problem)
        return made

    return replan
