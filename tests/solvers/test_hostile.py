"""Hostile edges, one test each: a checked plan or a typed error, a certificate that holds, and no traceback."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from epara_solvers.brute import optimum
from epara_solvers.columns.engine import Budget
from epara_solvers.planners.columns import ColumnPlanner
from epara_solvers.planners.exact import ExactPlanner, scale_of
from epara_solvers.planners.greedy import GreedyPlanner
from epara_solvers.process import IsolatedBackend

from epara_opt.certify import certify
from epara_opt.control.ports import Planner
from epara_opt.domain.profile import ProfileCatalogue, ProfileRow
from epara_opt.domain.service import Demand, Model, RequestShape, Sensitivity, Service, Task
from epara_opt.domain.topology import DeviceKind, DevicePool, DeviceType, Link, Server, ServerKind, Topology
from epara_opt.errors import EparaError, InputError, NoPlanError, PlanRejected
from epara_opt.importers.document import write_document
from epara_opt.importers.generate import generate
from epara_opt.plan import Plan, Stop
from epara_opt.problem import PlacementProblem, PlanningRules, build_problem
from epara_opt.topology import load_topology
from epara_opt.units import GIB
from epara_opt.verify import verify

PLANNERS = ("columns", "columns and HiGHS", "mathopt-highs", "pulp-cbc", "greedy")
NOT_FINITE = (float("nan"), float("inf"), float("-inf"))


@pytest.fixture(scope="module")
def planners() -> Iterator[dict[str, Planner]]:
    exact = {n: ExactPlanner(IsolatedBackend(n), gap=0.0) for n in ("mathopt-highs", "pulp-cbc")}
    short = Budget(steps=60, rounds=200)
    yield {
        "columns": ColumnPlanner(budget=short, threads=1),
        "columns and HiGHS": ColumnPlanner(budget=short, threads=1, exact=exact["mathopt-highs"], gap=0.0),
        "greedy": GreedyPlanner(),
        **exact,
    }
    for planner in exact.values():
        planner.close()


@pytest.fixture(params=PLANNERS)
def planner(request: pytest.FixtureRequest, planners: dict[str, Planner]) -> Planner:
    return planners[request.param]


def service(name: str, **fields: object) -> Service:
    given: dict[str, object] = {"slo_ms": 100.0, "request": RequestShape(), **fields}
    model = Model(source=name, task=Task.IMAGE_CLASSIFICATION)
    return Service(name=name, model=model, sensitivity=Sensitivity.LATENCY, **given)  # type: ignore[arg-type]


def profile(name: str, **fields: object) -> ProfileRow:
    given: dict[str, object] = {"latency_ms": 10.0, "memory_bytes": GIB // 2, "load_s": 6.0, **fields}
    return ProfileRow(model=name, device_type="gpu", source="made up", **given)  # type: ignore[arg-type]


def problem_of(
    services: list[Service],
    offered: dict[str, float],
    *,
    rows: list[ProfileRow] | None = None,
    counts: tuple[int, ...] = (1,),
    memory_gib: float = 22.0,
    rules: PlanningRules | None = None,
) -> PlacementProblem:
    """A chain of servers with so many gpus each; all demand enters at the first. A gpu serves 100/s of a service."""
    servers = {
        f"s{i}": Server(
            name=f"s{i}",
            kind=ServerKind.EDGE_SERVER,
            devices=(DevicePool(type="gpu", count=count),) if count else (),
        )
        for i, count in enumerate(counts)
    }
    topology = Topology(
        name="hostile",
        device_types={"gpu": DeviceType(name="gpu", memory_bytes=int(memory_gib * GIB), kind=DeviceKind.GPU)},
        servers=servers,
        links=tuple(
            Link(between=(f"s{i}", f"s{i + 1}"), rtt_ms=1.0, bandwidth_bytes_per_s=1e9) for i in range(len(counts) - 1)
        ),
        services={s.name: s for s in services},
        demand=tuple(Demand(service=n, origin="s0", offered=rate) for n, rate in offered.items()),
        digest="hostile",
    )
    catalogue = ProfileCatalogue.from_rows([profile(s.name) for s in services] if rows is None else rows)
    return build_problem(topology, catalogue, rules=rules or PlanningRules(max_utilization=1.0))


def planned(planner: Planner, problem: PlacementProblem, time_limit_s: float = 20.0) -> Plan:
    """A plan that passes the checker, and whose certificate, where it has one, proves what it says."""
    plan = planner.plan(problem, generation=1, time_limit_s=time_limit_s)
    verify(plan, problem.topology, problem.catalogue, problem=problem)
    if plan.certificate is not None:
        assert certify(plan, problem) >= plan.objective * (1 - 1e-6)
    return plan


def rate_of(plan: Plan, name: str) -> float:
    return sum(r.rate for r in plan.routes if r.service == name)


# Nothing to place


def test_no_demand_is_an_empty_plan(planner: Planner) -> None:
    plan = planned(planner, problem_of([service("a")], {}))
    assert (plan.replicas, plan.routes, plan.unserved, plan.objective) == ((), (), (), 0.0)
    assert plan.stop in (Stop.NO_DEMAND, Stop.HEURISTIC)


def test_servers_that_all_fail_leave_an_empty_plan(planner: Planner) -> None:
    whole = problem_of([service("a")], {"a": 10.0}, counts=(1, 1))
    dark = build_problem(whole.topology, whole.catalogue, rules=whole.rules, down=frozenset({"s0", "s1"}))
    assert planned(planner, dark).replicas == ()


def test_an_edge_without_any_device_is_no_topology() -> None:
    with pytest.raises(InputError, match="at least one device in the whole edge"):
        problem_of([service("a")], {"a": 10.0}, counts=(0, 0))


@pytest.mark.parametrize(
    ("rows", "slo_ms", "memory_gib", "code"),
    [
        ([], 100.0, 22.0, "no_profile"),
        ([profile("a", memory_bytes=23 * GIB)], 100.0, 22.0, "no_memory"),
        ([profile("a", latency_ms=500.0)], 100.0, 22.0, "no_route_in_time"),
        ([profile("a", latency_ms=1e6)], 1e-6, 22.0, "no_route_in_time"),
    ],
)
def test_what_cannot_be_served_at_all_is_a_plan_with_its_reason(
    planner: Planner, rows: list[ProfileRow], slo_ms: float, memory_gib: float, code: str
) -> None:
    plan = planned(planner, problem_of([service("a", slo_ms=slo_ms)], {"a": 7.0}, rows=rows, memory_gib=memory_gib))
    assert plan.replicas == ()
    assert [(u.service, u.rate, u.code) for u in plan.unserved] == [("a", 7.0, code)]
    assert plan.dual_bound in (0.0, 7.0, None)  # nothing can be earned, and at most all


# Numbers of every size


@pytest.mark.parametrize("low", [1e-9, 1e-6, 1.0])
def test_weights_over_twelve_orders_of_magnitude_are_planned_to_the_optimum(planner: Planner, low: float) -> None:
    """The dear service takes what it needs; the cheap one still has the device that is left over."""
    services = [service("cheap", weight=low), service("dear", weight=low * 1e12)]
    problem = problem_of(services, {"cheap": 80.0, "dear": 90.0}, counts=(1, 1))
    best = optimum(problem)[0]
    plan = planned(planner, problem)
    assert plan.objective == pytest.approx(best, rel=1e-6)
    assert plan.dual_bound is None or plan.dual_bound >= best * (1 - 1e-9)
    assert rate_of(plan, "dear") == pytest.approx(90.0)
    assert rate_of(plan, "cheap") == pytest.approx(80.0)


@pytest.mark.parametrize("low", [1e-9, 1.0])
def test_where_the_dear_fills_every_device_the_cheap_gets_nothing(planner: Planner, low: float) -> None:
    services = [service("cheap", weight=low), service("dear", weight=low * 1e12)]
    plan = planned(planner, problem_of(services, {"cheap": 80.0, "dear": 300.0}, counts=(1, 1)))
    assert rate_of(plan, "dear") == pytest.approx(200.0)
    assert plan.objective == pytest.approx(200.0 * low * 1e12)


@pytest.mark.parametrize("seed", [1, 14, 28])
@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_scaled_weights_give_scaled_optima(planner: Planner, tiny_problem, seed: int, scale: float) -> None:
    """At 1e-9 the back ends once proved bounds 4 % below the optimum."""
    usual = tiny_problem(seed)
    services = {n: replace(s, weight=s.weight * scale) for n, s in usual.topology.services.items()}
    topology = replace(usual.topology, services=services)
    problem = replace(build_problem(topology, usual.catalogue, rules=usual.rules), residents=usual.residents)
    best = optimum(usual)[0] * scale
    plan = planner.plan(problem, generation=2, time_limit_s=20.0)
    verify(plan, topology, usual.catalogue, problem=problem)
    assert plan.objective <= best * (1 + 1e-6)
    assert plan.dual_bound is None or plan.dual_bound >= best * (1 - 1e-6)
    assert plan.stop is not Stop.OPTIMAL or plan.objective >= best * (1 - 1e-5)


@pytest.mark.parametrize("offered", [1e-9, 1e-3, 1e6, 1e7])
def test_demand_of_any_size_is_served_as_far_as_devices_reach(planner: Planner, offered: float) -> None:
    plan = planned(planner, problem_of([service("a")], {"a": offered}, counts=(1, 1)))
    assert plan.objective == pytest.approx(min(offered, 200.0), rel=1e-6)
    assert plan.dual_bound is None or plan.dual_bound >= min(offered, 200.0) * (1 - 1e-6)


@pytest.mark.parametrize(
    ("largest", "factor"), [(64.0, 1.0), (1.0, 1.0), (1e4, 1.0), (1e-9, 2.0**36), (6.4e10, 2.0**-30), (0.0, 1.0)]
)
def test_objectives_are_brought_near_usual_sizes_by_powers_of_two(largest: float, factor: float) -> None:
    assert scale_of(np.array([0.0, largest])) == factor


@pytest.mark.parametrize("value", NOT_FINITE)
def test_numbers_that_are_none_are_refused_where_they_enter(value: float) -> None:
    for make in (
        lambda: service("a", weight=value),
        lambda: service("a", slo_ms=value),
        lambda: Demand(service="a", origin="s0", offered=value),
        lambda: Link(between=("s0", "s1"), rtt_ms=value, bandwidth_bytes_per_s=1.0),
        lambda: Link(between=("s0", "s1"), rtt_ms=1.0, bandwidth_bytes_per_s=value),
        lambda: profile("a", latency_ms=value),
        lambda: profile("a", load_s=value),
        lambda: PlanningRules(horizon_s=value),
        lambda: PlanningRules(max_utilization=value),
        lambda: RequestShape(input_bytes=value),
    ):
        with pytest.raises(InputError):
            make()


@pytest.mark.parametrize("weight", [1e16, 1e300, 1e-16, 1e-300])
def test_weights_beyond_all_comparison_are_refused(weight: float) -> None:
    with pytest.raises(InputError, match=r"services.a.weight: expected at most 1e\+15 and at least 1e-15"):
        service("a", weight=weight)


def test_a_demand_that_no_edge_could_see_is_refused_with_a_question() -> None:
    with pytest.raises(InputError, match=r"at most 1e\+07 .*; is the unit right\?"):
        Demand(service="a", origin="s0", offered=1e12)


# Claims


@pytest.fixture
def small_worth(planners: dict[str, Planner]) -> tuple[PlacementProblem, Plan]:
    problem = problem_of([service("a", weight=1e-10)], {"a": 150.0})
    return problem, planned(planners["columns"], problem)


@pytest.mark.parametrize("factor", [0.0, 0.5, 0.999, float("nan")])
def test_a_bound_is_checked_however_little_everything_is_worth(
    small_worth: tuple[PlacementProblem, Plan], factor: float
) -> None:
    """An absolute tolerance once let any bound pass that was below a millionth."""
    problem, plan = small_worth
    assert plan.certificate is not None
    assert 0.0 < plan.certificate.bound < 1e-6
    claimed = replace(plan, certificate=replace(plan.certificate, bound=plan.certificate.bound * factor))
    with pytest.raises(PlanRejected, match="its prices prove"):
        certify(claimed, problem)


def test_an_objective_is_checked_however_little_everything_is_worth(
    small_worth: tuple[PlacementProblem, Plan],
) -> None:
    problem, plan = small_worth
    for claimed in (plan.objective * 1.001, plan.objective * 0.5, 0.0, float("nan")):
        with pytest.raises(PlanRejected, match="objective"):
            verify(replace(plan, objective=claimed), problem.topology, problem.catalogue, problem=problem)
    with pytest.raises(PlanRejected, match="gap"):
        verify(replace(plan, gap=float("nan")), problem.topology, problem.catalogue, problem=problem)


# Many


def test_two_hundred_services_on_one_server_are_a_plan_with_reasons(planners: dict[str, Planner]) -> None:
    services = [service(f"m{i:03d}", weight=1.0 + i / 100) for i in range(200)]
    problem = problem_of(services, {s.name: 30.0 for s in services}, counts=(2,))
    for name in ("columns", "greedy"):
        plan = planned(planners[name], problem)
        assert plan.replicas
        served = {r.service for r in plan.routes}
        assert len(served) + len({u.service for u in plan.unserved} - served) == 200
        assert all(u.reason for u in plan.unserved)
    assert any("max_contents" in n for n in problem.notes)


def test_more_edges_than_wanted_keep_the_nearest_and_say_so(planners: dict[str, Planner], tmp_path: Path) -> None:
    path = tmp_path / "edge.yaml"
    write_document(generate(servers=60, services=20, seed=3, overload=1.6), path)
    loaded = load_topology(path)
    rules = replace(loaded.rules, max_edges=5_000, max_tenants=1)
    problem = build_problem(loaded.topology, loaded.catalogue, rules=rules)
    assert 0 < len(problem.table) <= 5_000 + 8 * len(problem.demand)
    plan = planned(planners["columns"], problem)
    assert any("max_edges = 5000" in n for n in plan.notes)
    assert plan.objective > 0.5 * (plan.dual_bound or 0.0)


@pytest.mark.parametrize("time_limit_s", [1e-9, 0.01])
def test_a_limit_too_short_for_anything_still_gives_a_plan(time_limit_s: float) -> None:
    problem = problem_of([service("a"), service("b")], {"a": 150.0, "b": 20.0}, counts=(2, 1))
    plan = planned(ColumnPlanner(threads=1), problem, time_limit_s)
    assert plan.objective > 0.0


def test_brute_force_refuses_what_it_cannot_look_through() -> None:
    services = [service(f"m{i}") for i in range(12)]
    with pytest.raises(NoPlanError) as refused:
        optimum(problem_of(services, {s.name: 30.0 for s in services}, counts=(8, 8)), max_placements=2_000)
    assert isinstance(refused.value, EparaError)
