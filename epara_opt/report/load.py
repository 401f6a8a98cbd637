"""What a load run measured, as reports show it: counts per service and window of time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadWindow:
    """Requests (or frames) of one service that were sent in [at, at + duration_s)."""

    at: float  # Unix time
    duration_s: float
    service: str
    sent: int
    on_time: int  # answered within the service's deadline
    late: int = 0
    shed: int = 0  # refused with RESOURCE_EXHAUSTED
    failed: int = 0  # any other answer, or none
    p50_ms: float | None = None  # of those answered
    p99_ms: float | None = None

    @property
    def slo_attainment(self) -> float | None:
        """Share of what was sent that was answered in time; None where nothing was sent."""
        return self.on_time / self.sent if self.sent else None


def per_service(windows: Iterable[LoadWindow]) -> tuple[LoadWindow, ...]:
    """One window per service over the whole run. Percentiles do not add up: the worst window's stands."""
    total: dict[str, LoadWindow] = {}
    for w in sorted(windows, key=lambda w: w.at):
        known = total.get(w.service)
        if known is None:
            total[w.service] = w
            continue
        total[w.service] = replace(
            known,
            duration_s=max(known.at + known.duration_s, w.at + w.duration_s) - known.at,
            sent=known.sent + w.sent,
            on_time=known.on_time + w.on_time,
            late=known.late + w.late,
            shed=known.shed + w.shed,
            failed=known.failed + w.failed,
            p50_ms=_worse(known.p50_ms, w.p50_ms),
            p99_ms=_worse(known.p99_ms, w.p99_ms),
        )
    return tuple(total.values())


def over_time(windows: Iterable[LoadWindow]) -> tuple[tuple[float, int, int], ...]:
    """(middle of the window, sent, on_time) over all services, in time order."""
    sums: dict[float, tuple[int, int]] = {}
    for w in windows:
        middle = w.at + w.duration_s / 2
        sent, on_time = sums.get(middle, (0, 0))
        sums[middle] = (sent + w.sent, on_time + w.on_time)
    return tuple((at, *sums[at]) for at in sorted(sums))


def _worse(a: float | None, b: float | None) -> float | None:
    return b if a is None else a if b is None else max(a, b)
