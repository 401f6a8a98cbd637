"""plan, diff, report, schema, solvers: everything that needs no executor."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from epara_opt.cli.output import JsonFlag, TopologyArgument, emit, err, read_text, require_writable, working, write_text

if TYPE_CHECKING:
    from epara_opt.domain.profile import ProfileCatalogue
    from epara_opt.domain.topology import Topology
    from epara_opt.plan import Plan
    from epara_opt.problem import PlacementProblem, PlanningRules


MOST_FRAMES = 20_000_000  # of streams beside a recorded trace: half a gigabyte
SAME = 1e-6  # relative: plans whose objectives differ by less are equally good


def register(app: typer.Typer) -> None:
    """Add these commands to the root."""
    app.command("plan")(plan)
    app.command("diff")(diff)
    app.command("report")(report)
    app.command("solvers")(solvers)
    app.command("schema")(schema)


def read_plan(path: Path) -> Plan:
    from epara_opt.plan import Plan

    return Plan.from_json(read_text(path, "plan"), file=str(path))


def make_plan(
    problem: PlacementProblem,
    *,
    solver: str,
    time_limit_s: float,
    generation: int,
    in_force: Plan | None,
    catalogue: ProfileCatalogue,
    refine_s: float | None = None,
    trace: Path | None = None,
) -> Plan:
    """Solve, refine if asked, check with the solver-free checker, add the staged actions and the edge's snapshot."""
    from epara_solvers.registry import make_planner

    from epara_opt.control.diff import actions
    from epara_opt.control.regroup import regrouped
    from epara_opt.verify import verify

    topology: Topology = problem.topology
    made = make_planner(solver).plan(problem, generation=generation, time_limit_s=time_limit_s, in_force=in_force)
    made = regrouped(made, in_force, problem)
    if in_force is not None:
        made = _or_stay(made, in_force, problem)
    if refine_s is not None:
        made = regrouped(_refined(made, problem, refine_s, trace), in_force, problem)
    made = made.with_actions(actions(in_force, made, topology, catalogue))
    verify(made, topology, catalogue, problem=problem)
    return made


def _refined(made: Plan, problem: PlacementProblem, refine_s: float, trace: Path | None) -> Plan:
    """Neighbours of the plan held against recorded arrivals, or against some drawn from rates and burstiness."""
    from epara_solvers.simulate.arrivals import asked_for, longest_s, read_requests, recorded
    from epara_solvers.simulate.refine import Refinement, refined
    from numpy.random import default_rng

    from epara_opt.errors import InputError, Violation

    arrivals = None
    if trace is not None:
        services = problem.topology.services
        requests = read_requests(trace, services=services, servers=problem.topology.servers)
        asked = asked_for(requests, problem.demand, services)
        if not asked:
            law = "expected requests of some service and origin that demand lists, other than streams"
            raise InputError(Violation(path="trace", law=law, value=f"none in {len(requests)}", file=str(trace)))
        if len(asked) < len(requests):
            note = f"{len(requests) - len(asked)} of {len(requests)} recorded requests are of no demand, or of streams"
            made = replace(made, notes=(*made.notes, f"{note}: left out"))
        first_s = requests[0][0]  # the clock may be the world's: it starts with the first request
        asked = [(at_s - first_s, service, origin) for at_s, service, origin in asked]
        end_s = requests[-1][0] - first_s + 1e-9  # observed to the last
        most_s = longest_s(problem.demand, services, most=MOST_FRAMES)
        if end_s > most_s:
            law = f"expected at most {most_s:.6g} s from the first request to the last, for the streams of this edge"
            raise InputError(Violation(path="trace", law=law, value=f"{end_s:.6g}", file=str(trace)))
        arrivals = recorded(asked, problem.demand, services, duration_s=end_s, rng=default_rng(1))
    return refined(made, problem, Refinement(time_limit_s=refine_s, arrivals=arrivals))


def _or_stay(made: Plan, in_force: Plan, problem: PlacementProblem) -> Plan:
    """The plan in force with routes for the new demand, where it is as good: nothing moves for nothing."""
    from epara_opt.control.reroute import rerouted
    from epara_opt.control.routing import standing
    from epara_opt.errors import PlanRejected
    from epara_opt.verify import verify

    stands = standing(in_force, problem.topology)
    if stands is None:
        return made
    stay = rerouted(stands, problem, generation=made.generation, dual_bound=made.dual_bound)
    if stay.objective < made.objective * (1.0 - SAME):
        return made
    stay = replace(
        stay,
        solver=made.solver,
        stop=made.stop,
        wall_s=made.wall_s,
        made_at=made.made_at,
        edge=made.edge,
        topology_digest=made.topology_digest,
        notes=(*made.notes, "the replicas in force are as good as any found, so they stay"),
    )
    try:
        verify(stay, problem.topology, problem.catalogue, problem=problem)
    except PlanRejected:
        return made
    return stay


def plan(
    topology: TopologyArgument,
    solver: Annotated[str, typer.Option(help="A name from `epara solvers`.")] = "auto",
    time_limit: Annotated[float, typer.Option(min=0.1, help="Seconds the solver may take.")] = 30.0,
    out: Annotated[Path | None, typer.Option(help="Where plan.json goes.")] = None,
    previous: Annotated[Path | None, typer.Option(help="The plan in force: moves are priced against it.")] = None,
    max_tenants: Annotated[int | None, typer.Option(min=1, help="Services that may share one device group.")] = None,
    on_time_target: Annotated[
        float | None,
        typer.Option(help="Share of requests that bursts may not make late: groups are filled less where they would."),
    ] = None,
    refine: Annotated[
        float | None,
        typer.Option(min=0.1, help="Seconds more: neighbouring plans are simulated under bursts, better ones kept."),
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="CSV of arrival_s, service, origin to refine for, instead of drawn arrivals.")
    ] = None,
    certify: Annotated[
        Path | None,
        typer.Option(help="Plan nothing: recompute this plan's bound from its prices, without a solver, and check it."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Place the services of TOPOLOGY: a checked plan with a proven bound, and reasons for what is not served."""
    from epara_opt.errors import InputError, Violation
    from epara_opt.problem import build_problem
    from epara_opt.report.terminal import plan_view
    from epara_opt.topology import load_topology

    require_writable(out)
    if not math.isfinite(time_limit):
        law = "expected a finite number of seconds; a plan that is proved optimal ends sooner by itself"
        raise InputError(Violation(path="--time-limit", law=law, value=str(time_limit)))
    if refine is not None and not math.isfinite(refine):
        raise InputError(Violation(path="--refine", law="expected a finite number of seconds", value=str(refine)))
    if trace is not None and refine is None:
        raise InputError(Violation(path="--trace", law="expected together with --refine", value=str(trace)))
    loaded = load_topology(topology)
    rules = loaded.rules if max_tenants is None else replace(loaded.rules, max_tenants=max_tenants)
    rules = rules if on_time_target is None else replace(rules, on_time_target=on_time_target)
    in_force = read_plan(previous) if previous else None
    if in_force is not None:
        check_same_edge(in_force, loaded.topology, str(previous))
    if certify is not None:
        certified(certify, loaded.topology, loaded.catalogue, rules, in_force, as_json=as_json)
        return
    with working(f"planning {loaded.topology.name} with {solver}", quiet=as_json):
        problem = build_problem(loaded.topology, loaded.catalogue, rules=rules, in_force=in_force)
        made = make_plan(
            problem,
            solver=solver,
            time_limit_s=time_limit,
            generation=in_force.generation + 1 if in_force else 1,
            in_force=in_force,
            catalogue=loaded.catalogue,
            refine_s=refine,
            trace=trace,
        )
    if out is not None:
        write_text(out, made.to_json())
        err.print(f"plan written to {out}", highlight=False)
    emit(json.loads(made.to_json()), plan_view(made, loaded.topology), as_json=as_json)


def certified(
    plan_file: Path,
    topology: Topology,
    catalogue: ProfileCatalogue,
    rules: PlanningRules,
    in_force: Plan | None,
    *,
    as_json: bool,
) -> None:
    """Check a plan and recompute its bound. Raises PlanRejected (exit 4) where it claims what does not hold."""
    from epara_opt.certify import certify
    from epara_opt.plan import relative_gap
    from epara_opt.problem import build_problem
    from epara_opt.report.terminal import certificate_view
    from epara_opt.verify import verify

    made = read_plan(plan_file)
    check_same_edge(made, topology, str(plan_file))
    with working(f"certifying {plan_file.name}: {len(made.replicas)} replicas", quiet=as_json):
        problem = build_problem(topology, catalogue, rules=rules, in_force=in_force)
        verify(made, topology, catalogue, problem=problem)
        bound = certify(made, problem)
    found = {
        "plan": str(plan_file),
        "feasible": True,
        "objective": made.objective,
        "certified_bound": bound,
        "certified_gap": relative_gap(made.objective, bound),
        "claimed_bound": made.dual_bound,
        "solver": made.solver,
    }
    emit(found, certificate_view(found), as_json=as_json)


def check_same_edge(made: Plan, topology: Topology, file: str) -> None:
    """A plan names its edge; another edge's plan is refused before anything else happens."""
    from epara_opt.errors import InputError, Violation

    if made.topology != topology.name:
        law = f"expected a plan made for topology {topology.name!r}"
        raise InputError(Violation(path="topology", law=law, value=made.topology, file=file))


def diff(
    old: Annotated[Path, typer.Argument(help="plan.json in force.", show_default=False)],
    new: Annotated[Path, typer.Argument(help="plan.json to come.", show_default=False)],
    as_json: JsonFlag = False,
) -> None:
    """What would change between two plans: groups kept, added, retired; work moved; seconds of loading."""
    from epara_opt.control.diff import compare
    from epara_opt.report.terminal import diff_table

    found = compare(read_plan(old), read_plan(new))
    emit(asdict(found), diff_table(found), as_json=as_json)


def report(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN", help="plan.json", show_default=False)],
    html: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    topology: Annotated[Path | None, typer.Option(help="Draw this topology instead of the plan's own.")] = None,
    store: Annotated[
        Path | None, typer.Option(help="State directory of `epara run`: adds the cycles' history.")
    ] = None,
    live: Annotated[bool, typer.Option("--live", help="Ask the executors: adds what they measure.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """One self-contained HTML page: the edge, what runs where, goodput against demand and bound, what is unserved."""
    from epara_opt.domain.snapshot import topology_from_dict
    from epara_opt.errors import InputError, Violation
    from epara_opt.report.html import render
    from epara_opt.topology import load_topology

    require_writable(html)
    made = read_plan(plan_file)
    if topology is not None:
        edge = load_topology(topology).topology
    elif made.edge is not None:
        edge = topology_from_dict(made.edge)
    else:
        law = "expected a plan that carries its edge; give --topology"
        raise InputError(Violation(path="edge", law=law, file=str(plan_file)))
    history = ()
    if store is not None:
        from epara_opt.cli.cycle import history_points

        history = history_points(store)
    fleet = None
    if live:
        from epara_executors.client import GrpcFleet

        from epara_opt.cli.fleet import addresses

        with working("asking the executors", quiet=as_json), GrpcFleet() as executors:
            fleet = executors.observe(addresses(edge), with_histograms=True)
    write_text(html, render(made, edge, history=history, fleet=fleet))
    if as_json:
        from epara_opt.report.json import jsonable, plan_summary
        from epara_opt.report.replicas import figures_of

        measured = {} if fleet is None else {"replicas": jsonable(figures_of(fleet)), "down": dict(fleet.down)}
        emit({"html": str(html), **plan_summary(made), **measured}, as_json=True)
    err.print(f"report written to {html}", highlight=False)


def solvers(as_json: JsonFlag = False) -> None:
    """The solvers on this machine, their versions, and what each is good for."""
    from epara_solvers.registry import available

    from epara_opt.report.terminal_live import solvers_table

    found = available()
    emit([asdict(s) for s in found], solvers_table(found), as_json=as_json)


def schema(
    what: Annotated[str, typer.Argument(help="topology or plan", show_default=False)],
) -> None:
    """JSON Schema of topology YAML or plan.json, for editors and other programs."""
    from epara_opt.errors import InputError, Violation

    if what == "topology":
        from epara_opt.topology import topology_schema

        print(json.dumps(topology_schema(), indent=1))
    elif what == "plan":
        from epara_opt.plan_schema import plan_schema

        print(json.dumps(plan_schema(), indent=1))
    else:
        raise InputError(Violation(path="schema", law="expected topology or plan", value=what))
