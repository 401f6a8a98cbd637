"""Every status a vendor may give has a meaning here, and the vendors' words for limits are not taken for proofs."""

from __future__ import annotations

import itertools

import numpy as np
import pulp
import pytest
from epara_solvers.backends.mathopt import LIMITS, REASONS, search_stop
from epara_solvers.backends.outcome import concluded
from epara_solvers.backends.pulp import STATUS
from epara_solvers.planners.exact import STOPS
from ortools.math_opt.python import mathopt

from epara_opt.formulation.program import MilpProgram, SearchStop


@pytest.mark.parametrize("reason", list(mathopt.TerminationReason))
def test_every_termination_reason_of_mathopt_is_mapped(reason: mathopt.TerminationReason) -> None:
    assert reason in REASONS


@pytest.mark.parametrize("limit", list(mathopt.Limit))
def test_every_limit_of_mathopt_is_mapped(limit: mathopt.Limit) -> None:
    assert limit in LIMITS


def test_a_feasible_point_at_the_time_limit_is_not_optimal() -> None:
    assert search_stop(mathopt.TerminationReason.FEASIBLE, mathopt.Limit.TIME) is SearchStop.TIME_LIMIT
    assert search_stop(mathopt.TerminationReason.NO_SOLUTION_FOUND, mathopt.Limit.TIME) is SearchStop.TIME_LIMIT


@pytest.mark.parametrize("pair", list(itertools.product(pulp.LpStatus, pulp.LpSolution)))
def test_every_pair_of_statuses_of_pulp_is_mapped(pair: tuple[int, int]) -> None:
    assert pair in STATUS


def test_what_pulp_calls_optimal_is_so_only_if_its_solution_status_agrees() -> None:
    optimal = [sol for sol in pulp.LpSolution if STATUS[pulp.LpStatusOptimal, sol] is SearchStop.OPTIMAL]
    assert optimal == [pulp.constants.LpSolutionOptimal]
    feasible = pulp.constants.LpSolutionIntegerFeasible
    assert STATUS[pulp.LpStatusOptimal, feasible] is SearchStop.TIME_LIMIT


def test_not_solved_is_neither_infeasible_nor_optimal() -> None:
    for sol in pulp.LpSolution:
        assert STATUS[pulp.LpStatusNotSolved, sol] in (None, SearchStop.TIME_LIMIT)


@pytest.mark.parametrize("stop", list(SearchStop))
def test_every_search_stop_means_something_to_a_plan(stop: SearchStop) -> None:
    assert stop in STOPS


def one_variable() -> MilpProgram:
    """max 10 x, 0 <= x <= 1."""
    return MilpProgram(
        objective=np.array([10.0]),
        col_lower=np.zeros(1),
        col_upper=np.ones(1),
        is_integer=np.zeros(1, dtype=np.bool_),
        row_start=np.zeros(1, dtype=np.int64),
        col_index=np.zeros(0, dtype=np.int64),
        coefficient=np.zeros(0),
        row_lower=np.zeros(0),
        row_upper=np.zeros(0),
    )


@pytest.mark.parametrize(
    ("stop", "said", "believed"),
    [
        (SearchStop.OPTIMAL, 5.0, 5.0),
        (SearchStop.OPTIMAL, 5.0 - 1e-7, 5.0),  # by a vendor's tolerances only
        (SearchStop.OPTIMAL, 4.9, None),
        (SearchStop.GAP_LIMIT, 5.0, 5.0),
        (SearchStop.TIME_LIMIT, 9.0, 9.0),
        (SearchStop.TIME_LIMIT, 5.0, None),  # had it been proved, the search would have ended
        (SearchStop.TIME_LIMIT, 4.0, None),
        (SearchStop.TIME_LIMIT, float("inf"), None),
        (SearchStop.TIME_LIMIT, float("nan"), None),
    ],
)
def test_a_bound_that_proves_nothing_is_none(stop: SearchStop, said: float, believed: float | None) -> None:
    result = concluded(one_variable(), stop=stop, x=np.array([0.5]), dual_bound=said, wall_s=0.0, detail="")
    assert result.dual_bound == (pytest.approx(believed, rel=1e-12) if believed is not None else None)
