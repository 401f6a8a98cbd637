"""A cluster, its models and the ways to run them: what a replay needs. Semantics: AlpaServe's simulator (OSDI'23).

A group of devices has a shape (tensor parallel x pipeline stages) and hosts several models, which take turns. A request
goes to the group holding its model whose last stage is free soonest (the first on ties). It passes the stages in order,
each once that is free; where it would finish later than its SLO it is dropped at arrival and takes no time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from epara_opt.errors import InputError, Violation

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Instance:
    """M models, S shapes, K stages at most."""

    num_devices: int
    memory_bytes: float  # per device
    shapes: tuple[tuple[int, int], ...]  # (S,) tensor parallel, pipeline stages
    stage_s: F64  # (M, S, K) of one request; 0 beyond the shape's stages, inf where the model has no such profile
    weight_bytes: F64  # (M, S) of the heaviest stage, per device; inf where there is no profile
    slo_s: F64  # (M,)
    rate_per_s: F64  # (M,)
    cv: F64  # (M,) of the times between arrivals
    overhead_s: float = 0.0  # added to every request's finish

    def __post_init__(self) -> None:
        models, shapes = len(self.slo_s), len(self.shapes)
        for path, ok, law, value in (
            ("num_devices", self.num_devices >= 1, "expected >= 1", self.num_devices),
            ("memory_bytes", self.memory_bytes > 0, "expected > 0", self.memory_bytes),
            (
                "stage_s",
                self.stage_s.shape[:2] == (models, shapes) == self.weight_bytes.shape,
                "expected one row per model and shape",
                self.stage_s.shape,
            ),
            ("slo_s", bool((self.slo_s > 0).all()), "expected > 0", self.slo_s),
            ("rate_per_s", bool(np.isfinite(self.rate_per_s).all()), "expected finite", self.rate_per_s),
        ):
            if not ok:
                raise InputError(Violation(path=f"instance.{path}", law=law, value=str(value)))

    @property
    def num_stages(self) -> I64:
        return np.array([pp for _, pp in self.shapes], dtype=np.int64)

    @property
    def shape_devices(self) -> I64:
        return np.array([math.prod(s) for s in self.shapes], dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Requests by rising time."""

    at_s: F64  # (A,)
    model: I64  # (A,)

    def __post_init__(self) -> None:
        if len(self.at_s) != len(self.model):
            law = "expected a model for every arrival"
            raise InputError(Violation(path="arrivals.model", law=law, value=str(len(self.model))))


@dataclass(frozen=True, slots=True)
class Group:
    """Devices that work together, and what they hold."""

    shape: int  # index into the instance's shapes
    models: tuple[int, ...]


def resampled(instance: Instance, duration_s: float, rng: np.random.Generator) -> Arrivals:
    """Arrivals of another day: gamma renewals with each model's rate and coefficient of variation."""
    times: list[F64] = []
    models: list[I64] = []
    for m, (rate, cv) in enumerate(zip(instance.rate_per_s.tolist(), instance.cv.tolist(), strict=True)):
        if rate <= 0:
            continue
        shape = 1.0 / cv**2
        wanted = int(rate * duration_s * 1.5 + 20.0 * cv + 20)
        at = np.cumsum(rng.gamma(shape, 1.0 / (rate * shape), size=wanted))
        at = at[at < duration_s]
        times.append(at)
        models.append(np.full(len(at), m, dtype=np.int64))
    at_s = np.concatenate(times) if times else np.zeros(0)
    model = np.concatenate(models) if models else np.zeros(0, dtype=np.int64)
    order = np.argsort(at_s, kind="stable")
    return Arrivals(at_s[order], model[order])
