"""Refinement: what it accepts passes the checker and earns more on arrivals that it has not searched."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from epara_solvers.planners.greedy import GreedyPlanner
from epara_solvers.simulate.arrivals import drawn
from epara_solvers.simulate.outcome import simulate_plan
from epara_solvers.simulate.planner import RefiningPlanner
from epara_solvers.simulate.refine import Refinement, parts_of, refined

from epara_opt.errors import InputError
from epara_opt.placement import Placement, assemble
from epara_opt.plan import Plan, Stop
from epara_opt.problem import PlacementProblem
from epara_opt.verify import verify

STEPS = Refinement(time_limit_s=math.inf, max_steps=40, drawn=4_000)


def greedy(problem: PlacementProblem) -> Plan:
    return GreedyPlanner().plan(problem, generation=99, time_limit_s=5.0)


def test_refined_plans_pass_the_checker_and_some_deliver_more(
    tiny_problem: Callable[[int], PlacementProblem],
) -> None:
    gained = 0
    for seed in range(32):
        problem = tiny_problem(seed)
        plan = greedy(problem)
        better = refined(plan, problem, STEPS)
        verify(better, problem.topology, problem.catalogue, problem=problem)
        if better.replicas == plan.replicas and better.routes == plan.routes:
            continue
        gained += 1
        held_out = parts_of(problem, STEPS)[2]
        scores = [simulate_plan(p, problem, held_out).goodput for p in (plan, better)]
        assert scores[1] > scores[0]
        assert f"simulated on held-out arrivals: {scores[0]:.6g} -> {scores[1]:.6g}" in better.notes[-1 - fell(better)]
        assert (better.objective < plan.objective * (1 - 1e-6)) == fell(better)
    assert gained >= 3


def test_chains_stay_where_they_are_and_refined_plans_around_them_pass_the_checker(
    chain_problem: Callable[[int], PlacementProblem],
) -> None:
    for seed in range(8):
        problem = chain_problem(seed)
        plan = greedy(problem)
        better = refined(plan, problem, STEPS)
        verify(better, problem.topology, problem.catalogue, problem=problem)
        where = [{(r.service, r.stages) for r in p.replicas if r.stages} for p in (plan, better)]
        assert where[1] <= where[0]


def fell(plan: Plan) -> bool:
    return "the fluid objective fell" in plan.notes[-1]


def test_a_budget_of_steps_and_a_seed_decide_everything(tiny_problem: Callable[[int], PlacementProblem]) -> None:
    problem = tiny_problem(3)
    plan = greedy(problem)
    made = [replace(refined(plan, problem, STEPS), wall_s=0.0) for _ in range(2)]
    assert made[0] == made[1]


def test_a_plan_without_routes_is_left_as_it_is(tiny_problem: Callable[[int], PlacementProblem]) -> None:
    problem = tiny_problem(3)
    empty = assemble(
        problem,
        Placement(groups=(), flows=()),
        generation=99,
        solver="none",
        stop=Stop.HEURISTIC,
        dual_bound=None,
        wall_s=0.0,
        unserved=(),
    )
    assert refined(empty, problem, STEPS) is empty


def test_parts_of_a_record_follow_each_other_and_are_not_searched_twice(
    tiny_problem: Callable[[int], PlacementProblem],
) -> None:
    problem = tiny_problem(3)
    day = drawn(problem.demand, problem.topology.services, duration_s=20.0, rng=np.random.default_rng(1))
    parts = parts_of(problem, replace(STEPS, arrivals=day))
    assert [p.duration_s for p in parts] == pytest.approx([10.0, 5.0, 5.0])
    assert sum(len(p) for p in parts) == len(day)


def test_a_refining_planner_plans_as_before_and_says_what_it_gained(
    tiny_problem: Callable[[int], PlacementProblem],
) -> None:
    problem = tiny_problem(5)
    made = RefiningPlanner(GreedyPlanner(), refine_s=60.0, max_steps=10).plan(problem, generation=99, time_limit_s=90.0)
    assert "held-out arrivals" in " ".join(made.notes)
    assert (made.solver, made.generation) == (greedy(problem).solver, 99)


def test_no_time_is_no_refinement() -> None:
    with pytest.raises(InputError, match=r"refine.time_limit_s: expected > 0, got 0"):
        Refinement(time_limit_s=0)
