"""OR-Tools MathOpt: HiGHS and SCIP for mixed-integer programs, and how a program crosses over in bulk.

The program goes over as one ModelProto filled from arrays (no Python object per coefficient). HiGHS has no
callbacks here, so it writes every incumbent to a file that survives its process; SCIP reports through a callback.
MathOpt 9.15 masks errors of the C++ side as `AttributeError: canonical_code`; the words are in its context.
"""

from __future__ import annotations

import datetime
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ortools.math_opt import model_pb2  # pyright: ignore[reportAttributeAccessIssue]
from ortools.math_opt.python import mathopt

from epara_opt.formulation.program import FloatArray, MilpProgram, MilpResult, SearchStop
from epara_solvers.backends.outcome import Report, concluded, ignore_report, row_of_entry, without_search

INCUMBENT_FILE = "incumbents.sol"  # in the scratch folder: HiGHS's improving solutions
SEED = 1

SOLVERS = {"mathopt-highs": mathopt.SolverType.HIGHS, "mathopt-scip": mathopt.SolverType.GSCIP}

# A limit that we set, or were asked to obey, is time. Whatever else cut the search short we did not ask for.
LIMITS = {
    mathopt.Limit.TIME: SearchStop.TIME_LIMIT,
    mathopt.Limit.UNDETERMINED: SearchStop.TIME_LIMIT,  # CP-SAT says this at its time limit
    mathopt.Limit.INTERRUPTED: SearchStop.TIME_LIMIT,
    mathopt.Limit.ITERATION: SearchStop.FAILED,
    mathopt.Limit.NODE: SearchStop.FAILED,
    mathopt.Limit.SOLUTION: SearchStop.FAILED,
    mathopt.Limit.MEMORY: SearchStop.FAILED,
    mathopt.Limit.OBJECTIVE: SearchStop.FAILED,
    mathopt.Limit.NORM: SearchStop.FAILED,
    mathopt.Limit.SLOW_PROGRESS: SearchStop.FAILED,
    mathopt.Limit.OTHER: SearchStop.FAILED,
}

# None: the limit decides. INFEASIBLE_OR_UNBOUNDED is settled by a second solve without objective.
REASONS: dict[mathopt.TerminationReason, SearchStop | None] = {
    mathopt.TerminationReason.OPTIMAL: SearchStop.OPTIMAL,
    mathopt.TerminationReason.INFEASIBLE: SearchStop.INFEASIBLE,
    mathopt.TerminationReason.UNBOUNDED: SearchStop.UNBOUNDED,
    mathopt.TerminationReason.INFEASIBLE_OR_UNBOUNDED: SearchStop.UNBOUNDED,
    mathopt.TerminationReason.IMPRECISE: SearchStop.FAILED,
    mathopt.TerminationReason.FEASIBLE: None,
    mathopt.TerminationReason.NO_SOLUTION_FOUND: None,
    mathopt.TerminationReason.NUMERICAL_ERROR: SearchStop.FAILED,
    mathopt.TerminationReason.OTHER_ERROR: SearchStop.FAILED,
}


def search_stop(reason: mathopt.TerminationReason, limit: mathopt.Limit | None) -> SearchStop:
    """Why it stopped, in our words."""
    known = REASONS[reason]
    return known if known is not None else LIMITS[limit or mathopt.Limit.UNDETERMINED]


def to_model(program: MilpProgram, *, relaxed: bool = False, with_objective: bool = True) -> mathopt.Model:
    """The program as a MathOpt model; variable and row ids are our indexes."""
    proto: Any = model_pb2.ModelProto()
    num_vars, num_rows = program.num_vars, program.num_rows
    proto.variables.ids.extend(range(num_vars))
    proto.variables.lower_bounds.extend(program.col_lower.tolist())
    proto.variables.upper_bounds.extend(program.col_upper.tolist())
    proto.variables.integers.extend([False] * num_vars if relaxed else program.is_integer.tolist())
    proto.objective.maximize = True
    if with_objective:
        used = np.flatnonzero(program.objective)
        proto.objective.linear_coefficients.ids.extend(used.tolist())
        proto.objective.linear_coefficients.values.extend(program.objective[used].tolist())
    proto.linear_constraints.ids.extend(range(num_rows))
    proto.linear_constraints.lower_bounds.extend(program.row_lower.tolist())
    proto.linear_constraints.upper_bounds.extend(program.row_upper.tolist())
    rows, cols, values = _coalesced(program)
    proto.linear_constraint_matrix.row_ids.extend(rows.tolist())
    proto.linear_constraint_matrix.column_ids.extend(cols.tolist())
    proto.linear_constraint_matrix.coefficients.extend(values.tolist())
    return mathopt.Model.from_model_proto(proto)


def _coalesced(program: MilpProgram) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Entries in row-major order, each place once, none zero, as MathOpt demands."""
    rows = row_of_entry(program)
    order = np.lexsort((program.col_index, rows))
    rows, cols, values = rows[order], program.col_index[order], program.coefficient[order]
    first = np.ones(len(rows), dtype=np.bool_)
    first[1:] = (rows[1:] != rows[:-1]) | (cols[1:] != cols[:-1])
    starts = np.flatnonzero(first)
    summed = np.add.reduceat(values, starts) if len(starts) else values
    kept = summed != 0
    return rows[starts][kept], cols[starts][kept], summed[kept]


def run(
    model: mathopt.Model, solver: mathopt.SolverType, parameters: mathopt.SolveParameters, **options: Any
) -> mathopt.SolveResult:
    """mathopt.solve, with errors in the vendor's words."""
    try:
        return mathopt.solve(model, solver, params=parameters, **options)
    except (AttributeError, ValueError, AssertionError, NotImplementedError, RuntimeError) as e:
        words = getattr(e.__context__, "message", None) or str(e)
        raise RuntimeError(f"MathOpt {solver.name}: {words}") from e


def hint(model: mathopt.Model, x: FloatArray | None) -> mathopt.ModelSolveParameters:
    """A feasible point as the vendor's solution hint. HiGHS, SCIP and CP-SAT take it as their first incumbent."""
    if x is None:
        return mathopt.ModelSolveParameters()
    values = dict(zip(model.variables(), x.tolist(), strict=True))
    return mathopt.ModelSolveParameters(solution_hints=[mathopt.SolutionHint(variable_values=values)])


def point(model: mathopt.Model, result: mathopt.SolveResult) -> FloatArray | None:
    """(V,) the best point, or None."""
    if not result.has_primal_feasible_solution():
        return None
    return np.array(result.variable_values(list(model.variables())), dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class MathOptBackend:
    """HiGHS or SCIP through MathOpt, in this process. A MilpBackend."""

    name: str
    threads: int = 1
    scratch: Path | None = None  # where HiGHS leaves its incumbents
    report: Report = ignore_report

    def solve(
        self, program: MilpProgram, *, time_limit_s: float, gap: float = 1e-4, warm_start: FloatArray | None = None
    ) -> MilpResult:
        started = time.monotonic()
        trivial = without_search(program)
        if trivial is not None:
            return trivial
        model = to_model(program)
        built_s = time.monotonic() - started
        solver = SOLVERS[self.name]
        left_s = max(0.01, time_limit_s - built_s)
        options = self._reporting(model) if solver is mathopt.SolverType.GSCIP else {}
        result = run(model, solver, self._parameters(left_s, gap), model_params=hint(model, warm_start), **options)
        termination = result.termination
        stop = search_stop(termination.reason, termination.limit)
        if termination.reason is mathopt.TerminationReason.INFEASIBLE_OR_UNBOUNDED:
            left_s = max(0.01, time_limit_s - (time.monotonic() - started))
            plain = run(to_model(program, with_objective=False), solver, self._parameters(left_s, gap))
            stop = SearchStop.UNBOUNDED if plain.has_primal_feasible_solution() else SearchStop.INFEASIBLE
        return concluded(
            program,
            stop=stop,
            x=point(model, result) if stop is not SearchStop.UNBOUNDED else None,
            dual_bound=termination.objective_bounds.dual_bound,
            wall_s=time.monotonic() - started,
            detail=f"{termination.reason.name} {termination.detail} built in {built_s:.2f} s".replace("  ", " "),
        )

    def _parameters(self, time_limit_s: float, gap: float) -> mathopt.SolveParameters:
        parameters = mathopt.SolveParameters(
            time_limit=datetime.timedelta(seconds=time_limit_s),
            relative_gap_tolerance=gap,
            absolute_gap_tolerance=0.0,
            random_seed=SEED,
            enable_output=True,  # to the worker's log: the bound is read from it if the process must be killed
        )
        if SOLVERS[self.name] is mathopt.SolverType.HIGHS:
            parameters.highs.int_options["threads"] = self.threads
            if self.scratch is not None:
                parameters.highs.bool_options["mip_improving_solution_save"] = True
                parameters.highs.string_options["mip_improving_solution_file"] = str(self.scratch / INCUMBENT_FILE)
        else:
            parameters.threads = self.threads
        return parameters

    def _reporting(self, model: mathopt.Model) -> dict[str, Any]:
        variables = list(model.variables())
        best = [-np.inf]

        def seen(data: mathopt.CallbackData) -> mathopt.CallbackResult:
            if data.solution is not None and data.mip_stats.primal_bound > best[0]:
                best[0] = data.mip_stats.primal_bound
                x = np.array([data.solution[v] for v in variables], dtype=np.float64)
                self.report(x, data.mip_stats.dual_bound)
            return mathopt.CallbackResult()

        return {"callback_reg": mathopt.CallbackRegistration(events={mathopt.Event.MIP_SOLUTION}), "cb": seen}
