"""Observations counted in fixed buckets: a bisection and an increment each, whatever is later asked of them."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from statistics import median
from typing import Final

from epara_opt.control.ports import BatchTime, Histogram, ReplicaHistograms

DURATIONS_S: Final = tuple(2.0**k / 2000.0 for k in range(18))  # 0.5 ms to 65.536 s, each twice the one before
ROWS: Final = tuple(float(2**k) for k in range(9))  # 1 to 256
RECENT_BATCHES: Final = 31  # of one size, whose median tells how fast the device is now


class Buckets:
    """A histogram while it is being filled. The bounds never change, so that any two can be added up."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def histogram(self) -> Histogram:
        """As it is now."""
        return Histogram(bounds=self._bounds, counts=tuple(self._counts), sum=self._sum)


class _BatchTimes:
    __slots__ = ("latest_ms", "num")

    def __init__(self) -> None:
        self.num = 0
        self.latest_ms: deque[float] = deque(maxlen=RECENT_BATCHES)


class ReplicaMeter:
    """What one replica has been seen to do since the process started; semantics of ports.ReplicaHistograms."""

    __slots__ = ("_batches", "batch_rows", "e2e_s", "first_token_s", "per_token_s", "queue_s", "service_s")

    def __init__(self) -> None:
        self.queue_s = Buckets(DURATIONS_S)
        self.service_s = Buckets(DURATIONS_S)
        self.e2e_s = Buckets(DURATIONS_S)
        self.first_token_s = Buckets(DURATIONS_S)
        self.per_token_s = Buckets(DURATIONS_S)
        self.batch_rows = Buckets(ROWS)
        self._batches: dict[int, _BatchTimes] = {}  # by rows, of which the batch limit allows only so many

    def batch(self, rows: int, *, device_ms: float) -> None:
        """A batch of so many rows took the device so long."""
        times = self._batches.get(rows)
        if times is None:
            times = self._batches[rows] = _BatchTimes()
        times.num += 1
        times.latest_ms.append(device_ms)

    def batch_times(self) -> tuple[BatchTime, ...]:
        """By rows."""
        return tuple(
            BatchTime(rows=rows, num_batches=t.num, median_ms=median(t.latest_ms))
            for rows, t in sorted(self._batches.items())
        )

    def histograms(self) -> ReplicaHistograms:
        """As they are now."""
        return ReplicaHistograms(
            queue_s=self.queue_s.histogram(),
            service_s=self.service_s.histogram(),
            e2e_s=self.e2e_s.histogram(),
            first_token_s=self.first_token_s.histogram(),
            per_token_s=self.per_token_s.histogram(),
            batch_rows=self.batch_rows.histogram(),
        )
