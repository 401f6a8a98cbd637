"""What vendors write while they search, read defensively: a line that is not understood proves nothing.

Only needed where the vendor has no callback (HiGHS and CBC), or was killed before it could answer. Every
program is handed to CBC as a minimization of -c'x, so its lower bound is the negative of ours.
"""

from __future__ import annotations

import math
import re

import numpy as np

from epara_opt.formulation.program import FloatArray

CBC_DIGITS = 5e-7  # half a unit in the seventh digit

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_CBC_FINAL = re.compile(rf"^Lower bound:\s+({_NUMBER})\s*$", re.MULTILINE)
_CBC_ROOT = re.compile(rf"^Continuous objective value is ({_NUMBER}) ", re.MULTILINE)
_CLP_OPTIMAL = re.compile(r"^Optimal (objective|- objective value) ", re.MULTILINE)
_HIGHS_ROW = re.compile(
    # Src? Proc InQueue Leaves Expl% BestBound BestSol Gap
    rf"^ [A-Za-z ]? *\d+ +\d+ +\d+ +[\d.]+% +({_NUMBER}|inf|-inf) ",
    re.MULTILINE,
)


def cbc_upper_bound(text: str) -> float | None:
    """The proven bound on our maximization, from CBC's closing block; its root relaxation's where that is missing.

    "Lower bound:" stands in the closing block only. "Continuous objective value" is the linear relaxation of the
    program as given. Progress lines ("best possible") are not read: they may speak of a preprocessed program.
    """
    found = _CBC_FINAL.findall(text) or _CBC_ROOT.findall(text)
    return rounded_outward(-float(found[-1])) if found else None


def rounded_outward(bound: float) -> float:
    """CBC prints seven or eight digits; what it did not print must not make a bound too low."""
    return bound + CBC_DIGITS * max(1.0, abs(bound))


def cbc_proves_optimal(text: str) -> bool:
    """Whether CBC searched to the end. A point within the tolerance asked for it calls optimal, too.

    Branch and bound closes with "Result - Optimal solution found", a linear program with "Optimal objective v".
    """
    if "Result - " in text:
        return "Result - Optimal solution found" in text and "within gap tolerance" not in text
    return _CLP_OPTIMAL.search(text) is not None


def highs_upper_bound(text: str) -> float | None:
    """The last BestBound of HiGHS's search table, for a maximization."""
    found = _HIGHS_ROW.findall(text)
    value = float(found[-1]) if found else math.inf
    return value if math.isfinite(value) else None


def highs_incumbent(text: str, num_vars: int) -> FloatArray | None:
    """The last complete point of HiGHS's improving-solution file.

    The file repeats: "Objective v", "# Columns V", then V lines with one value each. The last block may be cut
    off by a kill; then the one before it counts.
    """
    lines = text.splitlines()
    if not text.endswith("\n"):
        lines = lines[:-1]
    starts = [i for i, line in enumerate(lines) if line.startswith("# Columns ")]
    for start in reversed(starts):
        block = lines[start + 1 : start + 1 + num_vars]
        if lines[start].split()[-1] != str(num_vars) or len(block) < num_vars:
            continue
        try:
            return np.array([float(v) for v in block], dtype=np.float64)
        except ValueError:
            continue
    return None
