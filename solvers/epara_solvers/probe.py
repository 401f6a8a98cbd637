"""Which vendors really work here: `python -m epara_solvers.probe pulp|ortools` prints JSON, name to "" or why not.

Asking imports the vendor, and PuLP's question imports every solver that it finds; so it is asked in a process of
its own, one per family, never in the planner's.
"""

from __future__ import annotations

import json
import sys


def pulp_solvers() -> dict[str, str]:
    from epara_solvers.backends.pulp import found_on_machine

    found = found_on_machine()
    return {"pulp-cbc": "PuLP's own CBC does not run on this machine", **dict.fromkeys(found, "")}


def ortools_solvers() -> dict[str, str]:
    from ortools.math_opt.python import mathopt

    wanted = {
        "mathopt-highs": mathopt.SolverType.HIGHS,
        "mathopt-scip": mathopt.SolverType.GSCIP,
        "cpsat": mathopt.SolverType.CP_SAT,
        "glop": mathopt.SolverType.GLOP,
    }
    table: dict[str, str] = {}
    for name, solver in wanted.items():
        try:
            mathopt.solve(mathopt.Model(), solver)
            table[name] = ""
        except Exception as e:  # vendors raise what they like, and mask it: any failure means it cannot be used
            words = getattr(e.__context__, "message", None) or str(e)
            table[name] = f"{type(e).__name__}: {words}"
    return table


if __name__ == "__main__":
    print(json.dumps(pulp_solvers() if sys.argv[1] == "pulp" else ortools_solvers()))
