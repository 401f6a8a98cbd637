"""Small linear programs in arrays, by GLOP through MathOpt's messages.

Programs of a region of servers are solved thousands of times in a plan. Building MathOpt's model objects and reading
their results in Python took four fifths of that time, and kept other threads waiting (measured, 2026-11-25: 4.3 s for
35 programs of some 7,000 unknowns, of which the simplex took 0.9 s); its messages go to the same solver without them.
"""

from __future__ import annotations

import datetime

import numpy as np
from epara_solvers.columns.arrays import F64, I64

try:
    from ortools.math_opt import model_pb2, solution_pb2
    from ortools.math_opt.core.python import solver
    from ortools.math_opt.python import mathopt
except ImportError:  # an extra of the planner: without it repacking alone chooses flows
    model_pb2 = solution_pb2 = solver = mathopt = None


def is_there() -> bool:
    """Whether OR-Tools is installed."""
    return mathopt is not None


def maximum(*, objective: F64, row: I64, column: I64, coefficient: F64, upper: F64, time_limit_s: float) -> F64 | None:
    """argmax objective x, A x <= upper, x >= 0; None without OR-Tools or without a feasible point in time.

    A in triplets (row, column, coefficient); entries of A may repeat, they add up.
    """
    if model_pb2 is None or solution_pb2 is None or solver is None or mathopt is None:
        return None
    num = len(objective)
    entries, at = np.unique(row * num + column, return_inverse=True)
    values = np.bincount(at, weights=coefficient)
    proto = model_pb2.ModelProto()
    proto.variables.ids.extend(range(num))
    proto.variables.lower_bounds.extend(np.zeros(num))
    proto.variables.upper_bounds.extend(np.full(num, np.inf))
    proto.variables.integers.extend(np.zeros(num, dtype=np.bool_).tolist())
    proto.objective.maximize = True
    proto.objective.linear_coefficients.ids.extend(range(num))
    proto.objective.linear_coefficients.values.extend(objective)
    proto.linear_constraints.ids.extend(range(len(upper)))
    proto.linear_constraints.lower_bounds.extend(np.full(len(upper), -np.inf))
    proto.linear_constraints.upper_bounds.extend(upper)
    proto.linear_constraint_matrix.row_ids.extend((entries // num).tolist())
    proto.linear_constraint_matrix.column_ids.extend((entries % num).tolist())
    proto.linear_constraint_matrix.coefficients.extend(values)
    limit = datetime.timedelta(seconds=max(1e-3, time_limit_s))
    found = solver.solve(
        proto,
        mathopt.SolverType.GLOP.value,
        mathopt.StreamableSolverInitArguments().to_proto(),
        mathopt.SolveParameters(threads=1, time_limit=limit).to_proto(),
        mathopt.ModelSolveParameters().to_proto(),
        None,
        mathopt.CallbackRegistration().to_proto(),
        None,
        None,
    )
    for solution in found.solutions:
        primal = solution.primal_solution
        if primal.feasibility_status == solution_pb2.SOLUTION_STATUS_FEASIBLE:
            x = np.zeros(num)
            x[np.array(primal.variable_values.ids, dtype=np.int64)] = primal.variable_values.values
            return x
    return None
