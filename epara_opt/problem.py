"""The placement problem: what could be placed, what it could earn, and what it would cost to move.

Everything a planner, the checker and brute force need, derived once from topology, profiles, demand and the
plan in force. No solver is known here.

- A *content* is what one device group may hold: one to `max_tenants` services with their configurations, which
  fit in memory together and stay timely in each other's company.
- An *edge* (service, origin, server) exists where some network time is left over for the server's work.
- A *resident* is a group that already runs; a tenant that is not resident earns nothing while it loads.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property

from epara_opt.domain.category import Category, Scale, categorize, is_timely
from epara_opt.domain.parallel import ParallelConfig
from epara_opt.domain.performance import Performance, configurations, evaluate
from epara_opt.domain.profile import ProfileCatalogue
from epara_opt.domain.service import Demand, Service
from epara_opt.domain.topology import Path, Topology
from epara_opt.errors import InputError, Violation
from epara_opt.plan import Plan
from epara_opt.units import bytes_to_gib

MIN_EARNING = 0.05  # of a cycle, for tenants that load for all of it


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """Service l from origin s to server n. A tenant may use it iff its response_ms <= slack_ms."""

    service: str
    origin: str
    server: str
    path: Path
    network_ms: float  # round trip and both transfers
    slack_ms: float  # deadline - network_ms; >= 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """A group in force: keeping any subset of its services on the same devices costs no load time."""

    group: str
    server: str
    device_type: str
    devices: tuple[int, ...]
    tp: int
    pp: int
    services: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class PlacementProblem:
    topology: Topology
    catalogue: ProfileCatalogue
    rules: PlanningRules
    categories: Mapping[str, Category]
    demand: tuple[Demand, ...]  # offered > 0 only
    edges: tuple[Edge, ...]
    contents: Mapping[str, tuple[Content, ...]]  # by device type
    residents: tuple[Resident, ...] = ()
    notes: tuple[str, ...] = ()
    misfits: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])  # per service, why not

    @cached_property
    def edges_by_service_server(self) -> Mapping[tuple[str, str], tuple[Edge, ...]]:
        """Edges with offered demand, tightest slack first."""
        table: dict[tuple[str, str], list[Edge]] = {}
        for edge in self.edges:
            table.setdefault((edge.service, edge.server), []).append(edge)
        return {k: tuple(sorted(v, key=lambda e: (e.slack_ms, e.origin))) for k, v in table.items()}

    @cached_property
    def offered(self) -> Mapping[tuple[str, str], float]:
        """(service, origin) to work offered."""
        return {(d.service, d.origin): d.offered for d in self.demand}

    def service(self, name: str) -> Service:
        return self.topology.services[name]

    def earning_share(self, tenant: Tenant, resident: Resident | None) -> float:
        """Share of the coming cycle for which a tenant can serve: 1 if it already runs there, or if nothing runs yet.

        At least `MIN_EARNING`: a model that loads for longer than a cycle serves in those after it. If it earned
        nothing, idle devices would stay empty for ever.
        """
        if not self.residents or (resident is not None and tenant.service in resident.services):
            return 1.0
        return max(MIN_EARNING, 1.0 - tenant.load_s / self.rules.cycle_s)

    def useful_at(self, content: Content, server: str) -> bool:
        """Whether every tenant could serve some offered demand from this server in time, enough to fill its batch."""
        for t in content.tenants:
            edges = self.edges_by_service_server.get((t.service, server), ())
            reach = sum(self.offered[e.service, e.origin] for e in edges if e.slack_ms >= t.response_ms)
            if reach <= 0 or not fills_batch(self.service(t.service), t.config, reach):
                return False
        return True

    def link_loads(self, edge: Edge) -> list[tuple[tuple[str, str], float]]:
        """Bytes per second that one unit of work puts on each directed link."""
        service = self.service(edge.service)
        there = service.request.input_bytes * service.events_per_work
        back = service.request.output_bytes * service.events_per_work
        loads = [(hop, there) for hop in edge.path.hops] + [((b, a), back) for a, b in edge.path.hops]
        return [(hop, load) for hop, load in loads if load > 0]

    @cached_property
    def digest(self) -> str:
        """sha256 over everything that decides what a plan means; 16 hex digits."""
        text = json.dumps([self.topology.digest, [asdict(d) for d in self.demand], asdict(self.rules)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def fills_batch(service: Service, config: ParallelConfig, offered: float) -> bool:
    """Whether the work in reach can fill a batch.

    Requests pile up behind a busy replica until they do. A stream gives one group of `frames` consecutive frames to a
    batch, so a batch of b groups needs b streams; with fewer, multi-frame batches are how a device is kept busy.
    """
    return not service.is_stream or config.batch <= math.ceil(offered)


def build_problem(
    topology: Topology,
    catalogue: ProfileCatalogue,
    *,
    rules: PlanningRules | None = None,
    demand: Sequence[Demand] | None = None,
    in_force: Plan | None = None,
    down: frozenset[str] = frozenset(),
) -> PlacementProblem:
    """Derive the problem.

    demand: what to plan for; the topology's own when None (the live cycle passes forecasts).
    in_force: the plan running now; its groups on servers that still stand become residents.
    down: servers that do not answer. They host nothing; demand that enters there is gone with them.
    """
    rules = rules or PlanningRules()
    _check_names(topology, demand or ())
    wanted = tuple(d for d in (topology.demand if demand is None else demand) if d.offered > 0 and d.origin not in down)
    categories = {s.name: categorize(s, topology, catalogue) for s in topology.services.values()}
    misfits: dict[str, tuple[str, ...]] = {}
    hosts = [s.name for s in topology.servers.values() if s.devices and s.name not in down]
    edges: list[Edge] = []
    for d in wanted:
        service = topology.services[d.service]
        for host in hosts:
            path = topology.path(d.origin, host)
            if path is None or any(end in down for hop in path.hops for end in hop):
                continue
            network_ms = path.rtt_ms + path.transfer_ms(service.request.input_bytes + service.request.output_bytes)
            slack_ms = service.deadline_ms - network_ms
            if slack_ms >= 0:
                edges.append(
                    Edge(
                        service=d.service,
                        origin=d.origin,
                        server=host,
                        path=path,
                        network_ms=network_ms,
                        slack_ms=slack_ms,
                    )
                )
    slacks: dict[str, list[float]] = {}
    for edge in edges:
        slacks.setdefault(edge.service, []).append(edge.slack_ms)
    for values in slacks.values():
        values.sort()
    notes: list[str] = []
    contents: dict[str, tuple[Content, ...]] = {}
    asked = {d.service for d in wanted}
    types = sorted({p.type for h in hosts for p in topology.servers[h].devices})
    for name in sorted(asked):
        misfits[name] = tuple(_misfits(topology.services[name], categories[name], topology, catalogue, types))
    for device_type in types:
        made, note = _contents(topology, catalogue, categories, device_type, sorted(asked), slacks, rules)
        contents[device_type] = made
        notes.extend(note)
    return PlacementProblem(
        topology=topology,
        catalogue=catalogue,
        rules=rules,
        categories=categories,
        demand=wanted,
        edges=tuple(edges),
        contents=contents,
        residents=residents_of(in_force, topology, down),
        notes=tuple(notes),
        misfits=misfits,
    )


def _check_names(topology: Topology, demand: Sequence[Demand]) -> None:
    """Forecasts may be older than the topology."""
    found = [
        Violation(path=f"demand.{d.service}@{d.origin}", law=f"expected {what} of the topology", value=name)
        for d in demand
        for what, name, known in (
            ("a service", d.service, topology.services),
            ("a server", d.origin, topology.servers),
        )
        if name not in known
    ]
    if found:
        raise InputError(found)


def residents_of(plan: Plan | None, topology: Topology, down: frozenset[str]) -> tuple[Resident, ...]:
    """Groups of a plan that still stand on this topology."""
    if plan is None:
        return ()
    groups: dict[str, Resident] = {}
    for r in plan.replicas:
        server = topology.servers.get(r.server)
        if server is None or r.server in down or r.service not in topology.services:
            continue
        if not any(p.type == r.device_type and max(r.devices) < p.count for p in server.devices):
            continue
        known = groups.get(r.group)
        services = (known.services if known else frozenset()) | {r.service}
        groups[r.group] = Resident(
            group=r.group,
            server=r.server,
            device_type=r.device_type,
            devices=r.devices,
            tp=r.tp,
            pp=r.pp,
            services=services,
        )
    return tuple(groups[g] for g in sorted(groups))


def _shapes_allowed(category: Category, shape: tuple[int, int]) -> bool:
    return category.scale is Scale.MULTI_DEVICE or shape == (1, 1)


def _misfits(
    service: Service, category: Category, topology: Topology, catalogue: ProfileCatalogue, types: Sequence[str]
) -> list[str]:
    """Why a service runs on none of the device types; empty as soon as it runs on one."""
    reasons: list[str] = []
    for device_type in types:
        memory = topology.device_types[device_type].memory_bytes
        shapes = {
            s: p
            for s, p in catalogue.shapes(service.model.profile_name, device_type).items()
            if _shapes_allowed(category, s)
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


def _contents(
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
            if not _shapes_allowed(categories[name], shape):
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
        content = in_company(combo, device_type=device_type, shape=shape, rules=rules)
        reach = [sum(1 for s in slacks[t.service] if s >= t.response_ms) for t in content.tenants]
        if 0 in reach or not keeps_pace(topology, combo):
            continue
        hunger = [-p.config.batch if topology.services[p.service].is_stream else 0 for p in combo]  # see fills_batch
        mark = (*(p.work_per_s for p in combo), *map(float, reach), *map(float, hunger))
        if any(all(a >= b for a, b in zip(other, mark, strict=True)) for other, _ in front):
            continue
        front = [(o, c) for o, c in front if not all(a >= b for a, b in zip(mark, o, strict=True))]
        front.append((mark, content))
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


def reduced(problem: PlacementProblem, content: Content, services: frozenset[str]) -> Content:
    """The content with only these services left; each answers no later than before."""
    if services >= content.services:
        return content
    kept = [
        evaluate(
            problem.service(t.service),
            problem.catalogue.shapes(problem.service(t.service).model.profile_name, content.device_type)[
                content.tp, content.pp
            ],
            t.config,
        )
        for t in content.tenants
        if t.service in services
    ]
    return in_company(kept, device_type=content.device_type, shape=(content.tp, content.pp), rules=problem.rules)
