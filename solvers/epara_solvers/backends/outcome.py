"""What every back end owes its caller, whoever the vendor is: one reading of gaps, bounds and trivial programs.

Vendors differ in what they call optimal. Here a result is OPTIMAL only if its bound and its objective meet within
`PROVEN_GAP`; a vendor that stopped "optimal" within a wider tolerance stopped at GAP_LIMIT.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from epara_opt.formulation.program import FloatArray, MilpProgram, MilpResult, SearchStop

BOUND_TOLERANCE = 1e-6  # relative: by so much solvers' points may break rows and earn more than their bound
PROVEN_GAP = 1e-6  # relative; the feasibility tolerance vendors work with, so nothing finer means anything
FEASIBILITY = 1e-6  # vendors' own default tolerance on rows, bounds and integrality

Report = Callable[[FloatArray, float | None], None]  # a better point (V,), and the bound known by then


def ignore_report(x: FloatArray, dual_bound: float | None) -> None:
    """For callers that need the final answer only."""


def row_of_entry(program: MilpProgram) -> np.ndarray:
    """(NNZ,) the row of each coefficient."""
    return np.repeat(np.arange(program.num_rows), np.diff(program.row_start))


def activities(program: MilpProgram, x: FloatArray) -> FloatArray:
    """(R,) A x."""
    terms = program.coefficient * x[program.col_index]
    return np.bincount(row_of_entry(program), weights=terms, minlength=program.num_rows).astype(np.float64)


def violation(program: MilpProgram, x: FloatArray) -> float:
    """The largest breach of any row, bound or integrality, relative to the size of what is breached."""
    if program.num_vars == 0 or len(x) != program.num_vars or not np.isfinite(x).all():
        return 0.0 if len(x) == program.num_vars == 0 else float("inf")
    ax = activities(program, x)
    breaches = [
        _over(ax, program.row_upper),
        _over(-ax, -program.row_lower),
        _over(x, program.col_upper),
        _over(-x, -program.col_lower),
        float(np.abs(x - np.round(x))[program.is_integer].max(initial=0.0)),
    ]
    return max(breaches)


def _over(value: FloatArray, limit: FloatArray) -> float:
    finite = np.isfinite(limit)
    over = (value[finite] - limit[finite]) / np.maximum(1.0, np.abs(limit[finite]))
    return float(over.max(initial=0.0))


def concluded(
    program: MilpProgram,
    *,
    stop: SearchStop,
    x: FloatArray | None,
    dual_bound: float | None,
    wall_s: float,
    detail: str,
) -> MilpResult:
    """A result with objective computed from x, never taken from a log; and the stop made honest.

    A bound that differs from the objective found by tolerances only is lifted to it: that is still a bound. One further
    below is wrong, and an infinite one proves nothing: both become None. So does one that equals the objective of a
    search that ran out of time, for had it been proved the search would have ended: SCIP, stopped in its root's
    relaxation, was seen to report its warm start's objective as bound, 24 % below the optimum (2026-11-24).
    """
    objective = float(program.objective @ x) if x is not None else None
    if dual_bound is not None and not np.isfinite(dual_bound):
        dual_bound = None
    if objective is not None and dual_bound is not None:
        slack = BOUND_TOLERANCE * max(1.0, abs(objective))
        ended = stop in (SearchStop.OPTIMAL, SearchStop.GAP_LIMIT)
        met_late = not ended and dual_bound <= objective + slack
        dual_bound = None if met_late or dual_bound < objective - slack else max(dual_bound, objective)
    if stop is SearchStop.OPTIMAL and objective is not None:
        if dual_bound is None or dual_bound - objective > PROVEN_GAP * max(1.0, abs(dual_bound)):
            stop = SearchStop.GAP_LIMIT
    elif stop is SearchStop.OPTIMAL:
        stop, detail = SearchStop.FAILED, f"{detail} (said optimal but gave no point)"
    return MilpResult(stop=stop, x=x, objective=objective, dual_bound=dual_bound, wall_s=wall_s, detail=detail)


def without_search(program: MilpProgram) -> MilpResult | None:
    """The answer where it needs no solver: crossed bounds, empty rows that cannot hold, no variables at all.

    Vendors disagree on these (an empty objective is an error to one and optimal to another), so none sees them.
    """
    if (program.col_lower > program.col_upper).any() or (program.row_lower > program.row_upper).any():
        return MilpResult(
            stop=SearchStop.INFEASIBLE, x=None, objective=None, dual_bound=None, wall_s=0.0, detail="crossed bounds"
        )
    empty = np.diff(program.row_start) == 0
    if ((program.row_lower > 0) & empty).any() or ((program.row_upper < 0) & empty).any():
        return MilpResult(
            stop=SearchStop.INFEASIBLE, x=None, objective=None, dual_bound=None, wall_s=0.0, detail="empty row"
        )
    if program.num_vars == 0:
        return MilpResult(
            stop=SearchStop.OPTIMAL, x=np.zeros(0), objective=0.0, dual_bound=0.0, wall_s=0.0, detail="no variables"
        )
    return None
