"""How busy a replica may be so that bursts do not make too many of its requests late.

The table (utilization.csv, made by `python benchmarks/planner/utilization_table.py`) holds, for one replica alone, the
highest utilization at which a wanted share of all requests is on time, admission refusing what cannot be:

    rho(target, CV of the times between arrivals, batch, time left)

- batches: time left in the server over the time of one batch; a plan has at least 2 (one missed, one's own);
- slots (text generation): time that may be waited for a slot, over the time that a generation holds it.

Between points it is linear in CV, log2 batch, log(1 - target) and log time (slots: log(1 + time)); beyond them the
nearest point counts. What is assumed of a service's arrivals at one replica:

- An origin whose demand is more than the replica does sends it a random part p of its requests: of a renewal process
  with squared coefficient of variation c^2 that part has exactly 1 + p (c^2 - 1).
- Independent origins together: over short times they look more like Poisson than each alone, over long times their
  squared coefficient is the rate-weighted mean (Whitt, "Approximating a point process by a renewal process", 1982).
  The mean is taken: it is the less favourable where CV > 1.
- Less than Poisson (CV < 1) is taken as it is for one origin and as said for several.
- Time left is that of demand that enters where it is served: what comes from afar has less.
- Co-hosted services: their waits are taken off the time left.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

TABLE = Path(__file__).with_name("utilization.csv")


class Kind(StrEnum):
    """Of replicas, by how they take work."""

    BATCHES = "batches"
    SLOTS = "slots"


@dataclass(frozen=True, slots=True, kw_only=True)
class Axes:
    """Rising points of the table."""

    target: tuple[float, ...]
    cv: tuple[float, ...]
    batch: tuple[int, ...]
    time_left: tuple[float, ...]


AXES = {
    Kind.BATCHES: Axes(
        target=(0.9, 0.95, 0.99),
        cv=(0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0),
        batch=(1, 2, 4, 8, 16, 32, 64),
        time_left=(2.0, 2.5, 3.0, 4.0, 6.0, 9.0, 15.0, 30.0, 60.0),
    ),
    Kind.SLOTS: Axes(
        target=(0.9, 0.95, 0.99),
        cv=(0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0),
        batch=(1, 2, 4, 8, 16, 32, 64),
        time_left=(0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 10.0),
    ),
}
LEAST_TARGET, MOST_TARGET = 0.9, 0.99


@cache
def _values(kind: Kind) -> FloatArray:
    """(targets, CVs, batches, times left)"""
    axes = AXES[kind]
    with TABLE.open(encoding="utf-8") as file:
        rows = [[float(v) for v in row[4:]] for row in csv.reader(file) if row[0] == kind]
    return np.array(rows).reshape(len(axes.target), len(axes.cv), len(axes.batch), len(axes.time_left))


def utilizations(kind: Kind, *, target: float, cv: FloatArray, batch: FloatArray, time_left: FloatArray) -> FloatArray:
    """(M,) the table at M points."""
    axes = AXES[kind]
    ease = 1.0 if kind is Kind.SLOTS else 0.0  # a wait may be 0
    places = (
        _places([-math.log(1.0 - t) for t in axes.target], np.full(len(cv), -math.log(1.0 - target))),
        _places(axes.cv, cv),
        _places(np.log2(axes.batch).tolist(), np.log2(batch)),
        _places([math.log(ease + t) for t in axes.time_left], np.log(np.maximum(ease + time_left, 1e-9))),
    )
    table, found = _values(kind), np.zeros(len(cv))
    for corner in range(2 ** len(places)):
        weight = np.ones(len(cv))
        index: list[npt.NDArray[np.int64]] = []
        for axis, (low, part) in enumerate(places):
            upper = corner >> axis & 1
            index.append(low + upper)
            weight = weight * (part if upper else 1.0 - part)
        found = found + weight * table[tuple(index)]
    return np.minimum(found, 1.0)  # weights may sum to a last digit more than 1


def _places(points: Sequence[float], x: FloatArray) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """The interval of each x, and how far into it, in [0, 1]."""
    at = np.array(points)
    low = np.clip(np.searchsorted(at, x, side="right") - 1, 0, len(at) - 2)
    part = np.clip((x - at[low]) / (at[low + 1] - at[low]), 0.0, 1.0)
    return low, part


def seen_cv(arrivals: Sequence[tuple[float, float]], work_per_s: FloatArray) -> FloatArray:
    """(M,) CV of what replicas that do `work_per_s` (M,) see of a service's demand: (rate, CV) of each origin."""
    total = sum(rate for rate, _ in arrivals)
    squared = np.ones(len(work_per_s))
    for rate, cv in arrivals:
        if rate > 0:
            squared = squared + rate / total * np.minimum(1.0, work_per_s / rate) * (cv * cv - 1.0)
    return np.sqrt(np.maximum(0.0, squared))
