"""What an executor has seen of each service: counters that only grow, and recent latencies."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import ClassVar

from epara_executors.agent.buckets import DURATIONS_S, Buckets
from epara_opt.control.ports import ServiceObservation


@dataclass(slots=True)
class ServiceCounters:
    """Counters of one service since this process started; semantics of ports.ServiceObservation."""

    WINDOW_S: ClassVar[float] = 30.0

    service: str
    arrived: int = 0
    on_time: int = 0
    late: int = 0
    shed: int = 0
    failed: int = 0
    forwarded: int = 0
    served: int = 0
    e2e_s: Buckets = field(default_factory=lambda: Buckets(DURATIONS_S))
    _latencies_ms: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=4096))  # (at, ms)

    def answered(self, *, at: float, latency_ms: float, deadline_ms: float) -> None:
        """A request that entered the edge here got its answer. deadline_ms <= 0: none is known."""
        if deadline_ms <= 0 or latency_ms <= deadline_ms:
            self.on_time += 1
        else:
            self.late += 1
        self._latencies_ms.append((at, latency_ms))
        self.e2e_s.observe(latency_ms / 1000.0)

    def observation(
        self,
        *,
        at: float,
        streams: int,
        arrived_per_s: float = 0.0,
        with_histogram: bool = False,
        with_recent: bool = True,
    ) -> ServiceObservation:
        while self._latencies_ms and self._latencies_ms[0][0] < at - self.WINDOW_S:
            self._latencies_ms.popleft()
        recent = sorted(ms for _, ms in self._latencies_ms) if with_recent else []
        return ServiceObservation(
            service=self.service,
            arrived=self.arrived,
            on_time=self.on_time,
            late=self.late,
            shed=self.shed,
            failed=self.failed,
            forwarded=self.forwarded,
            served=self.served,
            streams=streams,
            latency_p50_ms=_percentile(recent, 0.50),
            latency_p99_ms=_percentile(recent, 0.99),
            arrived_per_s=arrived_per_s,
            e2e_s=self.e2e_s.histogram() if with_histogram else None,
        )


def _percentile(ascending: list[float], share: float) -> float:
    """Nearest rank; 0 of nothing."""
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)] if ascending else 0.0
