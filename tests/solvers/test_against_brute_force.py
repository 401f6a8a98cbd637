"""Every exact planner finds what looking at every placement finds, and greedy never more."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from epara_solvers.brute import optimum
from epara_solvers.planners.exact import STOPS
from epara_solvers.planners.greedy import GreedyPlanner
from epara_solvers.process import IsolatedBackend

from epara_opt.errors import NoPlanError
from epara_opt.formulation.compact import Encoded, encode
from epara_opt.formulation.decode import decode
from epara_opt.formulation.program import MilpResult, SearchStop
from epara_opt.placement import assemble
from epara_opt.plan import Plan, Stop
from epara_opt.problem import PlacementProblem
from epara_opt.unserved import explain_unserved
from epara_opt.verify import verify

NUM_PROBLEMS = 200
EXACT = ("pulp-cbc", "mathopt-highs", "mathopt-scip")


@dataclass(frozen=True, slots=True)
class Case:
    seed: int
    problem: PlacementProblem
    best: float
    encoded: Encoded


@pytest.fixture(scope="module")
def cases(tiny_problem: Callable[[int], PlacementProblem]) -> list[Case]:
    """The first seeds that brute force can look through."""
    found: list[Case] = []
    seed = 0
    while len(found) < NUM_PROBLEMS:
        problem = tiny_problem(seed)
        with contextlib.suppress(NoPlanError):
            found.append(Case(seed, problem, optimum(problem)[0], encode(problem)))
        seed += 1
    return found


def as_plan(case: Case, name: str, result: MilpResult) -> Plan:
    """What the back end's point means, past the checker."""
    assert result.x is not None, (case.seed, result)
    placement = decode(case.encoded, result.x)
    plan = assemble(
        case.problem,
        placement,
        generation=2,
        solver=name,
        stop=STOPS[result.stop],
        dual_bound=result.dual_bound,
        wall_s=result.wall_s,
        unserved=explain_unserved(case.problem, placement),
    )
    verify(plan, case.problem.topology, case.problem.catalogue, problem=case.problem)
    return plan


@pytest.mark.parametrize("name", EXACT)
def test_every_exact_back_end_agrees_with_brute_force(cases: list[Case], name: str) -> None:
    backend = IsolatedBackend(name)
    try:
        for case in cases:
            result = backend.solve(case.encoded.program, time_limit_s=60, gap=0.0)
            plan = as_plan(case, name, result)
            tolerance = 1e-5 * max(1.0, case.best)
            assert plan.objective == pytest.approx(case.best, abs=tolerance), (case.seed, result)
            assert result.dual_bound is not None, (case.seed, result)
            assert result.dual_bound >= case.best - 1e-6 * max(1.0, case.best), (case.seed, result)
            assert result.stop is SearchStop.OPTIMAL, (case.seed, result)
    finally:
        backend.close()


def test_cp_sat_never_claims_too_much(cases: list[Case]) -> None:
    """It searches a grid, often in vain; but its points are feasible and its loosened bound holds."""
    backend = IsolatedBackend("cpsat")
    proven = 0
    try:
        for case in cases[:30]:
            result = backend.solve(case.encoded.program, time_limit_s=0.6, gap=1e-3)
            assert result.dual_bound is None or result.dual_bound >= case.best - 1e-6 * max(1.0, case.best), case.seed
            if result.x is None:
                assert result.stop is SearchStop.TIME_LIMIT, (case.seed, result)
                continue
            plan = as_plan(case, "cpsat", result)
            assert plan.objective <= case.best + 1e-6 * max(1.0, case.best), (case.seed, result)
            if result.stop is SearchStop.OPTIMAL or (result.stop is SearchStop.GAP_LIMIT and (plan.gap or 0.0) < 1e-3):
                proven += 1
                assert plan.objective == pytest.approx(case.best, rel=2e-3), (case.seed, result)
    finally:
        backend.close()
    assert proven > 0


@pytest.mark.parametrize("per_device", [False, True])
def test_greedy_is_feasible_and_never_above_the_optimum(cases: list[Case], per_device: bool) -> None:
    planner = GreedyPlanner(per_device=per_device)
    reached = 0.0
    for case in cases:
        plan = planner.plan(case.problem, generation=2, time_limit_s=60)
        verify(plan, case.problem.topology, case.problem.catalogue, problem=case.problem)
        assert plan.objective <= case.best + 1e-6 * max(1.0, case.best), case.seed
        assert (plan.stop, plan.dual_bound) == (Stop.HEURISTIC, None)
        reached += plan.objective
    assert reached >= 0.9 * sum(case.best for case in cases)


@pytest.mark.parametrize("max_moves", [0, 1])
def test_a_cap_on_moves_is_kept_and_met_exactly(
    tiny_problem: Callable[[int], PlacementProblem], max_moves: int
) -> None:
    backend = IsolatedBackend("mathopt-highs")
    bound_it = looked_at = seed = 0
    try:
        while looked_at < 25:
            free = tiny_problem(seed)
            seed += 1
            if not free.residents:
                continue
            capped = replace(free, rules=replace(free.rules, max_moves=max_moves))
            try:
                best, free_best = optimum(capped, max_placements=20_000)[0], optimum(free, max_placements=20_000)[0]
            except NoPlanError:
                continue
            looked_at += 1
            bound_it += best < free_best * (1.0 - 1e-6)
            case = Case(seed, capped, best, encode(capped))
            result = backend.solve(case.encoded.program, time_limit_s=60, gap=0.0)
            tolerance = 1e-5 * max(1.0, best)
            assert as_plan(case, "mathopt-highs", result).objective == pytest.approx(best, abs=tolerance), seed
            assert result.dual_bound is not None
            assert result.dual_bound >= best - tolerance, seed
            plan = GreedyPlanner().plan(capped, generation=2, time_limit_s=60)
            verify(plan, capped.topology, capped.catalogue, problem=capped)
            assert plan.objective <= best + tolerance, seed
    finally:
        backend.close()
    assert bound_it > 0
