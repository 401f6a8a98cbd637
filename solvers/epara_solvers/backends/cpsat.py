"""CP-SAT, which knows integers only: continuous variables become multiples of a small step.

Each continuous y in [lo, hi] is written lo + step * Y with Y in 0 .. levels, and every row is widened by what
rounding its continuous variables down to the grid can cost it. So any point of ours has a neighbour in CP-SAT's
program that keeps the integers and whose objective is less by at most sum_j max(0, c_j) step_j: CP-SAT's bound
plus that sum is a bound of ours, whatever the program. It is as loose as the grid is coarse; where it is too loose
for the gap asked for, the grid is refined.

Points go the other way with their integers only: the continuous part is solved again exactly (GLOP), which also
takes back what the widened rows allowed too much.
The vendor turns fractional coefficients into integers to within 1e-6 of a row's activity, the same tolerance
that other back ends allow a row.
"""

from __future__ import annotations

import datetime
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
from ortools.math_opt.python import mathopt

from epara_opt.formulation.program import FloatArray, MilpProgram, MilpResult, SearchStop
from epara_solvers.backends import mathopt as vendor
from epara_solvers.backends.outcome import Report, concluded, ignore_report, row_of_entry, without_search

LEVELS = (10_000, 1_000_000)  # grid steps of a continuous variable, coarse first; CP-SAT bounds values by 1e7


@dataclass(frozen=True, slots=True)
class Grid:
    """y = offset + step * Y. Integer variables have step 1 and offset 0."""

    program: MilpProgram  # in Y, all integer, rows widened
    step: FloatArray  # (V,)
    offset: FloatArray  # (V,)
    allowance: float  # bound of ours = bound of this program + allowance

    def back(self, grid_x: FloatArray) -> FloatArray:
        return self.offset + self.step * grid_x

    def there(self, x: FloatArray) -> FloatArray:
        return np.floor((x - self.offset) / self.step + 1e-9)


def finite_ranges(program: MilpProgram) -> tuple[FloatArray, FloatArray]:
    """Bounds of the variables, those missing derived from rows whose other terms cannot help."""
    lower, upper = program.col_lower.copy(), program.col_upper.copy()
    open_cols = set(np.flatnonzero(~np.isfinite(upper)).tolist())
    for row in range(program.num_rows):
        if not open_cols or not np.isfinite(program.row_upper[row]):
            continue
        entries = slice(program.row_start[row], program.row_start[row + 1])
        cols, values = program.col_index[entries], program.coefficient[entries]
        if not open_cols.intersection(cols.tolist()):
            continue
        least = np.where(values > 0, values * lower[cols], values * program.col_upper[cols])
        for col, value, own in zip(cols.tolist(), values.tolist(), least.tolist(), strict=True):
            if col in open_cols and value > 0:
                room = program.row_upper[row] - (least.sum() - own)
                if np.isfinite(room):
                    upper[col] = min(upper[col], room / value)
    return lower, upper


def to_grid(program: MilpProgram, levels: int) -> Grid | None:
    """The outer integer program; None where a variable has no finite range."""
    lower, upper = finite_ranges(program)
    if not (np.isfinite(lower).all() and np.isfinite(upper).all()):
        return None
    continuous = ~program.is_integer
    step = np.where(continuous & (upper > lower), (upper - lower) / levels, 1.0)
    offset = np.where(continuous, lower, 0.0)
    rows, cols, values = row_of_entry(program), program.col_index, program.coefficient
    rounding = np.where(continuous[cols], values * step[cols], 0.0)  # what rounding down takes from a row
    shift = np.bincount(rows, weights=values * offset[cols], minlength=program.num_rows)
    rise = np.bincount(rows, weights=np.maximum(0.0, -rounding), minlength=program.num_rows)
    fall = np.bincount(rows, weights=np.maximum(0.0, rounding), minlength=program.num_rows)
    inner = replace(
        program,
        objective=program.objective * step,
        col_lower=np.where(continuous, 0.0, np.ceil(lower - 1e-9)),
        col_upper=np.where(continuous, np.where(upper > lower, levels, 0.0), np.floor(upper + 1e-9)),
        is_integer=np.ones(program.num_vars, dtype=np.bool_),
        coefficient=values * step[cols],
        row_lower=program.row_lower - shift - fall,
        row_upper=program.row_upper - shift + rise,
    )
    loss = float((np.maximum(program.objective, 0.0) * step)[continuous].sum())
    return Grid(program=inner, step=step, offset=offset, allowance=loss + float(program.objective @ offset))


@dataclass(frozen=True, slots=True, kw_only=True)
class CpSatBackend:
    """CP-SAT through MathOpt, in this process. A MilpBackend."""

    name: str = "cpsat"
    threads: int = 1
    scratch: Path | None = None  # unused: the callback reports
    report: Report = ignore_report

    def solve(
        self, program: MilpProgram, *, time_limit_s: float, gap: float = 1e-4, warm_start: FloatArray | None = None
    ) -> MilpResult:
        started = time.monotonic()
        trivial = without_search(program)
        if trivial is not None:
            return trivial
        levels = LEVELS if not program.is_integer.all() else LEVELS[:1]
        best: MilpResult | None = None
        for num_levels in levels:
            left_s = max(0.01, time_limit_s - (time.monotonic() - started))
            found = self._on_grid(program, num_levels, left_s, gap, warm_start)
            best = found if best is None else _joined(best, found)
            if best.stop not in (SearchStop.OPTIMAL, SearchStop.GAP_LIMIT):
                break
            if best.objective is None or best.dual_bound is None:
                break
            if best.dual_bound - best.objective <= gap * abs(best.dual_bound):
                break
            warm_start = best.x
        return replace(cast("MilpResult", best), wall_s=time.monotonic() - started)

    def _on_grid(
        self, program: MilpProgram, levels: int, time_limit_s: float, gap: float, warm_start: FloatArray | None
    ) -> MilpResult:
        started = time.monotonic()
        grid = to_grid(program, levels)
        if grid is None:
            words = "CP-SAT needs finite ranges: a variable has none"
            return concluded(program, stop=SearchStop.FAILED, x=None, dual_bound=None, wall_s=0.0, detail=words)
        model = vendor.to_model(grid.program)
        variables = list(model.variables())
        parameters = mathopt.SolveParameters(
            time_limit=datetime.timedelta(seconds=max(0.01, time_limit_s - (time.monotonic() - started))),
            relative_gap_tolerance=gap / 2,
            absolute_gap_tolerance=0.0,
            threads=self.threads,
            random_seed=vendor.SEED,
        )

        def seen(data: mathopt.CallbackData) -> mathopt.CallbackResult:
            if data.solution is not None:
                inner = np.array([data.solution[v] for v in variables], dtype=np.float64)
                self.report(grid.back(inner), data.mip_stats.dual_bound + grid.allowance)
            return mathopt.CallbackResult()

        result = vendor.run(
            model,
            mathopt.SolverType.CP_SAT,
            parameters,
            model_params=vendor.hint(model, None if warm_start is None else grid.there(warm_start)),
            callback_reg=mathopt.CallbackRegistration(events={mathopt.Event.MIP_SOLUTION}),
            cb=seen,
        )
        termination = result.termination
        inner_x = vendor.point(model, result)
        return concluded(
            program,
            stop=vendor.search_stop(termination.reason, termination.limit),
            x=None if inner_x is None else _polished(program, grid.back(inner_x)),
            dual_bound=termination.objective_bounds.dual_bound + grid.allowance,
            wall_s=time.monotonic() - started,
            detail=f"{termination.reason.name} {termination.detail}, {levels} levels".strip(),
        )


def _joined(before: MilpResult, after: MilpResult) -> MilpResult:
    """The better point and the lower bound of two searches of the same program; how the later one ended."""
    keep = before if (before.objective or -np.inf) > (after.objective or -np.inf) else after
    bounds = [r.dual_bound for r in (before, after) if r.dual_bound is not None]
    bound = min(bounds, default=None)
    return replace(after, x=keep.x, objective=keep.objective, dual_bound=bound)


def _polished(program: MilpProgram, x: FloatArray) -> FloatArray | None:
    """The best continuous part for these integers; None where there is none."""
    if program.is_integer.all():
        return x
    whole = np.round(x)
    fixed = replace(
        program,
        col_lower=np.where(program.is_integer, whole, program.col_lower),
        col_upper=np.where(program.is_integer, whole, program.col_upper),
    )
    model = vendor.to_model(fixed, relaxed=True)
    result = vendor.run(model, mathopt.SolverType.GLOP, mathopt.SolveParameters(random_seed=vendor.SEED, threads=1))
    return vendor.point(model, result)
