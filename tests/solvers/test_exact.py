"""The exact planner's account: stop, objective, bound and notes, whatever its back end does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import pytest
from epara_solvers.planners.exact import ExactPlanner, all_served
from epara_solvers.planners.greedy import GreedyPlanner
from epara_solvers.process import IsolatedBackend
from epara_solvers.registry import make_planner

from epara_opt.formulation.program import FloatArray, MilpProgram, MilpResult, SearchStop
from epara_opt.plan import Stop
from epara_opt.problem import PlacementProblem, build_problem
from epara_opt.verify import verify


@dataclasses.dataclass(frozen=True)
class Answers:
    """A back end that always gives the same answer."""

    result: MilpResult
    name: str = "answers"

    def solve(
        self, program: MilpProgram, *, time_limit_s: float, gap: float = 1e-4, warm_start: FloatArray | None = None
    ) -> MilpResult:
        return self.result


def nothing(stop: SearchStop, *, dual_bound: float | None = None) -> Answers:
    return Answers(
        MilpResult(stop=stop, x=None, objective=None, dual_bound=dual_bound, wall_s=0.0, detail="out of cheese")
    )


@pytest.fixture(scope="module")
def scarce(tiny_problem: Callable[[int], PlacementProblem]) -> PlacementProblem:
    """A problem whose demand cannot all be served."""
    for seed in range(200):
        problem = tiny_problem(seed)
        plan = GreedyPlanner().plan(problem, generation=2, time_limit_s=60)
        if plan.unserved and plan.objective > 0:
            return problem
    raise LookupError("no such seed")


@pytest.fixture(scope="module")
def highs() -> Iterator[ExactPlanner]:
    planner = ExactPlanner(IsolatedBackend("mathopt-highs"), gap=0.0)
    yield planner
    planner.close()


@pytest.mark.parametrize("seed", range(20))
def test_plans_pass_the_checker_and_are_at_least_as_good_as_greedy(
    seed: int, tiny_problem: Callable[[int], PlacementProblem], highs: ExactPlanner
) -> None:
    problem = tiny_problem(seed)
    plan = highs.plan(problem, generation=2, time_limit_s=60)
    verify(plan, problem.topology, problem.catalogue, problem=problem)
    greedy = GreedyPlanner(per_device=True).plan(problem, generation=2, time_limit_s=60)
    assert plan.objective >= greedy.objective - 1e-9
    assert plan.stop is Stop.OPTIMAL
    assert plan.dual_bound is not None
    assert plan.objective <= plan.dual_bound <= all_served(problem) * (1 + 1e-9)


def test_the_same_problem_gives_the_same_plan_twice(scarce: PlacementProblem, highs: ExactPlanner) -> None:
    first, second = (highs.plan(scarce, generation=2, time_limit_s=60) for _ in range(2))
    assert dataclasses.replace(first, wall_s=0.0, made_at="") == dataclasses.replace(second, wall_s=0.0, made_at="")


def test_no_demand_is_an_empty_plan_and_no_failure(scarce: PlacementProblem, highs: ExactPlanner) -> None:
    idle = build_problem(scarce.topology, scarce.catalogue, rules=scarce.rules, demand=())
    for planner in (highs, GreedyPlanner()):
        plan = planner.plan(idle, generation=2, time_limit_s=60)
        assert (plan.stop, plan.replicas, plan.objective, plan.dual_bound) == (Stop.NO_DEMAND, (), 0.0, 0.0)


@pytest.mark.parametrize("stop", [SearchStop.FAILED, SearchStop.INFEASIBLE, SearchStop.UNBOUNDED])
def test_a_failed_back_end_leaves_the_greedy_plan_and_its_own_words(scarce: PlacementProblem, stop: SearchStop) -> None:
    plan = ExactPlanner(nothing(stop)).plan(scarce, generation=2, time_limit_s=60)
    assert (plan.stop, plan.dual_bound, plan.gap) == (Stop.SOLVER_FAILED, None, None)
    assert any("out of cheese" in note for note in plan.notes)
    assert plan.objective >= GreedyPlanner().plan(scarce, generation=2, time_limit_s=60).objective - 1e-9
    verify(plan, scarce.topology, scarce.catalogue, problem=scarce)


def test_nothing_found_in_time_is_a_time_limit_with_the_greedy_plan(scarce: PlacementProblem) -> None:
    plan = ExactPlanner(nothing(SearchStop.TIME_LIMIT)).plan(scarce, generation=2, time_limit_s=60)
    assert (plan.stop, plan.dual_bound) == (Stop.TIME_LIMIT, None)
    assert plan.objective > 0
    assert any("in time" in note for note in plan.notes)


def test_a_bound_above_serving_everything_is_clipped(scarce: PlacementProblem) -> None:
    plan = ExactPlanner(nothing(SearchStop.TIME_LIMIT, dual_bound=1e9)).plan(scarce, generation=2, time_limit_s=60)
    assert plan.dual_bound == pytest.approx(all_served(scarce))


def test_a_real_crash_leaves_the_greedy_plan(scarce: PlacementProblem) -> None:
    planner = ExactPlanner(IsolatedBackend("mystery"))
    plan = planner.plan(scarce, generation=2, time_limit_s=60)
    planner.close()
    assert plan.stop is Stop.SOLVER_FAILED
    assert any("mystery" in note for note in plan.notes)


def test_reasons_are_given_for_all_that_is_unserved(scarce: PlacementProblem) -> None:
    plan = make_planner("auto").plan(scarce, generation=2, time_limit_s=60)
    assert plan.unserved
    assert all(u.code and u.reason for u in plan.unserved)
