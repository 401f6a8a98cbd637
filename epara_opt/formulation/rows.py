"""Rows of a sparse program, gathered one by one and packed once."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from epara_opt.formulation.program import FloatArray, IntArray


class RowBuilder:
    """Gathers rows `lower <= sum coefficient * x <= upper`; a variable may appear once per row."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._lower: list[float] = []
        self._upper: list[float] = []
        self._start: list[int] = [0]
        self._cols: list[int] = []
        self._values: list[float] = []

    def add(self, name: str, terms: Iterable[tuple[int, float]], *, lower: float = -math.inf, upper: float) -> None:
        for col, value in terms:
            if value != 0.0:
                self._cols.append(col)
                self._values.append(value)
        self._start.append(len(self._cols))
        self.names.append(name)
        self._lower.append(lower)
        self._upper.append(upper)

    def add_scaled(self, name: str, terms: list[tuple[int, float]]) -> None:
        """`sum terms <= 0`, divided by the largest coefficient so that a solver's absolute tolerance means the same
        in every row."""
        top = max((abs(value) for _, value in terms), default=1.0) or 1.0
        self.add(name, [(col, value / top) for col, value in terms], upper=0.0)

    @property
    def row_start(self) -> IntArray:
        return np.array(self._start, dtype=np.int64)

    @property
    def col_index(self) -> IntArray:
        return np.array(self._cols, dtype=np.int64)

    @property
    def coefficient(self) -> FloatArray:
        return np.array(self._values, dtype=np.float64)

    @property
    def lower(self) -> FloatArray:
        return np.array(self._lower, dtype=np.float64)

    @property
    def upper(self) -> FloatArray:
        return np.array(self._upper, dtype=np.float64)
