"""What the demo measured, phase by phase: goodput, attainment, time to recover. From clients' records alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from epara_opt.cli.load import percentile

if TYPE_CHECKING:
    from epara_executors.load_report import LoadReport

    from epara_opt.domain.service import Service

RECOVERED = 0.95  # of what is sent in one second, answered in time


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    name: str
    start_s: float
    end_s: float
    offered: float  # weighted work per second, as in a plan's objective
    goodput: float  # the same, answered within the objective
    slo_attainment: float  # of requests and frames, unweighted
    timeouts: int  # not answered within the client's deadline of three objectives
    p99_ms: float


def phase(name: str, report: LoadReport, services: Mapping[str, Service], start_s: float, end_s: float) -> Phase:
    """Figures of what was sent in [start_s, end_s)."""
    part = report.between(start_s, end_s)
    length = max(end_s - start_s, 1e-9)
    offered = goodput = 0.0
    for r in part.records:
        worth = services[r.service].weight / services[r.service].events_per_work / length
        offered += worth
        goodput += worth * (r.outcome == "on_time")
    answered = sorted(r.latency_ms for r in part.records if r.outcome in ("on_time", "late"))
    return Phase(
        name=name,
        start_s=start_s,
        end_s=end_s,
        offered=offered,
        goodput=goodput,
        slo_attainment=part.slo_attainment,
        timeouts=sum(r.outcome == "timeout" for r in part.records),
        p99_ms=percentile(answered, 0.99) or 0.0,
    )


def recovery_s(report: LoadReport, since_s: float, until_s: float) -> float | None:
    """Seconds from `since_s` until one second's requests are answered in time again; None: not before `until_s`."""
    second = since_s
    while second + 1.0 <= until_s:
        part = report.between(second, second + 1.0)
        if part.records and part.slo_attainment >= RECOVERED:
            return second - since_s
        second += 0.5
    return None


def as_json(phases: Sequence[Phase], more: Mapping[str, Any]) -> dict[str, Any]:
    return {"phases": [asdict(p) for p in phases], **more}
