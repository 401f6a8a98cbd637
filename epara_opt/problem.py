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
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property

import numpy as np

from epara_opt.beside import Levels, Pool, fits_in_place
from epara_opt.busy import BusyTime
from epara_opt.chains import Chains, Layout, chains_of
from epara_opt.contents import (
    Content,
    PlanningRules,
    Tenant,
    contents_of,
    fills_batch,
    in_company,
    least_responses,
    misfits_of,
)
from epara_opt.domain.category import Category, categorize
from epara_opt.domain.performance import evaluate
from epara_opt.domain.profile import ProfileCatalogue
from epara_opt.domain.service import Demand, Service
from epara_opt.domain.snapshot import topology_to_dict
from epara_opt.domain.topology import Path, Topology
from epara_opt.edges import Edge, EdgeTable, make_edges
from epara_opt.errors import InputError, Violation
from epara_opt.plan import Plan, Replica, Stage

MIN_EARNING = 0.05  # of the horizon, for tenants that load for all of it


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
    stages: tuple[Stage, ...] = ()  # of a chain over several servers; devices are those of the first
    memory: tuple[tuple[str, int], ...] = ()  # (service, bytes per device) of those known

    @property
    def places(self) -> tuple[tuple[str, str, int], ...]:
        """(server, device type, index) of every device it uses."""
        if not self.stages:
            return tuple((self.server, self.device_type, d) for d in self.devices)
        return tuple((s.server, s.device_type, d) for s in self.stages for d in s.devices)

    @property
    def memory_bytes(self) -> int:
        """Per device."""
        return sum(num_bytes for _, num_bytes in self.memory)

    @property
    def held(self) -> tuple[tuple[str, str, tuple[int, ...], int], ...]:
        """(server, device type, devices, bytes that it holds on each of them), per stage."""
        if not self.stages:
            return ((self.server, self.device_type, self.devices, self.memory_bytes),)
        return tuple((s.server, s.device_type, s.devices, s.memory_bytes) for s in self.stages)

    @property
    def cuts(self) -> tuple[tuple[str, str, int, int, int], ...]:
        """Of a chain's stages: server, device type, devices, layers [first, end)."""
        return tuple((s.server, s.device_type, len(s.devices), s.first_layer, s.end_layer) for s in self.stages)

    def holds(self, content: Content, server: str) -> bool:
        """Whether a group with this content at `server` could keep its devices: same pool and shape, same cuts."""
        return (self.server, self.device_type, self.tp, self.pp) == (
            server,
            content.device_type,
            content.tp,
            content.pp,
        ) and self.cuts == tuple((s.server, s.device_type, s.tp, s.first_layer, s.end_layer) for s in content.stages)


@dataclass(frozen=True, kw_only=True)
class PlacementProblem:
    topology: Topology
    catalogue: ProfileCatalogue
    rules: PlanningRules
    categories: Mapping[str, Category]
    demand: tuple[Demand, ...]  # offered > 0 only
    table: EdgeTable
    contents: Mapping[str, tuple[Content, ...]]  # by device type
    residents: tuple[Resident, ...] = ()
    notes: tuple[str, ...] = ()
    misfits: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])  # per service, why not

    down: frozenset[str] = frozenset()  # servers that do not answer: they host nothing and nothing crosses them
    chains: Chains = field(default_factory=Chains)  # over several servers, for services that fit on none

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """Every edge as an object, by demand and then the topology's order of servers."""
        return tuple(self.table.some(np.lexsort((self.table.server, self.table.demand))))

    def path(self, origin: str, server: str) -> Path | None:
        """Least-RTT path around the servers that are down, or None where there is none."""
        return self.topology.path(origin, server, without=self.down)

    @cached_property
    def edges_by_service_server(self) -> Mapping[tuple[str, str], tuple[Edge, ...]]:
        """Edges with offered demand, tightest slack first."""
        table: dict[tuple[str, str], list[Edge]] = {}
        for edge in self.edges:
            table.setdefault((edge.service, edge.server), []).append(edge)
        return {k: tuple(sorted(v, key=lambda e: (e.slack_ms, e.origin))) for k, v in table.items()}

    @cached_property
    def edges_by_service_origin(self) -> Mapping[tuple[str, str], tuple[Edge, ...]]:
        """The same edges from where demand enters, in the order of `edges`."""
        table: dict[tuple[str, str], list[Edge]] = {}
        for edge in self.edges:
            table.setdefault((edge.service, edge.origin), []).append(edge)
        return {k: tuple(v) for k, v in table.items()}

    @cached_property
    def offered(self) -> Mapping[tuple[str, str], float]:
        """(service, origin) to work offered."""
        return {(d.service, d.origin): d.offered for d in self.demand}

    def service(self, name: str) -> Service:
        return self.topology.services[name]

    def earning_share(self, tenant: Tenant, resident: Resident | None) -> float:
        """Share of the horizon for which a tenant can serve: 1 if it already runs there, or if nothing runs yet.

        The horizon is longer than a planning cycle, for what is wanted now is mostly wanted in the next cycles too:
        with one cycle to pay in, a model that loads for half a minute could hardly displace anything. At least
        `MIN_EARNING`: if it earned nothing, idle devices would stay empty for ever.
        """
        if not self.residents or (resident is not None and tenant.service in resident.services):
            return 1.0
        return max(MIN_EARNING, 1.0 - tenant.load_s / self.rules.horizon_s)

    @cached_property
    def busy(self) -> BusyTime:
        """Which part of a group's time tenants may fill."""
        return busy_time(self.rules, self.topology, self.demand)

    @property
    def moves_allowed(self) -> int | None:
        """How many groups may be moves; None where the rules set no cap, or nothing runs yet."""
        return self.rules.max_moves if self.residents else None

    @property
    def staying_counts(self) -> bool:
        """Whether it matters that a group stays where it is even if it loads in no time."""
        return bool(self.residents) and (self.rules.max_moves is not None or self.rules.make_before_break)

    def is_move(self, content: Content, resident: Resident | None) -> bool:
        """Whether some tenant would have to be loaded while others already run."""
        return bool(self.residents) and (resident is None or not content.services <= resident.services)

    @cached_property
    def levels(self) -> Mapping[Pool, Levels]:
        """What new groups need room beside, by pool, under `make_before_break`; empty without it (see beside.py)."""
        held: dict[Pool, list[tuple[int, int]]] = {}
        for r in self.residents if self.rules.make_before_break else ():
            for server, device_type, devices, num_bytes in r.held:
                held.setdefault((server, device_type), []).append((len(devices), num_bytes))
        counts = {(s.name, p.type): p.count for s in self.topology.servers.values() for p in s.devices}
        return {
            pool: Levels.of(counts[pool], self.topology.device_types[pool[1]].memory_bytes, residents)
            for pool, residents in held.items()
            if pool in counts
        }

    def can_replace(self, content: Content, resident: Resident) -> bool:
        """Whether what a content needs fits in a resident's place before that has left, if the rules want it so."""
        if not self.rules.make_before_break:
            return True
        wanted = {t.service: t.memory_bytes for t in content.tenants}
        memory = self.topology.device_types[content.device_type].memory_bytes
        anew = content.num_devices > 1 and not content.services <= resident.services
        return fits_in_place(memory, dict(resident.memory), wanted, anew=anew)

    def needs_beside(self, content: Content, resident: Resident | None) -> int:
        """Bytes per device by which a group counts against `levels`: what it needs, or what its resident leaves."""
        return content.memory_bytes if resident is None else self.left_by(resident)

    def left_by(self, resident: Resident) -> int:
        """Bytes per device beside a resident."""
        return self.topology.device_types[resident.device_type].memory_bytes - resident.memory_bytes

    def kind(self, resident: Resident) -> tuple[object, ...]:
        """Alike for residents of a pool that may stand for each other."""
        held = tuple(sorted(resident.memory)) if self.rules.make_before_break else ()
        return (resident.tp, resident.pp, tuple(sorted(resident.services)), resident.cuts, held)

    def useful_at(self, content: Content, server: str) -> bool:
        """Whether every tenant could serve some offered demand from this server in time, enough to fill its batch."""
        for t in content.tenants:
            edges = self.table.in_time(t.service, server, t.response_ms)
            reach = sum(self.demand[d].offered for d in self.table.demand[edges].tolist())
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
        edge = self.topology.digest or topology_to_dict(self.topology)  # one made in code was never read from files
        text = json.dumps([edge, [asdict(d) for d in self.demand], asdict(self.rules)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def busy_time(rules: PlanningRules, topology: Topology, demand: Sequence[Demand]) -> BusyTime:
    """The rules' say on how busy groups may be under this demand."""
    return BusyTime.of(
        max_utilization=rules.max_utilization,
        on_time_target=rules.on_time_target,
        services=topology.services,
        demand=demand,
    )


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
    soonest_ms = _soonest(topology, catalogue, categories)
    table, note = make_edges(topology, wanted, down=down, least_response_ms=soonest_ms, max_edges=rules.max_edges)
    residents = residents_of(in_force, topology, down)
    busy = busy_time(rules, topology, wanted)
    chains = chains_of(
        topology,
        catalogue,
        categories,
        table,
        {(d.service, d.origin): d.offered for d in wanted},
        rules,
        busy,
        down=down,
        soonest_ms=soonest_ms,
        running=_layouts(residents),
    )
    by_service = np.argsort(table.service, kind="stable")
    ends = np.searchsorted(table.service[by_service], np.arange(len(table.services) + 1))
    slacks = {
        name: np.sort(table.slack_ms[by_service[ends[i] : ends[i + 1]]]).tolist()
        for i, name in enumerate(table.services)
    }
    notes = [note, *chains.notes] if note else [*chains.notes]
    contents: dict[str, tuple[Content, ...]] = {}
    asked = {d.service for d in wanted}
    inside = sorted(asked - chains.services)  # those that may run inside one server
    types = sorted({p.type for h in hosts for p in topology.servers[h].devices})
    for name in inside:
        misfits[name] = tuple(misfits_of(topology.services[name], categories[name], topology, catalogue, types))
    for device_type in types:
        made, limits = contents_of(topology, catalogue, categories, device_type, inside, slacks, rules, busy)
        contents[device_type] = made
        notes.extend(limits)
    return PlacementProblem(
        topology=topology,
        catalogue=catalogue,
        rules=rules,
        categories=categories,
        demand=wanted,
        table=table,
        contents=contents,
        residents=residents,
        notes=tuple(notes),
        misfits=misfits,
        down=down,
        chains=chains,
    )


def _soonest(
    topology: Topology, catalogue: ProfileCatalogue, categories: Mapping[str, Category]
) -> Callable[[str, str], float]:
    """When the fastest device of a server answers a service alone, in ms; inf where none can run it."""
    by_type: dict[tuple[str, str], list[tuple[int, float]]] = {}

    def soonest(service: str, server: str) -> float:
        best = math.inf
        for pool in topology.servers[server].devices:
            key = (service, pool.type)
            if key not in by_type:
                by_type[key] = least_responses(
                    topology.services[service], categories[service], topology, catalogue, pool.type
                )
            best = min([best, *(ms for devices, ms in by_type[key] if devices <= pool.count)])
        return best

    return soonest


def _layouts(residents: Sequence[Resident]) -> list[Layout]:
    """The chains in force, each once."""
    rows = {(name, r.cuts): None for r in residents for name in sorted(r.services) if r.stages}
    return [Layout(service, stages) for service, stages in rows]


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
        if r.service not in topology.services or not _stands(r, topology, down):
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
            stages=r.stages,
            memory=(*(known.memory if known else ()), (r.service, r.memory_bytes)),
        )
    # Two groups on one device happen when a planner died between two switches. The newer one stands; to the
    # program the other does not exist, and the next change retires it.
    taken: set[tuple[str, str, int]] = set()
    kept: list[Resident] = []
    for resident in sorted(groups.values(), key=lambda r: (-_made_in(r.group), r.group)):
        places = set(resident.places)
        if not places & taken:
            taken |= places
            kept.append(resident)
    return tuple(sorted(kept, key=lambda r: r.group))


def _stands(r: Replica, topology: Topology, down: frozenset[str]) -> bool:
    """Whether all devices of a replica exist on servers that answer."""
    counts = {
        (n, p.type): p.count
        for n in {p[0] for p in r.places} & topology.servers.keys() - down
        for p in topology.servers[n].devices
    }
    return all(0 <= device < counts.get((server, kind), 0) for server, kind, device, _ in r.places)


def _made_in(group: str) -> int:
    """The generation that created a group, from its id."""
    last = group.rpartition("/")[2]
    return int(last) if last.isdecimal() else 0


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
    return in_company(kept, device_type=content.device_type, shape=(content.tp, content.pp), busy=problem.busy)
