"""A mixed-integer linear program in arrays, and the seam to whatever solves it.

maximize  c'x  subject to  row_lower <= A x <= row_upper,  col_lower <= x <= col_upper,  x_j integer where marked.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class MilpProgram:
    """V variables, R rows, NNZ coefficients in compressed sparse rows."""

    objective: FloatArray  # (V,) maximized
    col_lower: FloatArray  # (V,)
    col_upper: FloatArray  # (V,) inf where unbounded
    is_integer: BoolArray  # (V,)
    row_start: IntArray  # (R + 1,)
    col_index: IntArray  # (NNZ,)
    coefficient: FloatArray  # (NNZ,)
    row_lower: FloatArray  # (R,) -inf where absent
    row_upper: FloatArray  # (R,) inf where absent
    row_names: tuple[str, ...] = ()  # (R,) family and indexes, e.g. "demand[chat,edge-a]"; for messages and duals
    col_names: tuple[str, ...] = ()  # (V,)

    @property
    def num_vars(self) -> int:
        return len(self.objective)

    @property
    def num_rows(self) -> int:
        return len(self.row_lower)


class SearchStop(StrEnum):
    """Why a back end stopped."""

    OPTIMAL = "optimal"
    GAP_LIMIT = "gap_limit"
    TIME_LIMIT = "time_limit"
    INFEASIBLE = "infeasible"
    UNBOUNDED = "unbounded"
    FAILED = "failed"  # crashed, was killed at the deadline without an answer, or said what we cannot read


@dataclass(frozen=True, slots=True, kw_only=True)
class MilpResult:
    """What a back end found. `x` and `objective` are None together. Nothing is rounded."""

    stop: SearchStop
    x: FloatArray | None  # (V,)
    objective: float | None
    dual_bound: float | None  # proven upper bound; None when the back end proves nothing
    wall_s: float
    detail: str = ""  # the vendor's own words


class MilpBackend(Protocol):
    """Translate, run, translate back. Never reads the domain, never rounds."""

    @property
    def name(self) -> str: ...

    def solve(
        self,
        program: MilpProgram,
        *,
        time_limit_s: float,
        gap: float = 1e-4,  # relative, at which to stop
        warm_start: FloatArray | None = None,  # (V,) a feasible point
    ) -> MilpResult: ...
