"""Which part of its group's time a tenant may be planned to fill; the rest absorbs bursts that averages do not show.

Without a target it is the rule `max_utilization` for everyone. With `on_time_target` it is what keeps that share of the
requests on time (see domain/utilization.py), at most `max_utilization`; by service, configuration and company. Streams
of frames are periodic and keep `max_utilization`. Planner, checker and re-routing all ask here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from epara_opt.domain.performance import Performance
from epara_opt.domain.service import Demand, Service
from epara_opt.domain.utilization import Kind, seen_cv, utilizations

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class BusyTime:
    """The rules of it, for one demand."""

    max_utilization: float
    on_time_target: float | None = None
    services: Mapping[str, Service] = field(default_factory=dict[str, Service])
    arrivals: Mapping[str, Sequence[tuple[float, float]]] = field(
        default_factory=dict[str, Sequence[tuple[float, float]]]
    )
    # by service: rate and CV at each origin

    @staticmethod
    def of(
        *,
        max_utilization: float,
        on_time_target: float | None,
        services: Mapping[str, Service],
        demand: Sequence[Demand],
    ) -> BusyTime:
        arrivals: dict[str, list[tuple[float, float]]] = {}
        for d in demand:
            arrivals.setdefault(d.service, []).append((d.offered, d.burstiness_cv))
        return BusyTime(
            max_utilization=max_utilization, on_time_target=on_time_target, services=services, arrivals=arrivals
        )

    def part(self, p: Performance, others_ms: float) -> float:
        """Of the group's time, where others' pieces take `others_ms` a turn."""
        if self.on_time_target is None:
            return self.max_utilization
        return float(self.parts([p], np.array([others_ms]))[0])

    def parts(self, performances: Sequence[Performance], others_ms: FloatArray) -> FloatArray:
        """(M,) of M performances, each in its own company (M,)."""
        found = np.full(len(performances), self.max_utilization)
        if self.on_time_target is None:
            return found
        by_service: dict[str, list[int]] = {}
        for i, p in enumerate(performances):
            by_service.setdefault(p.service, []).append(i)
        for name, mine in by_service.items():
            service = self.services[name]
            if not service.is_stream:
                index = np.array(mine)
                held = self._held([performances[i] for i in mine], service, others_ms[index])
                found[index] = np.minimum(self.max_utilization, held)
        return found

    def _held(self, performances: Sequence[Performance], service: Service, others_ms: FloatArray) -> FloatArray:
        """(M,) what the table allows configurations of one service."""
        target = self.on_time_target
        assert target is not None
        slots = np.array([p.tpot_ms > 0 for p in performances])
        batch_ms = np.array([p.batch_ms for p in performances])
        response_ms = np.array(
            [p.response_in_company_ms(float(o)) for p, o in zip(performances, others_ms, strict=True)]
        )
        pieces = 1.0 + service.request.output_tokens
        time_left = np.where(
            slots,
            (service.deadline_ms - response_ms) / (batch_ms + pieces * others_ms),
            (service.deadline_ms - 2.0 * others_ms) / batch_ms,
        )
        batch = np.array([float(p.config.batch * (p.config.pp if p.tpot_ms > 0 else 1)) for p in performances])
        cv = seen_cv(self.arrivals.get(service.name, ()), np.array([p.work_per_s for p in performances]))
        found = np.empty(len(performances))
        for kind, mine in ((Kind.SLOTS, slots), (Kind.BATCHES, ~slots)):
            found[mine] = utilizations(kind, target=target, cv=cv[mine], batch=batch[mine], time_left=time_left[mine])
        return found
