"""The column engine against brute force, its certificate against exact optima, its plans past the checker."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from epara_solvers.brute import optimum
from epara_solvers.columns.arrays import Ground, ground_of
from epara_solvers.columns.dual import Pricer, Prices
from epara_solvers.columns.engine import Budget, Solved, solve
from epara_solvers.planners.columns import ColumnPlanner, prices_of, prove, reserve_s
from epara_solvers.planners.exact import ExactPlanner
from epara_solvers.process import IsolatedBackend
from hypothesis import given, settings
from hypothesis import strategies as st

from epara_opt.certify import certificate_of, certified_bound, certify
from epara_opt.contents import PlanningRules
from epara_opt.errors import NoPlanError, PlanRejected
from epara_opt.formulation.compact import columns_of
from epara_opt.placement import value
from epara_opt.plan import Certificate, Plan, Stop
from epara_opt.problem import PlacementProblem, build_problem
from epara_opt.verify import verify

NUM_PROBLEMS = 60
SHORT = Budget(steps=150, rounds=400)


@pytest.fixture(scope="module")
def cases(tiny_problem: Callable[[int], PlacementProblem]) -> list[tuple[PlacementProblem, float]]:
    """The first seeds that brute force can look through, and their optima."""
    found: list[tuple[PlacementProblem, float]] = []
    seed = 0
    while len(found) < NUM_PROBLEMS:
        problem = tiny_problem(seed)
        with contextlib.suppress(NoPlanError):
            found.append((problem, optimum(problem)[0]))
        seed += 1
    return found


@pytest.fixture(scope="module")
def solved(cases: list[tuple[PlacementProblem, float]]) -> list[tuple[Ground, Solved, float]]:
    found: list[tuple[Ground, Solved, float]] = []
    for problem, best in cases:
        ground = ground_of(problem)
        if len(ground.arrays.column_content):
            found.append((ground, solve(ground, SHORT, threads=1), best))
    assert len(found) > NUM_PROBLEMS // 2
    return found


def test_columns_are_those_of_the_compact_model(cases: list[tuple[PlacementProblem, float]]) -> None:
    capped = [replace(p, rules=replace(p.rules, max_moves=1)) for p, _ in cases]  # keeps those that load in no time too
    for problem in (*(p for p, _ in cases), *capped):
        ground = ground_of(problem)
        a = ground.arrays
        mine = sorted(
            (
                ground.pools[q],
                str(ground.contents[a.column_content[k]]),
                [r.group for r in ground.classes[a.column_class[k]]] if a.column_class[k] >= 0 else [],
                int(a.column_max[k]),
            )
            for q in range(len(ground.pools))
            for k in range(a.pool_column[q], a.pool_column[q + 1])
        )
        theirs = sorted(
            ((c.server, c.content.device_type), str(c.content), [r.group for r in c.residents], c.max_groups)
            for c in columns_of(problem)
        )
        assert mine == theirs


def test_value_and_bound_enclose_the_optimum(solved: list[tuple[Ground, Solved, float]]) -> None:
    for ground, found, best in solved:
        tolerance = 1e-6 * max(1.0, best)
        assert found.value <= best + tolerance
        assert found.bound >= best - tolerance
        assert value(ground.problem, found.placement) == pytest.approx(found.value)


def test_the_engine_is_near_the_optimum_of_tiny_edges(solved: list[tuple[Ground, Solved, float]]) -> None:
    """Near in all, and mostly on it: a search that lost its way would show here."""
    reached = [found.value / best for _, found, best in solved if best > 0]
    assert sum(r > 1 - 1e-6 for r in reached) > 0.7 * len(reached)
    assert sum(reached) / len(reached) > 0.98


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 400), scale=st.floats(0.0, 2.0), link_scale=st.floats(0.0, 3.0), draw=st.integers(0, 2**31))
def test_any_prices_give_a_bound_and_both_computations_agree(
    tiny_problem: Callable[[int], PlacementProblem], seed: int, scale: float, link_scale: float, draw: int
) -> None:
    problem = tiny_problem(seed)
    ground = ground_of(problem)
    a = ground.arrays
    rng = np.random.default_rng(draw)
    prices = Prices(
        scale * a.worth * rng.random(len(a.offered)),
        link_scale * rng.random(len(a.link_width)) * float((a.worth * a.offered).sum()) / np.maximum(1.0, a.link_width),
    )
    certificate = prove(ground, prices, threads=1)
    assert certified_bound(problem, certificate) == pytest.approx(certificate.bound, rel=1e-9, abs=1e-9)
    with contextlib.suppress(NoPlanError):
        best = optimum(problem)[0]
        assert certificate.bound >= best * (1 - 1e-9) - 1e-9


def test_a_budget_of_counts_makes_runs_alike(solved: list[tuple[Ground, Solved, float]]) -> None:
    for ground, found, _ in solved[:8]:
        again = solve(ground, SHORT, threads=1)
        assert (again.value, again.bound, again.placement) == (found.value, found.bound, found.placement)


def test_the_bound_is_what_its_prices_prove(solved: list[tuple[Ground, Solved, float]]) -> None:
    for ground, found, _ in solved[:20]:
        pricer = Pricer(ground)
        assert pricer(found.prices).bound == pytest.approx(found.bound, rel=1e-12)


def planner(**options: object) -> ColumnPlanner:
    return ColumnPlanner(budget=SHORT, threads=1, **options)  # type: ignore[arg-type]


def test_plans_pass_the_checker_and_carry_their_certificate(cases: list[tuple[PlacementProblem, float]]) -> None:
    for problem, best in cases[:30]:
        plan = planner().plan(problem, generation=2, time_limit_s=10.0)
        verify(plan, problem.topology, problem.catalogue, problem=problem)
        assert plan.dual_bound is not None
        assert plan.dual_bound >= best * (1 - 1e-6)
        assert certify(plan, problem) >= plan.objective * (1 - 1e-6)
        assert Plan.from_json(plan.to_json()).to_json() == plan.to_json()


def test_small_problems_are_proved_optimal(cases: list[tuple[PlacementProblem, float]]) -> None:
    whole = ColumnPlanner(exact=ExactPlanner(IsolatedBackend("mathopt-highs"), gap=0.0), threads=1)
    try:
        for problem, best in cases[:12]:
            plan = whole.plan(problem, generation=2, time_limit_s=20.0)
            assert plan.stop is Stop.OPTIMAL
            assert plan.objective == pytest.approx(best, rel=1e-5)
    finally:
        whole.close()


@pytest.fixture(scope="module")
def busy(cases: list[tuple[PlacementProblem, float]]) -> PlacementProblem:
    """One with something to place and nothing in force."""
    return next(p for p, best in cases if best > 0 and not p.residents and len(p.demand) > 3)


def test_tampered_certificates_are_refused(busy: PlacementProblem) -> None:
    plan = planner().plan(busy, generation=2, time_limit_s=10.0)
    assert plan.certificate is not None
    lower = replace(plan, certificate=replace(plan.certificate, bound=plan.certificate.bound * 0.9))
    with pytest.raises(PlanRejected, match=r"certificate.bound: its prices prove"):
        certify(lower, busy)
    service, prices = next(iter(plan.certificate.demand.items())) if plan.certificate.demand else ("x", {"y": 1.0})
    negative = replace(plan.certificate, demand={service: dict.fromkeys(prices, -1.0)})
    with pytest.raises(PlanRejected, match="expected a price >= 0, got -1"):
        certify(replace(plan, certificate=negative), busy)
    nan = replace(plan.certificate, demand={service: {o: float("nan") for o in prices}})
    with pytest.raises(PlanRejected, match="expected a price >= 0, got nan"):
        certify(replace(plan, certificate=nan), busy)
    other = build_problem(busy.topology, busy.catalogue, rules=PlanningRules(max_utilization=0.5))
    with pytest.raises(PlanRejected, match="inputs_digest"):
        certify(plan, other)
    with pytest.raises(PlanRejected, match="expected prices; this plan carries none"):
        certify(replace(plan, certificate=None), busy)
    with pytest.raises(PlanRejected, match="at most the certified bound"):
        certify(replace(plan, objective=plan.certificate.bound * 1.1), busy)


def test_certificates_are_worked_out_where_no_bound_is_given(busy: PlacementProblem) -> None:
    free = certificate_of(busy, {}, {})
    assert isinstance(free, Certificate)
    assert free.bound == certified_bound(busy, free) > 0


def test_the_same_input_moves_nothing(busy: PlacementProblem) -> None:
    first = planner().plan(busy, generation=1, time_limit_s=10.0)
    again = build_problem(busy.topology, busy.catalogue, rules=busy.rules, in_force=first)
    second = planner().plan(again, generation=2, time_limit_s=10.0, in_force=first)
    assert {r.id for r in second.replicas} == {r.id for r in first.replicas}
    assert all(r.load_s == 0 for r in second.replicas)
    assert second.objective == pytest.approx(first.objective)


def test_old_prices_bound_the_next_cycle_at_once(busy: PlacementProblem) -> None:
    """One step from old prices proves nearly what many steps from none do."""
    first = planner().plan(busy, generation=1, time_limit_s=10.0)
    more = [replace(d, offered=d.offered if d.is_streams else d.offered * 1.02) for d in busy.demand]
    later = build_problem(busy.topology, busy.catalogue, rules=busy.rules, demand=more)
    ground = ground_of(later)
    start = prices_of(ground, first)
    assert start is not None
    assert first.certificate is not None
    assert Pricer(ground)(start).bound <= first.certificate.bound * 1.03


def test_no_demand_and_nothing_to_place_are_plans(busy: PlacementProblem) -> None:
    idle = build_problem(busy.topology, busy.catalogue, rules=busy.rules, demand=())
    plan = planner().plan(idle, generation=1, time_limit_s=1.0)
    assert (plan.stop, plan.replicas, plan.dual_bound) == (Stop.NO_DEMAND, (), 0.0)
    hosts = frozenset(s.name for s in busy.topology.servers.values() if s.devices)
    dark = build_problem(busy.topology, busy.catalogue, rules=busy.rules, down=hosts)
    plan = planner().plan(dark, generation=1, time_limit_s=1.0)
    assert plan.replicas == ()
    assert plan.objective == 0.0


def test_a_limit_that_was_not_kept_is_said(busy: PlacementProblem) -> None:
    """Whatever the time, there is a plan; one that took longer than it might owns up to it."""
    seconds = itertools.count()
    late = planner(clock=lambda: float(next(seconds))).plan(busy, generation=1, time_limit_s=0.5)
    verify(late, busy.topology, busy.catalogue, problem=busy)
    assert late.wall_s > 1.0
    assert any(n.startswith("the time limit of 0.5 s is less than this edge takes") for n in late.notes)
    timely = planner().plan(busy, generation=1, time_limit_s=600.0)
    assert not any("time limit" in n for n in timely.notes)


def test_what_is_kept_back_grows_with_the_edge_and_with_a_busy_machine() -> None:
    assert reserve_s(10, 0.0) < reserve_s(1_000, 0.0) < reserve_s(10_000, 0.0)
    assert reserve_s(1_000, 0.0) < reserve_s(1_000, 1.0) <= reserve_s(1_000, 100.0) < 3.5 * reserve_s(1_000, 0.0)
