"""GLOP: what one more unit of each row's right-hand side would be worth, from the linear relaxation's duals."""

from __future__ import annotations

import datetime

import numpy as np
from ortools.math_opt.python import mathopt

from epara_opt.formulation.program import FloatArray, MilpProgram
from epara_solvers.backends import mathopt as vendor


def row_prices(program: MilpProgram, *, time_limit_s: float) -> FloatArray | None:
    """(R,) duals of the relaxation, non-negative on rows bounded above; None unless GLOP proved its optimum."""
    if program.num_vars == 0 or program.num_rows == 0:
        return np.zeros(program.num_rows)
    model = vendor.to_model(program, relaxed=True)
    limit = datetime.timedelta(seconds=max(0.01, time_limit_s))
    parameters = mathopt.SolveParameters(time_limit=limit, random_seed=vendor.SEED, threads=1)
    result = vendor.run(model, mathopt.SolverType.GLOP, parameters)
    if result.termination.reason is not mathopt.TerminationReason.OPTIMAL:
        return None
    return np.array(result.dual_values(list(model.linear_constraints())), dtype=np.float64)
