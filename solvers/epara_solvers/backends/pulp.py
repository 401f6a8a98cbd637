"""PuLP: the CBC it ships, and any other solver that it finds on the machine.

Every program goes over as a minimization of -c'x, so that no sign convention of a vendor's log is in doubt.
PuLP says "Optimal" at a time limit; only `sol_status` admits that the point is merely feasible. CBC's bound is
read from its log (epara_solvers.backends.logs); other solvers prove nothing through PuLP, except HiGHS, whose
model tells its bound.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pulp

from epara_opt.formulation.program import FloatArray, MilpProgram, MilpResult, SearchStop
from epara_solvers.backends import logs
from epara_solvers.backends.outcome import Report, concluded, ignore_report, without_search

CBC_LOG = "cbc.log"  # in the scratch folder
SEED = 1
OVERRUN_S, OVERRUN_PART = 3.0, 0.1  # CBC overruns by seconds; killed, it would leave no point

# (status, sol_status); None: it gave no answer, and the clock says whether time was the reason.
STATUS: dict[tuple[int, int], SearchStop | None] = {}
for _sol in pulp.constants.LpSolution:
    STATUS[pulp.constants.LpStatusNotSolved, _sol] = None
    STATUS[pulp.constants.LpStatusInfeasible, _sol] = SearchStop.INFEASIBLE
    STATUS[pulp.constants.LpStatusUnbounded, _sol] = SearchStop.UNBOUNDED
    STATUS[pulp.constants.LpStatusUndefined, _sol] = SearchStop.FAILED
    STATUS[pulp.constants.LpStatusOptimal, _sol] = SearchStop.FAILED  # contradicts itself, but for these two:
STATUS[pulp.constants.LpStatusOptimal, pulp.constants.LpSolutionOptimal] = SearchStop.OPTIMAL
STATUS[pulp.constants.LpStatusOptimal, pulp.constants.LpSolutionIntegerFeasible] = SearchStop.TIME_LIMIT
STATUS[pulp.constants.LpStatusNotSolved, pulp.constants.LpSolutionIntegerFeasible] = SearchStop.TIME_LIMIT


def public_name(vendor_name: str) -> str:
    """pulp-cbc for the one it ships; pulp-highs, pulp-gurobi, pulp-scip-cmd and so on for what it finds."""
    if vendor_name == "PULP_CBC_CMD":
        return "pulp-cbc"
    return "pulp-" + vendor_name.lower().replace("_", "-")


def found_on_machine() -> dict[str, str]:
    """Public name to PuLP's own. Imports every vendor that is installed: only ever call it in a process of its own."""
    names = pulp.listSolvers(onlyAvailable=True)
    return {public_name(name): name for name in names}


def to_problem(program: MilpProgram) -> tuple[pulp.LpProblem, list[pulp.LpVariable]]:
    """The program as PuLP sees it; ranged rows become two."""
    lower = [v if np.isfinite(v) else None for v in program.col_lower.tolist()]
    upper = [v if np.isfinite(v) else None for v in program.col_upper.tolist()]
    kinds = [pulp.LpInteger if whole else pulp.LpContinuous for whole in program.is_integer.tolist()]
    columns = [
        pulp.LpVariable(f"x{j}", lo, up, kind) for j, (lo, up, kind) in enumerate(zip(lower, upper, kinds, strict=True))
    ]
    problem = pulp.LpProblem("placement", pulp.LpMinimize)
    problem.setObjective(
        pulp.LpAffineExpression([(columns[j], -float(program.objective[j])) for j in np.flatnonzero(program.objective)])
    )
    starts, cols, values = program.row_start.tolist(), program.col_index.tolist(), program.coefficient.tolist()
    for i, (low, high) in enumerate(zip(program.row_lower.tolist(), program.row_upper.tolist(), strict=True)):
        terms: dict[pulp.LpVariable, float] = {}
        for k in range(starts[i], starts[i + 1]):
            terms[columns[cols[k]]] = terms.get(columns[cols[k]], 0.0) + values[k]
        if not terms:
            continue  # checked before: it holds
        left = pulp.LpAffineExpression(terms)
        if low == high:
            problem.addConstraint(pulp.LpConstraint(left, pulp.LpConstraintEQ, rhs=high), f"r{i}")
            continue
        if np.isfinite(high):
            problem.addConstraint(pulp.LpConstraint(left, pulp.LpConstraintLE, rhs=high), f"u{i}")
        if np.isfinite(low):
            problem.addConstraint(pulp.LpConstraint(left.copy(), pulp.LpConstraintGE, rhs=low), f"l{i}")
    problem.addVariables(columns)
    return problem, columns


@dataclass(frozen=True, slots=True, kw_only=True)
class PulpBackend:
    """One of PuLP's solvers, in this process (CBC runs as a child of it). A MilpBackend."""

    name: str = "pulp-cbc"
    threads: int = 1
    scratch: Path | None = None  # for CBC's log; its bound is unknown without one
    report: Report = ignore_report  # PuLP has no callbacks
    clock: Callable[[], float] = time.monotonic

    def solve(
        self, program: MilpProgram, *, time_limit_s: float, gap: float = 1e-4, warm_start: FloatArray | None = None
    ) -> MilpResult:
        started = self.clock()
        trivial = without_search(program)
        if trivial is not None:
            return trivial
        problem, columns = to_problem(program)
        if warm_start is not None:
            for column, value in zip(columns, warm_start.tolist(), strict=True):
                column.setInitialValue(value, check=False)
        built_s = self.clock() - started
        left_s = max(0.01, time_limit_s - built_s - min(OVERRUN_S, OVERRUN_PART * time_limit_s))
        solver = self._solver(left_s, gap, warm=warm_start is not None)
        try:
            problem.solve(solver)
        except pulp.PulpSolverError as e:
            wall_s = self.clock() - started
            return concluded(
                program, stop=SearchStop.FAILED, x=None, dual_bound=None, wall_s=wall_s, detail=f"PuLP: {e}"
            )
        wall_s = self.clock() - started
        stop = STATUS[problem.status, problem.sol_status]
        if stop is None:
            stop = SearchStop.TIME_LIMIT if wall_s >= 0.9 * time_limit_s else SearchStop.FAILED
        values = [column.value() for column in columns]
        x: FloatArray | None = None
        if stop in (SearchStop.OPTIMAL, SearchStop.TIME_LIMIT) and self._has_point(problem, values):
            x = np.array([0.0 if v is None else v for v in values], dtype=np.float64)
        words = f"{pulp.LpStatus[problem.status]}, {pulp.LpSolution[problem.sol_status]}, built in {built_s:.2f} s"
        return concluded(
            program,
            stop=stop,
            x=x,
            dual_bound=self._bound(program, problem, stop, x),
            wall_s=wall_s,
            detail=words,
        )

    @staticmethod
    def _has_point(problem: pulp.LpProblem, values: list[float | None]) -> bool:
        found = (pulp.constants.LpSolutionOptimal, pulp.constants.LpSolutionIntegerFeasible)
        return problem.sol_status in found and any(v is not None for v in values)

    def _solver(self, time_limit_s: float, gap: float, *, warm: bool) -> Any:
        if self.name == "pulp-cbc":
            return pulp.PULP_CBC_CMD(
                msg=False,
                timeLimit=time_limit_s,
                gapRel=gap,
                threads=self.threads if self.threads > 1 else None,
                warmStart=warm,
                logPath=str(self.scratch / CBC_LOG) if self.scratch is not None else None,
                options=[f"randomCbcSeed {SEED}"],
            )
        vendor_name = found_on_machine().get(self.name)
        if vendor_name is None:
            raise RuntimeError(f"PuLP finds no {self.name} on this machine")
        return pulp.getSolver(vendor_name, msg=False, timeLimit=time_limit_s, gapRel=gap)

    def _bound(
        self, program: MilpProgram, problem: pulp.LpProblem, stop: SearchStop, x: FloatArray | None
    ) -> float | None:
        if self.name == "pulp-cbc":
            text = self._log()
            if stop is SearchStop.OPTIMAL and x is not None and logs.cbc_proves_optimal(text):
                return logs.rounded_outward(float(program.objective @ x))
            return logs.cbc_upper_bound(text) if stop in (SearchStop.OPTIMAL, SearchStop.TIME_LIMIT) else None
        if self.name == "pulp-highs":
            return _highs_bound(problem)
        return None

    def _log(self) -> str:
        path = None if self.scratch is None else self.scratch / CBC_LOG
        return path.read_text(errors="replace") if path is not None and path.exists() else ""


def _highs_bound(problem: pulp.LpProblem) -> float | None:
    """HiGHS through highspy: its model stays with the problem and knows the bound (of the minimization)."""
    info: Any = getattr(getattr(problem, "solverModel", None), "getInfo", lambda: None)()
    bound = getattr(info, "mip_dual_bound", None)
    return None if bound is None else -float(bound)
