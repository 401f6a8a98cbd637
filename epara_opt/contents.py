"""Contents: what one device group may hold, and which of all that could be are worth having.

A content is one to `max_tenants` services with their configurations, which fit in memory together and stay timely in
each other's company. Derived from profiles alone, per device type; no solver, no server, no demand but its slacks.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from epara_opt.domain.category import Category, Scale, is_timely
from epara_opt.domain.parallel import ParallelConfig
from epara_opt.domain.performance import Performance, configurations, evaluate
from epara_opt.domain.profile import ProfileCatalogue
from epara_opt.domain.service import Service
from epara_opt.domain.topology import Topology
from epara_opt.errors import InputError, Violation
from epara_opt.units import bytes_to_gib


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanningRules:
    """What the operator may tune. Part of the plan's digest."""

    max_utilization: float = 0.8  # of a group's time; the rest absorbs burstiness that averages do not show
    max_tenants: int = 3  # services that may time-share one group; lowered, with a note, when contents explode
    max_contents: int = 6000  # per device type; keeps the program solvable by general solvers
    cycle_s: float = 30.0  # planning cycle; a replica that loads for load_s earns 1 - load_s / cycle_s of it

    def __post_init__(self) -> None:
        for key, ok, law in (
            ("max_utilization", 0 < self.max_utilization <= 1, "expected in (0, 1]"),
            ("max_tenants", self.max_tenants >= 1, "expected >= 1"),
            ("max_contents", self.max_contents >= 1, "expected >= 1"),
            ("cycle_s", self.cycle_s > 0, "expected > 0"),
        ):
            if not ok:
                raise InputError(Violation(path=f"rules.{key}", law=law, value=str(getattr(self, key))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """A service in one content."""

    service: str
    config: ParallelConfig
    response_ms: float  # in this content's company
    work_per_s: float  # at the group's full share, max_utilization applied
    memory_bytes: int  # per device
    load_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What one device group of `tp * pp` devices of one type may hold. Tenants in service order."""

    device_type: str
    tp: int
    pp: int
    tenants: tuple[Tenant, ...]

    @property
    def num_devices(self) -> int:
        return self.tp * self.pp

    @property
    def services(self) -> frozenset[str]:
        return frozenset(t.service for t in self.tenants)


def fills_batch(service: Service, config: ParallelConfig, offered: float) -> bool:
    """Whether the work in reach can fill a batch.

    Requests pile up behind a busy replica until they do. A stream gives one group of `frames` consecutive frames to a
    batch, so a batch of b groups needs b streams; with fewer, multi-frame batches are how a device is kept busy.
    """
    return not service.is_stream or config.batch <= math.ceil(offered)


def shape_allowed(category: Category, shape: tuple[int, int]) -> bool:
    return category.scale is Scale.MULTI_DEVICE or shape == (1, 1)


def misfits_of(
    service: Service, category: Category, topology: Topology, catalogue: ProfileCatalogue, types: Sequence[str]
) -> list[str]:
    """Why a service runs on none of the device types; empty as soon as it runs on one."""
    reasons: list[str] = []
    for device_type in types:
        memory = topology.device_types[device_type].memory_bytes
        shapes = {
            s: p
            for s, p in catalogue.shapes(service.model.profile_name, device_type).items()
            if shape_allowed(category, s)
        }
        options = [evaluate(service, p, c) for p in shapes.values() for c in configurations(service, p)]
        if not options:
            reasons.append(f"no_profile: {service.model.profile_name} was never measured on {device_type}")
        elif all(o.memory_bytes > memory for o in options):
            least = min(o.memory_bytes for o in options)
            reasons.append(
                f"no_memory: needs {bytes_to_gib(least):.2f} GiB per {device_type}, "
                f"which has {bytes_to_gib(memory):.2f}"
            )
        elif not any(o.memory_bytes <= memory and is_timely(service, o.response_ms, o.tpot_ms) for o in options):
            best = min(o.response_ms for o in options if o.memory_bytes <= memory)
            reasons.append(
                f"no_route_in_time: {device_type} answers in {best:.0f} ms at best, "
                f"deadline {service.deadline_ms:.0f} ms"
            )
        else:
            return []
    return reasons


def contents_of(
    topology: Topology,
    catalogue: ProfileCatalogue,
    categories: Mapping[str, Category],
    device_type: str,
    services: Sequence[str],
    slacks: Mapping[str, Sequence[float]],
    rules: PlanningRules,
) -> tuple[tuple[Content, ...], list[str]]:
    """Every content of this device type that is not dominated, and a note if tenants had to be limited.

    One content dominates another of the same shape and services if no tenant has less rate, fewer edges in reach
    (slack >= response), or needs more streams to fill its batch: it can replace the other in any plan.
    """
    memory = topology.device_types[device_type].memory_bytes
    options: dict[tuple[int, int], dict[str, list[Performance]]] = {}
    for name in services:
        service = topology.services[name]
        top_slack = slacks[name][-1] if slacks.get(name) else -math.inf
        for shape, profile in catalogue.shapes(service.model.profile_name, device_type).items():
            if not shape_allowed(categories[name], shape):
                continue
            for config in configurations(service, profile):
                p = evaluate(service, profile, config)
                if (
                    p.memory_bytes <= memory
                    and p.response_ms <= top_slack
                    and is_timely(service, p.response_ms, p.tpot_ms)
                ):
                    options.setdefault(shape, {}).setdefault(name, []).append(p)
    kept: dict[int, list[Content]] = {}
    notes: list[str] = []
    for num_tenants in range(1, rules.max_tenants + 1):
        work = sum(
            math.prod(len(by_name[n]) for n in names)
            for by_name in options.values()
            for names in itertools.combinations(by_name, num_tenants)
        )
        made: list[Content] | None = None
        if work <= 100 * rules.max_contents:
            made = [
                content
                for shape, by_name in sorted(options.items())
                for names in itertools.combinations(sorted(by_name), num_tenants)
                for content in _undominated(
                    topology, device_type, shape, [by_name[n] for n in names], memory, slacks, rules
                )
            ]
        if made is None or sum(map(len, kept.values())) + len(made) > rules.max_contents:
            notes.append(
                f"{device_type}: groups hold at most {num_tenants - 1} service(s) in this plan: more would "
                f"exceed max_contents = {rules.max_contents}; the bound holds under that rule"
            )
            break
        kept[num_tenants] = made
    return tuple(c for made in kept.values() for c in made), notes


def _undominated(
    topology: Topology,
    device_type: str,
    shape: tuple[int, int],
    choices: Sequence[Sequence[Performance]],
    memory: int,
    slacks: Mapping[str, Sequence[float]],
    rules: PlanningRules,
) -> list[Content]:
    front: list[tuple[tuple[float, ...], Content]] = []
    for combo in itertools.product(*choices):
        if sum(p.memory_bytes for p in combo) > memory:
            continue
        total_quantum_ms = sum(p.quantum_ms for p in combo)
        reach = [
            len(slacks[p.service])
            - bisect_left(slacks[p.service], p.response_in_company_ms(total_quantum_ms - p.quantum_ms))
            for p in combo
        ]
        if 0 in reach or not keeps_pace(topology, combo):
            continue
        hunger = [-p.config.batch if topology.services[p.service].is_stream else 0 for p in combo]  # see fills_batch
        mark = (*(p.work_per_s for p in combo), *map(float, reach), *map(float, hunger))
        if any(all(a >= b for a, b in zip(other, mark, strict=True)) for other, _ in front):
            continue
        front = [(o, c) for o, c in front if not all(a >= b for a, b in zip(mark, o, strict=True))]
        front.append((mark, in_company(combo, device_type=device_type, shape=shape, rules=rules)))
    return [content for _, content in front]


def in_company(
    performances: Sequence[Performance], *, device_type: str, shape: tuple[int, int], rules: PlanningRules
) -> Content:
    """The content in which these share a group: each waits for the others' pieces."""
    total_quantum_ms = sum(p.quantum_ms for p in performances)
    tenants = tuple(
        Tenant(
            service=p.service,
            config=p.config,
            response_ms=p.response_in_company_ms(total_quantum_ms - p.quantum_ms),
            work_per_s=p.work_per_s * rules.max_utilization,
            memory_bytes=p.memory_bytes,
            load_s=p.load_s,
        )
        for p in sorted(performances, key=lambda p: p.service)
    )
    return Content(device_type=device_type, tp=shape[0], pp=shape[1], tenants=tenants)


def keeps_pace(topology: Topology, performances: Sequence[Performance]) -> bool:
    """Whether each stays within its service's deadline and token pace in the others' company."""
    total_quantum_ms = sum(p.quantum_ms for p in performances)
    return all(
        is_timely(topology.services[p.service], p.response_in_company_ms(others), p.tpot_in_company_ms(others))
        for p in performances
        for others in (total_quantum_ms - p.quantum_ms,)
    )
