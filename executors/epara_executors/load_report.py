"""What clients saw: every request with its outcome, and its sums by service and window."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

OUTCOMES: tuple[str, ...] = ("on_time", "late", "shed", "failed", "timeout")


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    service: str
    origin: str
    sent_at: float  # seconds since the load began, as scheduled
    latency_ms: float
    outcome: str  # one of OUTCOMES
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceWindow:
    """One service in one window, by the instant requests were sent."""

    service: str
    starts_at: float  # seconds since the load began
    offered: int
    on_time: int
    slo_attainment: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSummary:
    service: str
    offered: int
    outcomes: dict[str, int]
    slo_attainment: float  # on time / offered; 1 where nothing was offered
    goodput_per_s: float
    latency_p50_ms: float  # of those answered
    latency_p95_ms: float
    latency_p99_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What clients saw."""

    started_at: float  # Unix time
    duration_s: float
    records: tuple[RequestRecord, ...] = field(repr=False)

    def between(self, start_s: float, end_s: float) -> LoadReport:
        """Only what was sent in [start_s, end_s): before, during and after a change."""
        kept = tuple(r for r in self.records if start_s <= r.sent_at < end_s)
        return LoadReport(started_at=self.started_at, duration_s=max(0.0, end_s - start_s), records=kept)

    def windows(self, *, window_s: float = 1.0) -> tuple[ServiceWindow, ...]:
        counts: dict[tuple[str, int], list[int]] = {}
        for r in self.records:
            row = counts.setdefault((r.service, int(r.sent_at // window_s)), [0, 0])
            row[0] += 1
            row[1] += r.outcome == "on_time"
        return tuple(
            ServiceWindow(service=s, starts_at=i * window_s, offered=n, on_time=k, slo_attainment=k / n)
            for (s, i), (n, k) in sorted(counts.items())
        )

    def services(self) -> tuple[ServiceSummary, ...]:
        return tuple(self._summary(name) for name in sorted({r.service for r in self.records}))

    @property
    def slo_attainment(self) -> float:
        return sum(r.outcome == "on_time" for r in self.records) / len(self.records) if self.records else 1.0

    @property
    def goodput_per_s(self) -> float:
        """Requests and frames on time per second, over all services."""
        on_time = sum(r.outcome == "on_time" for r in self.records)
        return on_time / self.duration_s if self.duration_s > 0 else 0.0

    def _summary(self, service: str) -> ServiceSummary:
        mine = [r for r in self.records if r.service == service]
        answered = [r.latency_ms for r in mine if r.outcome in ("on_time", "late")]
        outcomes = {o: sum(r.outcome == o for r in mine) for o in OUTCOMES}
        p50, p95, p99 = (float(p) for p in np.percentile(answered, [50, 95, 99])) if answered else (0.0, 0.0, 0.0)
        return ServiceSummary(
            service=service,
            offered=len(mine),
            outcomes=outcomes,
            slo_attainment=outcomes["on_time"] / len(mine) if mine else 1.0,
            goodput_per_s=outcomes["on_time"] / self.duration_s if self.duration_s > 0 else 0.0,
            latency_p50_ms=p50,
            latency_p95_ms=p95,
            latency_p99_ms=p99,
        )

    def to_dict(self, *, records: bool = False) -> dict[str, Any]:
        made: dict[str, Any] = {
            "started_at": self.started_at,
            "duration_s": self.duration_s,
            "slo_attainment": self.slo_attainment,
            "goodput_per_s": self.goodput_per_s,
            "services": [asdict(s) for s in self.services()],
            "windows": [asdict(w) for w in self.windows()],
        }
        if records:
            made["records"] = [asdict(r) for r in self.records]
        return made

    def to_json(self, *, records: bool = False) -> str:
        return json.dumps(self.to_dict(records=records), indent=1)
