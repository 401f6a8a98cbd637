"""The compact program against brute force, over seeds that use every category and operator."""

from __future__ import annotations

import collections
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from epara_solvers.brute import BruteForce, maximize, optimum
from ortools.linear_solver.python import model_builder

from epara_opt.errors import NoPlanError
from epara_opt.formulation.compact import encode
from epara_opt.formulation.decode import decode, encode_placement
from epara_opt.formulation.program import FloatArray, MilpProgram
from epara_opt.placement import Placement, assemble, value
from epara_opt.plan import Plan, Stop
from epara_opt.problem import PlacementProblem
from epara_opt.unserved import explain_unserved
from epara_opt.verify import verify

NUM_SEEDS = 200


def solve(program: MilpProgram, *, relaxed: bool = False) -> tuple[float, FloatArray]:
    """SCIP, in this process: nothing here loads highspy."""
    model = model_builder.Model()
    columns = zip(program.col_lower, program.col_upper, program.is_integer, strict=True)
    xs = [model.new_var(lower, upper, bool(whole) and not relaxed, None) for lower, upper, whole in columns]
    for row in range(program.num_rows):
        span = slice(program.row_start[row], program.row_start[row + 1])
        terms = [xs[c] for c in program.col_index[span]]
        left = model_builder.LinearExpr.weighted_sum(terms, list(program.coefficient[span]))
        model.add_linear_constraint(left, program.row_lower[row], program.row_upper[row])
    model.maximize(model_builder.LinearExpr.weighted_sum(xs, list(program.objective)))
    solver = model_builder.Solver("glop" if relaxed else "scip")
    assert solver.solve(model) == model_builder.SolveStatus.OPTIMAL
    return float(solver.objective_value), np.array([solver.value(x) for x in xs])


def violation(program: MilpProgram, x: FloatArray) -> float:
    """The most by which a point breaks a row or a bound."""
    rows = np.repeat(np.arange(program.num_rows), np.diff(program.row_start))
    activity = np.bincount(rows, program.coefficient * x[program.col_index], minlength=program.num_rows)
    broken = (activity - program.row_upper, program.row_lower - activity, x - program.col_upper, program.col_lower - x)
    return max(float(b.max(initial=0.0)) for b in broken)


def as_plan(problem: PlacementProblem, placement: Placement, bound: float) -> Plan:
    return assemble(
        problem,
        placement,
        generation=2,
        solver="test",
        stop=Stop.OPTIMAL,
        dual_bound=bound,
        wall_s=0.0,
        unserved=explain_unserved(problem, placement),
    )


@dataclass
class Seen:
    """What the chosen plans used, over all seeds."""

    uses: collections.Counter[str] = field(default_factory=collections.Counter[str])

    def count(self, problem: PlacementProblem, plan: Plan) -> None:
        tenants = collections.Counter(r.group for r in plan.replicas)
        spread = collections.Counter((r.service, r.origin) for r in plan.routes if problem.service(r.service).is_stream)
        self.uses["MT"] += max(tenants.values(), default=0) > 1
        self.uses["DP"] += max(spread.values(), default=0) > 1
        self.uses["link"] += any("full link" in u.reason for u in plan.unserved)
        for r in plan.replicas:
            self.uses[str(problem.categories[r.service])] += 1
            self.uses["generation"] += problem.service(r.service).request.output_tokens > 0
            self.uses["BS"] += r.batch > 1
            self.uses["MF"] += r.frames > 1
            self.uses["TP"] += r.tp > 1
            self.uses["PP"] += r.pp > 1
            self.uses["kept"] += bool(problem.residents) and r.load_s == 0
            self.uses["loaded beside residents"] += bool(problem.residents) and r.load_s > 0


@pytest.fixture(scope="module")
def seen() -> Seen:
    return Seen()


@pytest.mark.parametrize("first", range(0, NUM_SEEDS, 20))
def test_decoded_optimum_passes_the_checker_and_equals_brute_force(
    first: int, tiny_problem: Callable[[int], PlacementProblem], seen: Seen
) -> None:
    for seed in range(first, first + 20):
        problem = tiny_problem(seed)
        encoded = encode(problem)
        bound, x = solve(encoded.program) if encoded.columns else (0.0, np.zeros(encoded.program.num_vars))
        placement = decode(encoded, x)
        plan = as_plan(problem, placement, bound)
        verify(plan, problem.topology, problem.catalogue, problem=problem)
        best, _ = optimum(problem)
        assert plan.objective == pytest.approx(best, rel=1e-6, abs=1e-6), f"seed {seed}"
        assert bound == pytest.approx(best, rel=1e-6, abs=1e-6), f"seed {seed}"
        seen.count(problem, plan)


def test_the_seeds_cover_every_category_and_operator(
    tiny_problem: Callable[[int], PlacementProblem], seen: Seen
) -> None:
    if not seen.uses:  # run alone
        for seed in range(NUM_SEEDS):
            problem = tiny_problem(seed)
            _, placement = optimum(problem)
            seen.count(problem, as_plan(problem, placement, value(problem, placement)))
    wanted = {
        *("latency, single-device", "latency, multi-device", "frequency, single-device", "frequency, multi-device"),
        *("generation", "BS", "MT", "TP", "PP", "MF", "DP", "link", "kept", "loaded beside residents"),
    }
    assert {u for u in wanted if seen.uses[u] >= 3} == wanted


@pytest.mark.parametrize("seed", range(0, NUM_SEEDS, 5))
def test_a_placement_becomes_a_feasible_point_of_the_same_value(
    seed: int, tiny_problem: Callable[[int], PlacementProblem]
) -> None:
    problem = tiny_problem(seed)
    encoded = encode(problem)
    _, placement = optimum(problem)
    x = encode_placement(encoded, placement)
    assert violation(encoded.program, x) <= 1e-9
    assert float(encoded.program.objective @ x) == pytest.approx(value(problem, placement), rel=1e-9, abs=1e-9)
    assert value(problem, decode(encoded, x)) == pytest.approx(value(problem, placement), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("seed", range(0, NUM_SEEDS, 5))
def test_tightening_lowers_the_relaxation_but_never_below_the_optimum(
    seed: int, tiny_problem: Callable[[int], PlacementProblem]
) -> None:
    problem = tiny_problem(seed)
    loose, tight = encode(problem, tighten=False), encode(problem)
    if not tight.columns:
        return
    best, _ = optimum(problem)
    relaxed, _ = solve(tight.program, relaxed=True)
    assert best - 1e-6 <= relaxed <= solve(loose.program, relaxed=True)[0] + 1e-6


def test_decoding_scales_down_what_a_tolerance_let_through(tiny_problem: Callable[[int], PlacementProblem]) -> None:
    for seed in range(0, NUM_SEEDS, 10):
        problem = tiny_problem(seed)
        encoded = encode(problem)
        if not encoded.columns:
            continue
        bound, x = solve(encoded.program)
        blown_up = np.where(encoded.program.is_integer, x, x * 1.01)
        plan = as_plan(problem, decode(encoded, blown_up), bound)
        verify(plan, problem.topology, problem.catalogue, problem=problem)


def test_fractional_counts_are_rounded_down_to_a_plan_that_holds(
    tiny_problem: Callable[[int], PlacementProblem],
) -> None:
    for seed in range(0, NUM_SEEDS, 10):
        problem = tiny_problem(seed)
        encoded = encode(problem)
        if encoded.columns:
            bound, x = solve(encoded.program, relaxed=True)
            plan = as_plan(problem, decode(encoded, x), bound)
            verify(plan, problem.topology, problem.catalogue, problem=problem)


def test_brute_force_refuses_what_is_too_large(tiny_problem: Callable[[int], PlacementProblem]) -> None:
    with pytest.raises(NoPlanError, match="expected at most 1 placements"):
        BruteForce(max_placements=1).plan(tiny_problem(3), generation=1, time_limit_s=5.0)


def test_brute_force_is_a_planner(tiny_problem: Callable[[int], PlacementProblem]) -> None:
    problem = tiny_problem(3)
    plan = BruteForce().plan(problem, generation=1, time_limit_s=60.0)
    assert plan.gap == 0.0
    verify(plan, problem.topology, problem.catalogue, problem=problem)


@pytest.mark.parametrize("seed", range(30))
def test_the_simplex_method_of_brute_force_agrees_with_glop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    c, a, b = rng.uniform(-1, 3, 6), rng.uniform(0, 2, (5, 6)), rng.uniform(0, 4, 5)
    a[0] += 0.1  # bounded
    program = MilpProgram(
        objective=c,
        col_lower=np.zeros(6),
        col_upper=np.full(6, np.inf),
        is_integer=np.zeros(6, dtype=np.bool_),
        row_start=np.arange(0, 31, 6),
        col_index=np.tile(np.arange(6), 5),
        coefficient=a.ravel(),
        row_lower=np.full(5, -np.inf),
        row_upper=b,
    )
    assert float(c @ maximize(c, a, b)) == pytest.approx(solve(program, relaxed=True)[0], rel=1e-7, abs=1e-7)
