"""Chains over several servers: exact planners find what looking at every placement finds; plans pass the checker."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from epara_solvers.brute import BruteForce, optimum
from epara_solvers.planners.exact import STOPS, ExactPlanner
from epara_solvers.planners.greedy import GreedyPlanner
from epara_solvers.process import IsolatedBackend

from epara_opt.errors import NoPlanError
from epara_opt.formulation.compact import chain_columns, encode
from epara_opt.formulation.decode import decode, encode_placement
from epara_opt.formulation.program import SearchStop
from epara_opt.placement import Placement, assemble, value
from epara_opt.plan import Plan
from epara_opt.problem import PlacementProblem, build_problem
from epara_opt.unserved import explain_unserved
from epara_opt.verify import verify

NUM_PROBLEMS = 60
Case = tuple[int, PlacementProblem, float, Placement]


@pytest.fixture(scope="module")
def cases(chain_problem: Callable[[int], PlacementProblem]) -> list[Case]:
    """The first seeds with some chain that brute force can look through."""
    found: list[Case] = []
    seed = 0
    while len(found) < NUM_PROBLEMS:
        problem = chain_problem(seed)
        with contextlib.suppress(NoPlanError):
            if problem.chains.contents:
                found.append((seed, problem, *optimum(problem, max_placements=20_000)))
        seed += 1
    return found


@pytest.fixture(scope="module")
def highs() -> Iterator[IsolatedBackend]:
    backend = IsolatedBackend("mathopt-highs")
    yield backend
    backend.close()


def check(plan: Plan, problem: PlacementProblem) -> None:
    verify(plan, problem.topology, problem.catalogue, problem=problem)
    verify(plan, problem.topology, problem.catalogue)
    again = Plan.from_json(plan.to_json())
    assert (again.replicas, again.to_json()) == (plan.replicas, plan.to_json())


def test_the_cases_use_chains_and_have_them_compete(cases: list[Case]) -> None:
    chained = [sum(bool(g.content.stages) for g in best.groups) for *_, best in cases]
    assert sum(n > 0 for n in chained) > NUM_PROBLEMS // 2
    assert sum(0 < n < len(best.groups) for n, (*_, best) in zip(chained, cases, strict=True)) > 10
    assert sum(n == 0 for n in chained) > 3  # what a chain needs is worth more elsewhere
    assert sum(any(r.stages for r in p.residents) for _, p, *_ in cases) > 10


def test_the_program_agrees_with_brute_force(cases: list[Case], highs: IsolatedBackend) -> None:
    for seed, problem, best, _ in cases:
        encoded = encode(problem)
        result = highs.solve(encoded.program, time_limit_s=60, gap=0.0)
        assert result.stop is SearchStop.OPTIMAL, seed
        assert result.x is not None
        placement = decode(encoded, result.x)
        plan = assemble(
            problem,
            placement,
            generation=2,
            solver="highs",
            stop=STOPS[result.stop],
            dual_bound=result.dual_bound,
            wall_s=result.wall_s,
            unserved=explain_unserved(problem, placement),
        )
        check(plan, problem)
        assert plan.objective == pytest.approx(best, abs=1e-5 * max(1.0, best)), seed
        assert result.dual_bound is not None
        assert result.dual_bound >= best * (1 - 1e-6), seed


def test_a_placement_with_chains_is_a_warm_start_worth_as_much(cases: list[Case]) -> None:
    for seed, problem, best, placement in cases:
        encoded = encode(problem)
        x = encode_placement(encoded, placement)
        program = encoded.program
        assert float(program.objective @ x) == pytest.approx(best, abs=1e-6 * max(1.0, best)), seed
        for row in range(program.num_rows):
            first, last = program.row_start[row], program.row_start[row + 1]
            total = float(np.dot(program.coefficient[first:last], x[program.col_index[first:last]]))
            assert total <= program.row_upper[row] + 1e-6, (seed, program.row_names[row])


def test_brute_force_plans_pass_the_checker(cases: list[Case]) -> None:
    for _, problem, best, _ in cases[:20]:
        plan = BruteForce().plan(problem, generation=2, time_limit_s=60)
        check(plan, problem)
        assert plan.objective == pytest.approx(best)


def test_greedy_plans_what_runs_inside_servers_and_chains_on_what_is_left(cases: list[Case]) -> None:
    chained = 0
    for _, problem, best, _ in cases:
        plan = GreedyPlanner().plan(problem, generation=2, time_limit_s=60)
        check(plan, problem)
        assert plan.objective <= best * (1 + 1e-6)
        chained += any(r.stages for r in plan.replicas)
    assert chained > 10


def test_what_is_in_force_stays_and_loads_nothing(cases: list[Case], highs: IsolatedBackend) -> None:
    planner = ExactPlanner(highs, gap=0.0)
    stayed = 0
    for _, problem, _, _ in cases[:25]:
        if problem.residents:
            continue
        first = planner.plan(problem, generation=1, time_limit_s=20)
        again = build_problem(problem.topology, problem.catalogue, rules=problem.rules, in_force=first)
        second = planner.plan(again, generation=2, time_limit_s=20, in_force=first)
        check(second, again)
        assert second.objective == pytest.approx(first.objective, rel=1e-5)
        for r in second.replicas:
            if r.stages:
                assert r.load_s == 0.0
                stayed += 1
    assert stayed > 5


def test_a_chain_whose_stage_is_lost_is_no_resident(cases: list[Case], highs: IsolatedBackend) -> None:
    planner = ExactPlanner(highs, gap=0.0)
    looked_at = 0
    for _, problem, _, best in cases:
        if problem.residents or not any(g.content.stages for g in best.groups):
            continue
        first = planner.plan(problem, generation=1, time_limit_s=20)
        chain = next((r for r in first.replicas if r.stages), None)
        if chain is None:
            continue
        lost = next(s.server for s in chain.stages if s.server != chain.server)
        later = build_problem(
            problem.topology, problem.catalogue, rules=problem.rules, in_force=first, down=frozenset({lost})
        )
        assert chain.group not in {r.group for r in later.residents}
        check_down = planner.plan(later, generation=2, time_limit_s=20, in_force=first)
        verify(check_down, later.topology, later.catalogue, problem=later)
        looked_at += 1
        if looked_at == 8:
            break
    assert looked_at == 8


def test_a_cap_on_moves_counts_chains(cases: list[Case], highs: IsolatedBackend) -> None:
    looked_at = bound_it = 0
    for seed, free, free_best, _ in cases:
        if not free.residents:
            continue
        capped = replace(free, rules=replace(free.rules, max_moves=0))
        best, _ = optimum(capped, max_placements=20_000)
        result = highs.solve(encode(capped).program, time_limit_s=60, gap=0.0)
        assert result.objective == pytest.approx(best, abs=1e-5 * max(1.0, best)), seed
        looked_at += 1
        bound_it += best < free_best * (1 - 1e-6)
    assert looked_at > 10
    assert bound_it > 3


def test_without_the_rule_nothing_of_it_is_in_the_program(cases: list[Case]) -> None:
    _, problem, *_ = cases[0]
    plain = build_problem(problem.topology, problem.catalogue, rules=replace(problem.rules, across_servers=False))
    assert chain_columns(plain) == ()
    assert len(chain_columns(problem)) > 0
    plan = GreedyPlanner().plan(plain, generation=1, time_limit_s=5)
    reasons = {u.reason for u in plan.unserved if u.service == "big"}
    assert reasons
    assert all("rules.across_servers would let it run over several servers" in r for r in reasons)
    assert value(plain, Placement(groups=(), flows=())) == 0.0
