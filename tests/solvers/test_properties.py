"""Laws that hold on every edge: value, optimum and bound in order, pricing twice alike, broken plans refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from epara_solvers.brute import optimum
from epara_solvers.columns.arrays import ground_of
from epara_solvers.columns.dual import Prices
from epara_solvers.columns.engine import Budget
from epara_solvers.planners.columns import ColumnPlanner, prove
from epara_solvers.planners.greedy import GreedyPlanner
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from epara_opt.certify import certificate_of, certified_bound, certify
from epara_opt.control.reroute import rerouted
from epara_opt.errors import InputError, NoPlanError, PlanRejected
from epara_opt.plan import Plan, Replica, Route, Stop
from epara_opt.problem import PlacementProblem, build_problem
from epara_opt.verify import verify

EXAMPLES = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
FEW = settings(EXAMPLES, max_examples=20)
SHORT = Budget(steps=40, rounds=120)
MOST_PLACEMENTS = 400
Make = Callable[[int], PlacementProblem]
Bent = tuple[int, dict[str, float], float, float, int | None, bool]


@st.composite
def edges(draw: st.DrawFn) -> Bent:
    """A seed of a tiny edge (its servers, links, services of all categories, residents), and how it is bent:
    weights by powers of ten, demand, bandwidth, a cap on moves, whether room must be found beside what runs."""
    weights = {str(i): 10.0 ** draw(st.integers(-6, 6)) if draw(st.booleans()) else 1.0 for i in range(4)}
    return (
        draw(st.integers(0, 300)),
        weights,
        draw(st.sampled_from((0.01, 1.0, 1.0, 10.0, 1_000.0))),
        draw(st.sampled_from((0.1, 1.0, 1.0))),
        draw(st.sampled_from((None, None, 0, 1, 2))),
        draw(st.booleans()),
    )


def bent(make: Make, edge: Bent) -> PlacementProblem:
    seed, weights, load, width, max_moves, beside = edge
    usual = make(seed)
    services = {
        n: replace(s, weight=s.weight * weights[n.rpartition("-")[2]]) for n, s in usual.topology.services.items()
    }
    links = tuple(replace(k, bandwidth_bytes_per_s=k.bandwidth_bytes_per_s * width) for k in usual.topology.links)
    topology = replace(usual.topology, services=services, links=links, digest="")
    demand = [replace(d, offered=d.offered if d.is_streams else d.offered * load) for d in usual.demand]
    rules = replace(usual.rules, max_moves=max_moves, make_before_break=beside)
    problem = build_problem(topology, usual.catalogue, rules=rules, demand=demand)
    return replace(problem, residents=usual.residents)


def best_of(problem: PlacementProblem) -> float:
    try:
        return optimum(problem, max_placements=MOST_PLACEMENTS)[0]
    except NoPlanError:
        assume(False)
        raise


def planned(problem: PlacementProblem, *, seed: int = 1) -> Plan:
    return ColumnPlanner(budget=SHORT, threads=1, seed=seed).plan(problem, generation=2, time_limit_s=600.0)


@EXAMPLES
@given(edge=edges())
def test_value_optimum_and_bound_are_in_order(tiny_problem: Make, edge) -> None:
    problem = bent(tiny_problem, edge)
    best = best_of(problem)
    plan = planned(problem)
    verify(plan, problem.topology, problem.catalogue, problem=problem)
    assert plan.dual_bound is not None
    assert plan.objective <= best * (1 + 1e-6)
    assert best <= plan.dual_bound * (1 + 1e-6)
    assert plan.stop is not Stop.OPTIMAL or plan.objective >= best * (1 - 1e-5)
    if plan.certificate is not None:
        assert best <= certify(plan, problem) * (1 + 1e-6)
    greedy = GreedyPlanner().plan(problem, generation=2, time_limit_s=600.0)
    verify(greedy, problem.topology, problem.catalogue, problem=problem)
    assert greedy.objective <= best * (1 + 1e-6)


@EXAMPLES
@given(
    edge=edges(),
    pi=st.lists(st.floats(0.0, 3.0), min_size=1, max_size=12),
    beta=st.lists(st.floats(0.0, 2.0), min_size=1, max_size=4),
)
def test_any_prices_bound_the_optimum_and_are_priced_alike_twice(
    tiny_problem: Make, edge, pi: Sequence[float], beta: Sequence[float]
) -> None:
    problem = bent(tiny_problem, edge)
    best = best_of(problem)
    total = sum(problem.service(d.service).weight * d.offered for d in problem.demand)
    asked = {
        (d.service, d.origin): pi[i % len(pi)] * problem.service(d.service).weight for i, d in enumerate(problem.demand)
    }
    ends = problem.table.link_ends
    links = {
        h: beta[i % len(beta)] * total / w for i, (h, w) in enumerate(zip(ends, problem.table.link_width, strict=True))
    }
    certificate = certificate_of(problem, asked, links)
    assert certificate.bound >= best * (1 - 1e-9)
    ground = ground_of(problem)
    if len(ground.arrays.column_content):
        prices = Prices(np.array(list(asked.values())), np.array([links[h] for h in ends]))
        compiled = prove(ground, prices, threads=1)
        assert compiled.bound == pytest.approx(certified_bound(problem, compiled), rel=1e-9)
        # A price above what a service earns may be worth more as a bound than the service is: both keep it.
        assert compiled.bound == pytest.approx(certificate.bound, rel=1e-6)


@FEW
@given(edge=edges(), seed=st.integers(0, 3))
def test_the_same_input_gives_the_same_plan(tiny_problem: Make, edge, seed: int) -> None:
    problem = bent(tiny_problem, edge)
    first, second = (planned(problem, seed=seed) for _ in range(2))
    assert replace(first, wall_s=0.0, made_at="") == replace(second, wall_s=0.0, made_at="")


@FEW
@given(edge=edges(), load=st.sampled_from((0.5, 0.9, 1.0, 1.2)))
def test_a_warm_plan_is_never_below_what_stays(tiny_problem: Make, edge, load: float) -> None:
    """With the same demand, whatever moves are allowed; and with other demand its bound covers what stays too."""
    cold = replace(bent(tiny_problem, edge), residents=())
    first = planned(cold)
    demand = [replace(d, offered=d.offered if d.is_streams else d.offered * load) for d in cold.demand]
    warm = build_problem(cold.topology, cold.catalogue, rules=cold.rules, demand=demand, in_force=first)
    second = ColumnPlanner(budget=SHORT, threads=1).plan(warm, generation=3, time_limit_s=600.0, in_force=first)
    verify(second, warm.topology, warm.catalogue, problem=warm)
    if load == 1.0:
        assert second.objective >= first.objective * (1 - 1e-6)
        as_it_is = rerouted(first, warm, generation=3, fill=False)
        assert as_it_is.objective == pytest.approx(first.objective, rel=1e-6)
    stays = rerouted(first, warm, generation=3)
    assert second.dual_bound is not None
    assert stays.objective <= second.dual_bound * (1 + 1e-6)


# Broken plans

Mutation = Callable[[Plan, int, float], Plan]


def _replica(change: Callable[[Replica, float], Replica]) -> Mutation:
    def mutate(plan: Plan, at: int, by: float) -> Plan:
        i = at % len(plan.replicas)
        return replace(plan, replicas=(*plan.replicas[:i], change(plan.replicas[i], by), *plan.replicas[i + 1 :]))

    return mutate


def _route(change: Callable[[Route, float], Route]) -> Mutation:
    def mutate(plan: Plan, at: int, by: float) -> Plan:
        i = at % len(plan.routes)
        return replace(plan, routes=(*plan.routes[:i], change(plan.routes[i], by), *plan.routes[i + 1 :]))

    return mutate


MUTATIONS: dict[str, Mutation] = {
    "a rate": _route(lambda r, by: replace(r, rate=r.rate * by)),
    "a rate that is none": _route(lambda r, _: replace(r, rate=math.nan)),
    "a rate below 0": _route(lambda r, _: replace(r, rate=-r.rate)),
    "a network time": _route(lambda r, by: replace(r, network_ms=r.network_ms * by + 0.01)),
    "a predicted time": _route(lambda r, by: replace(r, predicted_ms=r.predicted_ms * by)),
    "a route to nowhere": _route(lambda r, _: replace(r, replica=r.replica + "x")),
    "a route from nowhere": _route(lambda r, _: replace(r, origin="nowhere")),
    "a route of another service": _route(lambda r, _: replace(r, service="other")),
    "a route left out": lambda plan, at, _: replace(
        plan, routes=tuple(r for i, r in enumerate(plan.routes) if i != at % len(plan.routes))
    ),
    "a route twice": lambda plan, at, _: replace(plan, routes=(*plan.routes, plan.routes[at % len(plan.routes)])),
    "a device that is not there": _replica(lambda r, _: replace(r, devices=tuple(d + 99 for d in r.devices))),
    "a device too many": _replica(lambda r, _: replace(r, devices=(*r.devices, max(r.devices) + 1))),
    "another server": _replica(lambda r, _: replace(r, server="nowhere")),
    "another device type": _replica(lambda r, _: replace(r, device_type="none")),
    "another service": _replica(lambda r, _: replace(r, service="other")),
    "another shape": _replica(lambda r, _: replace(r, tp=r.tp + 1)),
    "a batch never measured": _replica(lambda r, _: replace(r, batch=64)),
    "a share below what routes take": _replica(lambda r, _: replace(r, share=r.share * 0.5)),
    "a share above 1": _replica(lambda r, _: replace(r, share=1.01)),
    "a share that is none": _replica(lambda r, _: replace(r, share=math.nan)),
    "a capacity below what routes ask": _replica(lambda r, _: replace(r, capacity=0.0)),
    "a response": _replica(lambda r, by: replace(r, response_ms=r.response_ms * by)),
    "memory": _replica(lambda r, _: replace(r, memory_bytes=r.memory_bytes - 1)),
    "load time": _replica(lambda r, _: replace(r, load_s=r.load_s + 1.0)),
    "an id": _replica(lambda r, _: replace(r, id=r.id + "x")),
    "a replica twice": lambda plan, at, _: replace(
        plan, replicas=(*plan.replicas, plan.replicas[at % len(plan.replicas)])
    ),
    "the objective": lambda plan, _, by: replace(plan, objective=plan.objective * by),
    "a bound below the objective": lambda plan, _, __: replace(plan, dual_bound=plan.objective * 0.99),
    "the goodput": lambda plan, _, by: replace(
        plan, predicted=replace(plan.predicted, goodput=plan.predicted.goodput * by)
    ),
    "the inputs": lambda plan, _, __: replace(plan, inputs_digest="0" * 16),
    "the edge": lambda plan, _, __: replace(plan, topology="other"),
    "demand left over that is not": lambda plan, _, __: replace(
        plan, unserved=tuple(replace(u, rate=u.rate * 1.01 + 1.0) for u in plan.unserved) or ()
    ),
}


@cache
def _plan_of(make: Make, seed: int) -> tuple[PlacementProblem, Plan]:
    problem = make(seed)
    return problem, planned(problem)


@pytest.mark.parametrize("what", MUTATIONS)
@settings(FEW, max_examples=12)
@given(seed=st.integers(0, 40), at=st.integers(0, 30), by=st.sampled_from((0.5, 0.99, 1.01, 2.0)))
def test_a_plan_with_one_thing_changed_is_refused(tiny_problem: Make, what: str, seed: int, at: int, by: float) -> None:
    problem, plan = _plan_of(tiny_problem, seed)
    assume(plan.routes)
    verify(plan, problem.topology, problem.catalogue, problem=problem)
    try:
        broken = MUTATIONS[what](plan, at, by)
    except InputError:
        return  # refused at birth
    assume(broken != plan)
    with pytest.raises(PlanRejected):
        verify(broken, problem.topology, problem.catalogue, problem=problem)
