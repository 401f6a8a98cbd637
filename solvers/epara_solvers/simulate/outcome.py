"""What a plan would deliver of given arrivals, per service and as weighted goodput."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from epara_opt.domain.service import Service
from epara_opt.plan import Plan
from epara_opt.problem import PlacementProblem
from epara_solvers.simulate.arrivals import Arrivals
from epara_solvers.simulate.fleet import I64, SLACK_S, Fleet, first_routes, fleet_of
from epara_solvers.simulate.kernel import LATE, ON_TIME, REFUSED, simulate


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceOutcome:
    """Requests, or frames of a stream's service."""

    service: str
    offered: int
    on_time: int
    refused: int  # at once
    late: int  # let in and not on time
    goodput: float  # work on time, in the service's unit: requests/s, or streams by their part of frames on time


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    goodput: float  # weighted as the plan's objective
    duration_s: float
    services: tuple[ServiceOutcome, ...]

    @property
    def on_time_share(self) -> float:
        """Of all requests and frames; 1 where there were none."""
        offered = sum(s.offered for s in self.services)
        return sum(s.on_time for s in self.services) / offered if offered else 1.0


def simulate_plan(
    plan: Plan, problem: PlacementProblem, arrivals: Arrivals, *, planned_only: bool = False
) -> Simulated:
    """Hold a plan against arrivals. planned_only: what it leaves unserved is refused at the door, not tried."""
    fleet = fleet_of(plan, problem.topology, problem.catalogue, arrivals.entries, problem.offered)
    first = first_routes(fleet, arrivals, planned_only=planned_only)
    return summed(arrivals, outcomes(fleet, arrivals, first), problem.topology.services)


def outcomes(fleet: Fleet, arrivals: Arrivals, first: I64) -> I64:
    """(N,) what becomes of each arrival: ON_TIME, REFUSED or LATE."""
    found = np.empty(len(arrivals), dtype=np.int64)
    simulate(fleet.arrays, arrivals.at_s, arrivals.entry, arrivals.stream, first, SLACK_S, found)
    return found


def summed(arrivals: Arrivals, outcome: I64, services: Mapping[str, Service]) -> Simulated:
    """Per service in the order in which entries name them."""
    names = list(dict.fromkeys(s for s, _ in arrivals.entries))
    index = {n: i for i, n in enumerate(names)}
    of_entry = np.array([index[s] for s, _ in arrivals.entries], dtype=np.int64)
    service = of_entry[arrivals.entry] if len(arrivals) else np.zeros(0, dtype=np.int64)
    counts = {kind: np.bincount(service[outcome == kind], minlength=len(names)) for kind in (ON_TIME, REFUSED, LATE)}
    streams = _streams_on_time(arrivals, outcome, of_entry, len(names))
    found: list[ServiceOutcome] = []
    for i, name in enumerate(names):
        on_time, refused, late = (int(counts[kind][i]) for kind in (ON_TIME, REFUSED, LATE))
        found.append(
            ServiceOutcome(
                service=name,
                offered=on_time + refused + late,
                on_time=on_time,
                refused=refused,
                late=late,
                goodput=streams[i] if services[name].is_stream else on_time / arrivals.duration_s,
            )
        )
    return Simulated(
        goodput=sum(services[o.service].weight * o.goodput for o in found),
        duration_s=arrivals.duration_s,
        services=tuple(found),
    )


def _streams_on_time(arrivals: Arrivals, outcome: I64, of_entry: I64, num_services: int) -> Sequence[float]:
    """By service: over its streams, the sum of min(1, frames per second on time / fps)."""
    num = len(arrivals.stream_entry)
    is_frame = arrivals.stream >= 0
    sent = np.bincount(arrivals.stream[is_frame], minlength=num)
    good = np.bincount(arrivals.stream[is_frame & (outcome == ON_TIME)], minlength=num)
    part = np.divide(good, sent, out=np.zeros(num), where=sent > 0)
    total = np.bincount(of_entry[arrivals.stream_entry], weights=part, minlength=num_services)
    return total.tolist()
