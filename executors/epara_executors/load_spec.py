"""What clients of one service at one origin send, and when: finite schedules from a seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from epara_opt.errors import InputError, Violation


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSpec:
    """Clients of one service at one origin. Exactly one of rate_per_s, arrivals_s and streams is set."""

    service: str
    origin: str
    address: str  # of the origin's executor
    deadline_ms: float
    rate_per_s: float | None = None  # Poisson, or gamma where burstiness_cv != 1
    burstiness_cv: float = 1.0
    arrivals_s: tuple[float, ...] | None = None  # from a trace, relative to the start
    streams: int | None = None  # each sends fps frames per second, evenly
    fps: float = 0.0
    prompt_tokens: int = 16
    output_tokens: int = 0  # > 0: asked for as max_tokens
    failover: tuple[str, ...] = ()  # where clients go when their executor does not answer, nearest first

    def __post_init__(self) -> None:
        path = f"load.{self.service}@{self.origin}"
        found: list[Violation] = []
        given = sum(x is not None for x in (self.rate_per_s, self.arrivals_s, self.streams))
        for key, ok, law, value in (
            ("", given == 1, "expected exactly one of rate_per_s, arrivals_s, streams", given),
            ("deadline_ms", self.deadline_ms > 0, "expected > 0", self.deadline_ms),
            ("rate_per_s", self.rate_per_s is None or self.rate_per_s >= 0, "expected >= 0", self.rate_per_s),
            ("burstiness_cv", self.burstiness_cv > 0, "expected > 0", self.burstiness_cv),
            ("streams", self.streams is None or self.streams >= 0, "expected >= 0", self.streams),
            ("fps", self.streams is None or self.fps > 0, "expected > 0 with streams", self.fps),
        ):
            if not ok:
                found.append(Violation(path=f"{path}.{key}" if key else path, law=law, value=str(value)))
        if found:
            raise InputError(found)

    def schedule(self, duration_s: float, rng: np.random.Generator) -> list[tuple[float, str, int]]:
        """(instant, stream id or "", frame) of every request, in order."""
        if self.arrivals_s is not None:
            return [(t, "", 0) for t in sorted(self.arrivals_s) if 0 <= t < duration_s]
        if self.streams is not None:
            phases = rng.random(self.streams) / self.fps
            frames = [
                (float(phase) + k / self.fps, f"{self.origin}/{self.service}/{i}", k)
                for i, phase in enumerate(phases)
                for k in range(int(np.ceil(duration_s * self.fps)))
            ]
            return sorted(f for f in frames if f[0] < duration_s)
        return [(t, "", 0) for t in _renewals(self.rate_per_s or 0.0, self.burstiness_cv, duration_s, rng)]


def _renewals(rate_per_s: float, cv: float, duration_s: float, rng: np.random.Generator) -> Iterator[float]:
    """Gamma-distributed gaps of the given mean and coefficient of variation; Poisson arrivals for cv = 1."""
    if rate_per_s <= 0:
        return
    shape = 1.0 / cv**2
    at = 0.0
    while True:
        at += float(rng.gamma(shape, 1.0 / (rate_per_s * shape)))
        if at >= duration_s:
            return
        yield at
