"""Every back end behind its process: small programs with known answers, limits, kills and crashes."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import pytest
from epara_solvers.backends.outcome import FEASIBILITY, violation
from epara_solvers.process import IsolatedBackend

from epara_opt.formulation.program import FloatArray, MilpProgram, SearchStop

EXACT = ("pulp-cbc", "mathopt-highs", "mathopt-scip", "cpsat")
INF = float("inf")


@pytest.fixture(scope="module", params=EXACT)
def backend(request: pytest.FixtureRequest) -> Iterator[IsolatedBackend]:
    made = IsolatedBackend(request.param)
    yield made
    made.close()


def program(
    objective: list[float],
    rows: list[list[float]],
    upper: list[float],
    *,
    lower: list[float] | None = None,
    col_upper: float = 1.0,
    integer: list[bool] | bool = True,
) -> MilpProgram:
    dense = np.array(rows, dtype=np.float64).reshape(len(upper), len(objective))
    at_row, at_col = np.nonzero(dense)
    num_vars = len(objective)
    return MilpProgram(
        objective=np.array(objective, dtype=np.float64),
        col_lower=np.zeros(num_vars),
        col_upper=np.full(num_vars, col_upper),
        is_integer=np.full(num_vars, integer) if isinstance(integer, bool) else np.array(integer),
        row_start=np.concatenate(([0], np.cumsum((dense != 0).sum(axis=1)))).astype(np.int64),
        col_index=at_col.astype(np.int64),
        coefficient=dense[at_row, at_col],
        row_lower=np.full(len(upper), -INF) if lower is None else np.array(lower, dtype=np.float64),
        row_upper=np.array(upper, dtype=np.float64),
        row_names=tuple(f"row{i}" for i in range(len(upper))),
    )


def endless(seed: int = 0) -> MilpProgram:
    """A knapsack with 60 correlated rows: no back end finishes it in minutes."""
    rng = np.random.default_rng(seed)
    weight = rng.integers(5, 100, (60, 200)).astype(float)
    worth = rng.integers(5, 100, 200).astype(float)
    return program(worth.tolist(), weight.tolist(), (weight.sum(axis=1) // 2).tolist())


def random_mixed(seed: int) -> MilpProgram:
    """A bounded packing program with integer and continuous variables."""
    rng = np.random.default_rng(seed)
    num_vars, num_rows = int(rng.integers(3, 9)), int(rng.integers(2, 6))
    rows = np.where(rng.random((num_rows, num_vars)) < 0.7, rng.integers(1, 20, (num_rows, num_vars)), 0).astype(float)
    return program(
        rng.integers(1, 30, num_vars).astype(float).tolist(),
        rows.tolist(),
        rng.integers(15, 60, num_rows).astype(float).tolist(),
        col_upper=float(rng.integers(1, 5)),
        integer=(rng.random(num_vars) < 0.6).tolist(),
    )


KNAPSACK = program([60, 100, 120], [[10, 20, 30]], [50])


def test_a_knapsack_is_solved_to_its_known_optimum(backend: IsolatedBackend) -> None:
    found = backend.solve(KNAPSACK, time_limit_s=30, gap=0.0)
    assert found.stop is SearchStop.OPTIMAL
    assert found.objective == pytest.approx(220.0)
    assert found.x is not None
    assert np.round(found.x).tolist() == [0, 1, 1]


def test_a_program_that_contradicts_itself_is_infeasible(backend: IsolatedBackend) -> None:
    found = backend.solve(program([1, 1], [[2, 2]], [3], lower=[3], col_upper=9), time_limit_s=30)
    assert (found.stop, found.x, found.objective) == (SearchStop.INFEASIBLE, None, None)


def test_a_row_that_can_never_hold_is_infeasible(backend: IsolatedBackend) -> None:
    found = backend.solve(program([1, 1], [[1, 1]], [9], lower=[3]), time_limit_s=30)
    assert (found.stop, found.x) == (SearchStop.INFEASIBLE, None)


def test_an_unbounded_program_gives_neither_point_nor_bound(backend: IsolatedBackend) -> None:
    found = backend.solve(program([1, 1], [[1, -1]], [1], col_upper=INF), time_limit_s=30)
    expected = SearchStop.FAILED if backend.name == "cpsat" else SearchStop.UNBOUNDED  # CP-SAT needs finite ranges
    assert (found.stop, found.x, found.objective, found.dual_bound) == (expected, None, None, None)


def test_a_pure_linear_program_is_solved(backend: IsolatedBackend) -> None:
    found = backend.solve(program([3, 2], [[1, 1], [1, 0]], [4, 2], col_upper=INF, integer=False), time_limit_s=30)
    assert found.stop in (SearchStop.OPTIMAL, SearchStop.GAP_LIMIT)
    assert found.objective == pytest.approx(10.0, rel=1e-6)


def test_an_empty_program_is_worth_nothing(backend: IsolatedBackend) -> None:
    found = backend.solve(program([], [], []), time_limit_s=30)
    assert (found.stop, found.objective, found.dual_bound) == (SearchStop.OPTIMAL, 0.0, 0.0)


def test_an_empty_objective_is_worth_nothing(backend: IsolatedBackend) -> None:
    found = backend.solve(program([0, 0], [[1, 1]], [1]), time_limit_s=30)
    assert (found.stop, found.objective) == (SearchStop.OPTIMAL, 0.0)


def test_equality_and_ranged_rows_hold(backend: IsolatedBackend) -> None:
    ranged = program([1, -1], [[1, 1], [1, 0]], [5, 3], lower=[5, 1], col_upper=10)
    found = backend.solve(ranged, time_limit_s=30, gap=0.0)
    assert found.x is not None
    assert np.round(found.x).tolist() == [3, 2]


def test_coefficients_given_twice_are_added(backend: IsolatedBackend) -> None:
    twice = MilpProgram(
        objective=np.array([1.0]),
        col_lower=np.zeros(1),
        col_upper=np.array([10.0]),
        is_integer=np.array([True]),
        row_start=np.array([0, 2]),
        col_index=np.array([0, 0]),
        coefficient=np.array([1.0, 1.0]),
        row_lower=np.array([-INF]),
        row_upper=np.array([6.0]),
    )
    assert backend.solve(twice, time_limit_s=30).objective == pytest.approx(3.0)


def test_all_back_ends_agree_on_random_mixed_programs() -> None:
    backends = [IsolatedBackend(name) for name in EXACT]
    try:
        for seed in range(40):
            wanted = random_mixed(seed)
            found = [b.solve(wanted, time_limit_s=30, gap=1e-7) for b in backends]
            best = max(f.objective for f in found if f.objective is not None)
            for b, f in zip(backends, found, strict=True):
                assert f.objective == pytest.approx(best, rel=1e-5), (seed, b.name, f)
                assert f.dual_bound is not None, (seed, b.name)
                assert f.dual_bound >= best - 1e-6 * abs(best), (seed, b.name, f)
                assert f.x is not None
                assert violation(wanted, f.x) <= 10 * FEASIBILITY, (seed, b.name)
    finally:
        for b in backends:
            b.close()


def test_at_the_time_limit_the_stop_says_so_and_the_bound_holds(backend: IsolatedBackend) -> None:
    hard = endless()
    found = backend.solve(hard, time_limit_s=1.0, gap=0.0)
    assert found.stop is SearchStop.TIME_LIMIT
    assert found.x is not None
    assert violation(hard, found.x) <= FEASIBILITY
    assert found.objective == pytest.approx(float(hard.objective @ found.x))
    assert found.dual_bound is not None
    assert found.dual_bound >= 7247.0, "a point of this value is known"


def test_a_warm_start_is_never_lost(backend: IsolatedBackend) -> None:
    hard = endless()
    first = np.zeros(hard.num_vars)
    room = hard.row_upper.copy()
    dense = hard.coefficient.reshape(hard.num_rows, hard.num_vars)
    for j in np.argsort(-hard.objective / dense.sum(axis=0)):
        if (dense[:, j] <= room).all():
            first[j] = 1.0
            room -= dense[:, j]
    found = backend.solve(hard, time_limit_s=1.0, warm_start=first)
    assert found.objective is not None
    assert found.objective >= float(hard.objective @ first) - 1e-6


def test_a_back_end_that_overruns_is_killed_and_what_it_reported_is_kept(backend: IsolatedBackend) -> None:
    hard = endless()
    impatient = IsolatedBackend(backend.name, grace_s=-18.0)  # kills 2 s in, though the vendor was promised 20
    try:
        impatient.solve(KNAPSACK, time_limit_s=60.0)  # its process is up from here on
        found = impatient.solve(hard, time_limit_s=20.0, gap=0.0)
        assert found.stop is SearchStop.TIME_LIMIT
        assert "killed" in found.detail
        if backend.name != "pulp-cbc":  # it has neither a callback nor a file of incumbents
            assert found.x is not None
            assert violation(hard, found.x) <= FEASIBILITY
        assert found.dual_bound is not None
        assert found.dual_bound >= 7247.0
        assert impatient.solve(KNAPSACK, time_limit_s=60.0).objective == pytest.approx(220.0)
    finally:
        impatient.close()


def test_the_same_program_gives_the_same_point_twice(backend: IsolatedBackend) -> None:
    wanted = random_mixed(7)
    first, second = (backend.solve(wanted, time_limit_s=30, gap=0.0) for _ in range(2))
    assert first.x is not None
    assert second.x is not None
    assert first.x.tolist() == second.x.tolist()


CRASH = "import os, sys; sys.stderr.write('out of cheese'); sys.stderr.flush(); os.kill(os.getpid(), 11)"
LOUD_CRASH = (
    "import os, sys, epara_solvers.worker as w\n"
    "def die(*a, **k):\n    os.write(2, b'out of cheese'); os.kill(os.getpid(), 11)\n"
    "w.make_backend = lambda *a, **k: type('Dies', (), {'solve': die})()\n"
    "w.main(sys.argv[1:])\n"
)


def test_a_crash_in_the_vendor_is_a_failure_with_its_last_words() -> None:
    broken = IsolatedBackend("pulp-cbc", command=(sys.executable, "-c", LOUD_CRASH))
    found = broken.solve(KNAPSACK, time_limit_s=30)
    broken.close()
    assert (found.stop, found.x, found.dual_bound) == (SearchStop.FAILED, None, None)
    assert "signal 11" in found.detail
    assert "out of cheese" in found.detail


def test_a_process_that_dies_at_once_is_a_failure() -> None:
    broken = IsolatedBackend("pulp-cbc", command=(sys.executable, "-c", CRASH))
    found = broken.solve(KNAPSACK, time_limit_s=30)
    broken.close()
    assert found.stop is SearchStop.FAILED
    assert "signal 11" in found.detail


def test_a_vendor_that_raises_fails_one_solve_and_serves_the_next() -> None:
    once = (
        "import sys, epara_solvers.worker as w\n"
        "real = w.make_backend\n"
        "def make(*a, **k):\n"
        "    b = real(*a, **k); calls = []\n"
        "    def solve(program, **kw):\n"
        "        calls.append(1)\n"
        "        if len(calls) == 1: raise RuntimeError('licence expired')\n"
        "        return b.solve(program, **kw)\n"
        "    return type('Once', (), {'solve': staticmethod(solve)})()\n"
        "w.make_backend = make\n"
        "w.main(sys.argv[1:])\n"
    )
    moody = IsolatedBackend("pulp-cbc", command=(sys.executable, "-c", once))
    first = moody.solve(KNAPSACK, time_limit_s=30)
    second = moody.solve(KNAPSACK, time_limit_s=30)
    moody.close()
    assert first.stop is SearchStop.FAILED
    assert "licence expired" in first.detail
    assert second.stop is SearchStop.OPTIMAL


def test_a_back_end_nobody_knows_refuses_in_words() -> None:
    unknown = IsolatedBackend("mystery")
    found = unknown.solve(KNAPSACK, time_limit_s=30)
    unknown.close()
    assert found.stop is SearchStop.FAILED
    assert "mystery" in found.detail


def test_prices_are_what_one_more_unit_of_a_row_is_worth() -> None:
    glop = IsolatedBackend("glop")
    relaxed = program([3, 2], [[1, 1], [1, 0]], [4, 2], col_upper=INF)
    prices = glop.prices(relaxed, time_limit_s=30)
    glop.close()
    assert prices == pytest.approx({"row0": 2.0, "row1": 1.0})


def test_a_relaxation_without_optimum_has_no_prices() -> None:
    glop = IsolatedBackend("glop")
    prices = glop.prices(program([1, 1], [[1, -1]], [1], col_upper=INF), time_limit_s=30)
    glop.close()
    assert prices is None


def point(*values: float) -> FloatArray:
    return np.array(values, dtype=np.float64)


@pytest.mark.parametrize(
    ("x", "expected"),
    [(point(1, 1, 0), 0.0), (point(1, 1, 1), 0.2), (point(0.5, 0, 0), 0.5), (point(-0.25, 0, 0), 0.25)],
)
def test_violation_is_the_largest_breach_relative_to_its_limit(x: FloatArray, expected: float) -> None:
    assert violation(KNAPSACK, x) == pytest.approx(expected)
