"""Changes that an operator could make to an edge: what to buy, widen or promise. Each gives a whole new topology.

Changes are proposed from the problem's own numbers, never by trying: a deadline is raised to the soonest answer there
is, memory to what the smallest configuration needs. Whether a change pays is found by planning again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from epara_opt.contents import least_responses, shape_allowed
from epara_opt.domain.category import is_timely
from epara_opt.domain.performance import configurations, evaluate
from epara_opt.domain.topology import Topology
from epara_opt.errors import InputError, Violation
from epara_opt.problem import PlacementProblem
from epara_opt.units import GIB, bytes_to_gib

MEMORY_STEP_GIB = 0.25  # what is asked for is rounded up to it
SLO_STEP_MS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One thing to change."""

    name: str  # as an operator would say it: "one more l4 at edge-b"
    kind: str  # device | memory | link | slo
    apply: Callable[[Topology], Topology]


def more_devices(server: str, device_type: str, count: int = 1) -> Change:
    """More devices in a pool that the server has."""

    def apply(topology: Topology) -> Topology:
        at = topology.servers[server]
        if not any(p.type == device_type for p in at.devices):
            law = "expected a device type that the server has"
            raise InputError(Violation(path=f"servers.{server}.devices", law=law, value=device_type))
        pools = tuple(replace(p, count=p.count + count) if p.type == device_type else p for p in at.devices)
        return replace(topology, servers={**topology.servers, server: replace(at, devices=pools)}, digest="")

    number = "one more" if count == 1 else f"{count} more"
    return Change(name=f"{number} {device_type} at {server}", kind="device", apply=apply)


def more_memory(topology: Topology, device_type: str, to_bytes: float) -> Change:
    """Devices of a type with at least so much memory, everywhere."""
    now = bytes_to_gib(topology.device_types[device_type].memory_bytes)
    then = math.ceil(to_bytes / GIB / MEMORY_STEP_GIB) * MEMORY_STEP_GIB

    def apply(topology: Topology) -> Topology:
        larger = replace(topology.device_types[device_type], memory_bytes=int(then * GIB))
        return replace(topology, device_types={**topology.device_types, device_type: larger}, digest="")

    return Change(
        name=f"memory per {device_type} {now:g} to {then:g} GiB (+{then - now:g} GiB)", kind="memory", apply=apply
    )


def wider_link(a: str, b: str, factor: float) -> Change:
    """More bandwidth on one link, both ways."""

    def apply(topology: Topology) -> Topology:
        links = tuple(
            replace(k, bandwidth_bytes_per_s=k.bandwidth_bytes_per_s * factor) if {a, b} == set(k.between) else k
            for k in topology.links
        )
        return replace(topology, links=links, digest="")

    return Change(name=f"{factor:g} times the bandwidth of {a} - {b}", kind="link", apply=apply)


def longer_deadline(topology: Topology, service: str, to_ms: float) -> Change:
    """A service that may take at least so long to answer: its SLO, frame deadline or time to first token."""
    old = topology.services[service]
    key = "frame_deadline_ms" if old.is_stream else ("slo_ms" if old.slo_ms is not None else "ttft_ms")
    then = math.ceil(to_ms / SLO_STEP_MS) * SLO_STEP_MS

    def apply(topology: Topology) -> Topology:
        changed = replace(topology.services[service], **{key: then})
        return replace(topology, services={**topology.services, service: changed}, digest="")

    return Change(name=f"{key} of {service} {old.deadline_ms:g} to {then:g} ms", kind="slo", apply=apply)


def memory_for(problem: PlacementProblem, service: str) -> list[Change]:
    """For each device type that lacks it: the least memory with which the service would run there in time."""
    changes: list[Change] = []
    asked, category = problem.service(service), problem.categories[service]
    for device_type in sorted(problem.contents):
        memory = problem.topology.device_types[device_type].memory_bytes
        needs = [
            p.memory_bytes
            for shape, profile in problem.catalogue.shapes(asked.model.profile_name, device_type).items()
            if shape_allowed(category, shape)
            for p in (evaluate(asked, profile, c) for c in configurations(asked, profile))
            if is_timely(asked, p.response_ms, p.tpot_ms)
        ]
        if needs and min(needs) > memory:
            changes.append(more_memory(problem.topology, device_type, min(needs)))
    return changes


def deadline_for(problem: PlacementProblem, service: str, origin: str) -> Change | None:
    """The soonest answer that any server could give this origin; None where it is soon enough, or none can answer."""
    asked = problem.service(service)
    patient = replace(asked, **_no_deadline(asked.is_stream, asked.slo_ms is not None))
    num_bytes = asked.request.input_bytes + asked.request.output_bytes
    best = math.inf
    for server in problem.topology.servers.values():
        way = problem.path(origin, server.name) if server.name not in problem.down else None
        if way is None:
            continue
        for pool in server.devices:
            options = least_responses(
                patient, problem.categories[service], problem.topology, problem.catalogue, pool.type
            )
            for devices, response_ms in options:
                if devices <= pool.count:
                    best = min(best, way.rtt_ms + way.transfer_ms(num_bytes) + response_ms)
    if not asked.deadline_ms < best < math.inf:
        return None
    return longer_deadline(problem.topology, service, best)


def _no_deadline(is_stream: bool, by_slo: bool) -> dict[str, float]:
    long_ms = 1e9
    if is_stream:
        return {"frame_deadline_ms": long_ms}
    return {"slo_ms": long_ms} if by_slo else {"ttft_ms": long_ms}
