"""The column engine with chains: bounds and certificates against brute force, placements near the optimum."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from epara_solvers.brute import optimum
from epara_solvers.columns.arrays import ground_of
from epara_solvers.columns.chained import hull, price_chains
from epara_solvers.columns.dual import Pricer, Prices
from epara_solvers.columns.engine import Budget
from epara_solvers.columns.pools import pool_values
from epara_solvers.planners.columns import ColumnPlanner
from epara_solvers.planners.exact import ExactPlanner
from epara_solvers.process import IsolatedBackend

from epara_opt.certify import certificate_of, certified_bound, certify
from epara_opt.errors import NoPlanError, PlanRejected
from epara_opt.formulation.compact import chain_columns
from epara_opt.plan import Plan, Stop
from epara_opt.problem import PlacementProblem, build_problem
from epara_opt.verify import verify

NUM_PROBLEMS = 40
SHORT = Budget(steps=100, rounds=200)


@pytest.fixture(scope="module")
def cases(chain_problem: Callable[[int], PlacementProblem]) -> list[tuple[int, PlacementProblem, float]]:
    found: list[tuple[int, PlacementProblem, float]] = []
    seed = 0
    while len(found) < NUM_PROBLEMS:
        problem = chain_problem(seed)
        with contextlib.suppress(NoPlanError):
            if problem.chains.contents:
                found.append((seed, problem, optimum(problem, max_placements=20_000)[0]))
        seed += 1
    return found


@pytest.fixture(scope="module")
def plans(cases: list[tuple[int, PlacementProblem, float]]) -> list[tuple[PlacementProblem, float, Plan]]:
    planner = ColumnPlanner(budget=SHORT, threads=1)
    return [(p, best, planner.plan(p, generation=2, time_limit_s=10.0)) for _, p, best in cases]


def test_plans_pass_the_checker_and_are_certified(plans: list[tuple[PlacementProblem, float, Plan]]) -> None:
    for problem, best, plan in plans:
        verify(plan, problem.topology, problem.catalogue, problem=problem)
        assert plan.objective <= best * (1 + 1e-6)
        assert plan.dual_bound is not None
        assert plan.dual_bound >= best * (1 - 1e-6)
        again = Plan.from_json(plan.to_json())
        assert certify(again, problem) >= best * (1 - 1e-6)
        assert again.to_json() == plan.to_json()


def test_plans_are_near_the_optimum_and_bounds_are_not_far(plans: list[tuple[PlacementProblem, float, Plan]]) -> None:
    reached = [plan.objective / best for _, best, plan in plans if best > 0]
    assert sum(r > 1 - 1e-6 for r in reached) > 0.7 * len(reached)
    assert sum(reached) / len(reached) > 0.98
    bounds = [(plan.dual_bound or 0.0) / best for _, best, plan in plans if best > 0]
    assert sum(bounds) / len(bounds) < 1.15


def test_any_prices_give_a_bound_and_both_computations_agree(
    cases: list[tuple[int, PlacementProblem, float]],
) -> None:
    for seed, problem, best in cases:
        ground = ground_of(problem)
        a, rng = ground.arrays, np.random.default_rng(seed)
        prices = Prices(
            1.5 * a.worth * rng.random(len(a.offered)),
            rng.random(len(a.link_width)) * float((a.worth * a.offered).sum()) / a.link_width,
        )
        priced = price_chains(ground, chain_columns(problem), prices)
        certificate = priced.certificate(problem, ground.table.link_ends)
        assert certified_bound(problem, certificate) == pytest.approx(priced.bound, rel=1e-9, abs=1e-9), seed
        assert priced.bound >= best * (1 - 1e-9), seed
        devices = {pool: float(rng.random() * 50) for pool in priced.devices}
        demand = {(d.service, d.origin): float(rng.random()) for d in problem.demand}
        drawn = certificate_of(problem, demand, {}, devices=devices)
        assert drawn.bound >= best * (1 - 1e-9), seed
        assert drawn.bound >= certified_bound(problem, replace(drawn, bound=0.0)) * (1 - 1e-9)


def test_the_duals_are_the_best_device_prices_near_them(cases: list[tuple[int, PlacementProblem, float]]) -> None:
    """No other price of a single device proves less, but for what whole copies gain on the program."""
    worse = looked_at = 0
    for _, problem, _ in cases[:15]:
        ground = ground_of(problem)
        zero = Prices(np.zeros(len(ground.arrays.offered)), np.zeros(len(ground.arrays.link_width)))
        priced = price_chains(ground, chain_columns(problem), zero)
        certificate = priced.certificate(problem, ground.table.link_ends)
        for server, prices in certificate.devices.items():
            for kind, price in prices.items():
                for factor in (0.5, 1.5):
                    bent = replace(
                        certificate, devices={**certificate.devices, server: {**prices, kind: price * factor}}
                    )
                    found = certified_bound(problem, bent)
                    worse += found > priced.bound * (1 + 1e-9)
                    looked_at += 1
                    assert found >= priced.bound * (1 - 0.02)
    assert worse > looked_at // 2 > 10


def test_a_pools_values_end_in_its_best_packing(cases: list[tuple[int, PlacementProblem, float]]) -> None:
    for _, problem, _ in cases[:15]:
        ground = ground_of(problem)
        a = ground.arrays
        if not len(a.column_content):
            continue
        prices = Prices(0.3 * a.worth, np.zeros(len(a.link_width)))
        found = pool_values(ground, prices)
        last = sum(float(found[q, a.pool_devices[q]]) for q in range(len(ground.pools)))
        assert last == pytest.approx(float(Pricer(ground)(prices).packing_value.sum()))
        assert (np.diff(found[:, :2], axis=1) >= 0).all()


def test_the_hull_is_the_largest_convex_function_below() -> None:
    pieces = hull(np.array([0.0, 3.0, 4.0, 9.0]))
    assert pieces == [(2, 2.0), (1, 5.0)]
    assert hull(np.array([0.0])) == []


def test_an_exact_search_settles_small_problems(cases: list[tuple[int, PlacementProblem, float]]) -> None:
    whole = ColumnPlanner(exact=ExactPlanner(IsolatedBackend("mathopt-highs"), gap=0.0), threads=1)
    try:
        for seed, problem, best in cases[:8]:
            plan = whole.plan(problem, generation=2, time_limit_s=20.0)
            verify(plan, problem.topology, problem.catalogue, problem=problem)
            assert plan.stop is Stop.OPTIMAL, seed
            assert plan.objective == pytest.approx(best, rel=1e-5), seed
    finally:
        whole.close()


def test_the_same_input_moves_nothing(plans: list[tuple[PlacementProblem, float, Plan]]) -> None:
    planner = ColumnPlanner(budget=SHORT, threads=1)
    chained = 0
    for problem, _, plan in plans[:12]:
        if problem.residents:
            continue
        again = build_problem(problem.topology, problem.catalogue, rules=problem.rules, in_force=plan)
        later = planner.plan(again, generation=3, time_limit_s=10.0, in_force=plan)
        verify(later, again.topology, again.catalogue, problem=again)
        assert later.objective >= plan.objective * (1 - 1e-6)
        chained += sum(bool(r.stages) and r.load_s == 0.0 for r in later.replicas)
    assert chained > 0


def test_tampered_device_prices_are_refused(plans: list[tuple[PlacementProblem, float, Plan]]) -> None:
    problem, _, plan = next(p for p in plans if p[2].certificate is not None and p[2].certificate.devices)
    assert plan.certificate is not None
    server, prices = next(iter(plan.certificate.devices.items()))
    negative = replace(plan.certificate, devices={server: dict.fromkeys(prices, -1.0)})
    with pytest.raises(PlanRejected, match=r"certificate.devices.*: expected a price >= 0, got -1"):
        certify(replace(plan, certificate=negative), problem)
    higher = replace(plan.certificate, devices={server: {k: v + 100.0 for k, v in prices.items()}})
    with pytest.raises(PlanRejected, match=r"certificate.bound: its prices prove"):
        certify(replace(plan, certificate=higher), problem)
