"""The checker: does a plan keep what it promises? It knows no solver and no formulation.

Everything is recomputed from topology, profiles and the rules of `domain/`; of the plan's own numbers none is
trusted, and those that can be recomputed must agree. Every plan passes here before anything is pushed, whoever made it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from epara_opt.busy import BusyTime
from epara_opt.chains import chain_performance
from epara_opt.domain.category import Category, Scale, categorize, is_timely
from epara_opt.domain.performance import Performance, evaluate
from epara_opt.domain.profile import ProfileCatalogue
from epara_opt.domain.service import Service
from epara_opt.domain.topology import Path, Topology
from epara_opt.errors import InputError, PlanRejected
from epara_opt.plan import ActionKind, Plan, Replica, Stage, relative_gap
from epara_opt.problem import MIN_EARNING, PlacementProblem, Resident, busy_time, fills_batch
from epara_opt.units import bytes_to_gib

TOLERANCE = 1e-6  # relative
NEAR_ZERO = 1e-9  # absolute, of times and parts; rates and worths have none: a service may count for a billionth


def verify(
    plan: Plan, topology: Topology, catalogue: ProfileCatalogue, *, problem: PlacementProblem | None = None
) -> None:
    """Raise PlanRejected with every violation found; return if there is none.

    With a problem, the plan must be for its inputs, keep its rules, and claim no more than its demand and residents
    allow. Without one, demand is the topology's own and groups may be busy all the time.
    """
    check = _Check(plan=plan, topology=topology, catalogue=catalogue, problem=problem)
    check.inputs()
    check.groups()
    check.moves()
    check.beside()
    check.performance()
    check.routes()
    check.time()
    check.demand()
    check.links()
    check.claims()
    check.forecasts()
    check.actions()
    if check.found:
        raise PlanRejected(check.found)


def _same(a: float, b: float, *, near_zero: float = NEAR_ZERO) -> bool:
    return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=near_zero)


def _exceeds(a: float, limit: float, *, near_zero: float = NEAR_ZERO) -> bool:
    return not a <= limit + TOLERANCE * abs(limit) + near_zero  # also true for NaN


def _cuts(stages: tuple[Stage, ...]) -> tuple[tuple[str, str, tuple[int, ...], int, int], ...]:
    """Where and what the stages of a chain are; their memory changes with the batch."""
    return tuple((s.server, s.device_type, s.devices, s.first_layer, s.end_layer) for s in stages)


@dataclass(kw_only=True)
class _Check:
    plan: Plan
    topology: Topology
    catalogue: ProfileCatalogue
    problem: PlacementProblem | None
    found: list[str] = field(default_factory=list[str])
    performances: dict[str, Performance] = field(default_factory=dict[str, Performance])  # by replica id, alone
    inner: dict[str, dict[tuple[str, str], float]] = field(default_factory=dict[str, dict[tuple[str, str], float]])
    """By id of a replica over several servers: bytes that a unit of its work puts on each directed link inside it."""
    response_ms: dict[str, float] = field(default_factory=dict[str, float])  # by replica id, in company
    served: dict[tuple[str, str], float] = field(default_factory=dict[tuple[str, str], float])
    ways: dict[tuple[str, str], Path | None] = field(default_factory=dict[tuple[str, str], Path | None])

    def broken(self, path: str, law: str, value: object = "") -> None:
        self.found.append(f"{path}: {law}" + (f", got {value}" if value != "" else ""))

    def __post_init__(self) -> None:
        self.replicas: Mapping[str, Replica] = {r.id: r for r in self.plan.replicas}
        self.by_group: dict[str, list[Replica]] = {}
        for r in self.plan.replicas:
            self.by_group.setdefault(r.group, []).append(r)
        residents = self.problem.residents if self.problem else ()
        self.residents: Mapping[str, Resident] = {r.group: r for r in residents}
        self.categories: dict[str, Category] = {}
        self.down = self.problem.down if self.problem else frozenset[str]()
        demand = self.topology.demand if self.problem is None else self.problem.demand
        self.offered = {(d.service, d.origin): d.offered for d in demand if d.offered > 0}
        self.asked_at: dict[str, dict[str, float]] = {}  # by service: origin to offered
        for (service, origin), offered in self.offered.items():
            self.asked_at.setdefault(service, {})[origin] = offered
        self.routed: dict[str, set[str]] = {}  # by replica id: origins
        for route in self.plan.routes:
            self.routed.setdefault(route.replica, set()).add(route.origin)

    def inputs(self) -> None:
        if self.plan.topology != self.topology.name:
            self.broken("topology", f"expected {self.topology.name}", self.plan.topology)
        if self.plan.topology_digest and self.plan.topology_digest != self.topology.digest:
            law = f"expected a plan for this edge ({self.topology.digest})"
            self.broken("topology_digest", law, self.plan.topology_digest)
        if self.problem is not None and self.plan.inputs_digest != self.problem.digest:
            law = f"expected a plan for these inputs ({self.problem.digest})"
            self.broken("inputs_digest", law, self.plan.inputs_digest)
        if len(self.replicas) != len(self.plan.replicas):
            self.broken("replicas", "expected each id once")

    def groups(self) -> None:
        """Devices exist, fit the shape, and belong to one group each."""
        owner: dict[tuple[str, str, int], str] = {}
        for group, members in self.by_group.items():
            path, first = f"groups[{group}]", members[0]
            place = (first.server, first.device_type, first.devices, first.tp, first.pp, _cuts(first.stages))
            if any((r.server, r.device_type, r.devices, r.tp, r.pp, _cuts(r.stages)) != place for r in members):
                self.broken(path, "expected one server, device type, shape and set of devices for all its replicas")
                continue
            if len({r.service for r in members}) != len(members):
                self.broken(path, "expected each service once")
            if self.problem is not None and len(members) > self.problem.rules.max_tenants:
                self.broken(path, f"expected at most {self.problem.rules.max_tenants} services", len(members))
            known = self.residents.get(group)
            if known and place != (
                known.server,
                known.device_type,
                known.devices,
                known.tp,
                known.pp,
                _cuts(known.stages),
            ):
                self.broken(path, "expected the devices and shape that this group has in force")
            if first.stages:
                self._stages(group, members)
            elif len(first.devices) != first.tp * first.pp or len(set(first.devices)) != len(first.devices):
                self.broken(path, f"expected {first.tp} x {first.pp} different devices", list(first.devices))
            for name, device_type, device, _ in first.places:
                server = self.topology.servers.get(name)
                count = next((p.count for p in server.devices if p.type == device_type), 0) if server else 0
                if not 0 <= device < count:
                    law = f"expected a device of {name}, which has {count} {device_type}"
                    self.broken(path, law, device)
                other = owner.setdefault((name, device_type, device), group)
                if other != group:
                    self.broken(path, f"expected devices of its own; {other} has it too", device)

    def _stages(self, group: str, members: list[Replica]) -> None:
        """A chain is one service's whole model in order, over two servers or more, each device in one stage."""
        path, first = f"groups[{group}].stages", members[0]
        if len(members) > 1:
            self.broken(path, "expected one service over several servers", len(members))
        rules = self.problem.rules if self.problem else None
        if rules is not None and not rules.across_servers:
            self.broken(path, "expected none: rules.across_servers is false", len(first.stages))
        if rules is not None and len(first.stages) > rules.max_stages:
            self.broken(path, f"expected at most {rules.max_stages}", len(first.stages))
        if len({s.server for s in first.stages}) < 2:
            self.broken(path, "expected two servers or more", first.stages[0].server)
        head = first.stages[0]
        if (head.server, head.device_type, head.devices, len(head.devices), len(first.stages), head.memory_bytes) != (
            first.server,
            first.device_type,
            first.devices,
            first.tp,
            first.pp,
            first.memory_bytes,
        ):
            self.broken(path, "expected the first to be the replica's server, devices, tp and memory, and pp of them")
        if len(set(first.places)) != len(first.places):
            self.broken(path, "expected each device in one stage", [list(s.devices) for s in first.stages])
        service = self.topology.services.get(first.service)
        layers = service.model.layers if service else None
        cuts = [s.first_layer for s in first.stages] + [layers]
        if cuts[0] != 0 or any(
            s.end_layer != end or s.first_layer >= s.end_layer for s, end in zip(first.stages, cuts[1:], strict=True)
        ):
            law = f"expected layers 0 to {layers}, each once and in order"
            self.broken(path, law, [(s.first_layer, s.end_layer) for s in first.stages])
        for s in first.stages:
            if s.server in self.down:
                self.broken(path, "expected servers that stand", s.server)

    def moves(self) -> None:
        """No more groups load something than the rules allow."""
        allowed = self.problem.rules.max_moves if self.problem else None
        if allowed is None or not self.residents:
            return
        loading = [g for g, members in self.by_group.items() if not all(self._loaded(r) for r in members)]
        if len(loading) > allowed:
            self.broken("replicas", f"expected at most {allowed} group(s) that load something", len(loading))

    def beside(self) -> None:
        """Where nothing may stop first, every device holds until the switch what runs there and what comes."""
        if self.problem is None or not self.problem.rules.make_before_break:
            return
        held: dict[tuple[str, str, int], dict[tuple[str, str], int]] = {}  # per device: (group, service) to bytes
        for resident in self.residents.values():
            for server, device_type, devices, num_bytes in resident.held:
                for device in devices:
                    mine = held.setdefault((server, device_type, device), {})
                    held_by = resident.memory if not resident.stages else (("a stage", num_bytes),)
                    mine |= {(resident.group, name): part for name, part in held_by}
        before = {device: sum(mine.values()) for device, mine in held.items()}
        for r in self.plan.replicas:
            resident = self.residents.get(r.group)
            several = {m.service for m in self.by_group[r.group]} if len(r.places) > 1 else set[str]()
            anew = resident is not None and not several <= resident.services  # several devices take nobody in
            for server, device_type, device, num_bytes in r.places:
                mine = held.setdefault((server, device_type, device), {})
                key = (f"{r.group}, anew" if anew else r.group, r.service)
                mine[key] = max(mine.get(key, 0), num_bytes)
        for (server, device_type, device), mine in sorted(held.items()):
            there = self.topology.device_types.get(device_type)
            total, ran = sum(mine.values()), before.get((server, device_type, device), 0)
            if there is not None and total > max(there.memory_bytes, ran):  # what was too much before may leave
                law = (
                    f"expected at most {bytes_to_gib(there.memory_bytes):.3f} GiB until the switch (make_before_break)"
                )
                got = f"{bytes_to_gib(total):.3f} of {', '.join(sorted(s for _, s in mine))}"
                self.broken(f"devices[{server},{device_type},{device}]", law, got)

    def performance(self) -> None:
        """What each replica can do, alone and in its group's company; memory; shapes its category allows."""
        for group, members in self.by_group.items():
            alone = {r.id: p for r in members if (p := self._alone(r)) is not None}
            if len(alone) < len(members):
                continue
            self.performances |= alone
            needed = sum(p.memory_bytes for p in alone.values())
            memory = self.topology.device_types[members[0].device_type].memory_bytes
            if needed > memory and not members[0].stages:
                law = f"expected at most {bytes_to_gib(memory):.3f} GiB per device"
                self.broken(f"groups[{group}].memory", law, f"{bytes_to_gib(needed):.3f}")
            for r in members:
                path, service = f"replicas[{r.id}]", self.topology.services[r.service]
                others_ms = sum(p.quantum_ms for p in alone.values()) - alone[r.id].quantum_ms
                response_ms = self.response_ms[r.id] = alone[r.id].response_in_company_ms(others_ms)
                tpot_ms = alone[r.id].tpot_in_company_ms(others_ms)
                if not is_timely(service, response_ms * (1 - TOLERANCE), tpot_ms * (1 - TOLERANCE)):
                    law = f"expected at most {service.deadline_ms:g} ms"
                    if service.tpot_ms is not None:
                        law += f" and {service.tpot_ms:g} ms per token"
                    self.broken(path, law, f"{response_ms:.1f} ms, {tpot_ms:.1f} ms per token")
                if self.problem is not None and not self._fills_batch(r, service, response_ms):
                    self.broken(path, f"expected {r.batch} streams in reach to fill its batch")
                address = self.topology.servers[r.server].address if r.server in self.topology.servers else None
                if r.endpoint != (address or ""):
                    self.broken(f"{path}.endpoint", f"expected {address or 'none'}", r.endpoint or "none")
                if not _same(r.response_ms, response_ms):
                    self.broken(f"{path}.response_ms", f"expected {response_ms:.3f}", r.response_ms)
                load_s = 0.0 if self._loaded(r) else alone[r.id].load_s
                if self.problem is not None and not _same(r.load_s, load_s):
                    self.broken(f"{path}.load_s", f"expected {load_s:g}", r.load_s)
                if r.memory_bytes != alone[r.id].memory_bytes:
                    self.broken(f"{path}.memory_bytes", f"expected {alone[r.id].memory_bytes}", r.memory_bytes)

    def _fills_batch(self, replica: Replica, service: Service, response_ms: float) -> bool:
        """Whether demand whose route to this replica is fast enough can fill its batch."""
        near = 0.0
        if fills_batch(service, replica.config, near):
            return True
        num_bytes = service.request.input_bytes + service.request.output_bytes
        for origin, offered in self._askers_near(replica, response_ms, service.deadline_ms):
            way = self.topology.around(origin, without=self.down).to(replica.server)
            if way is not None:
                network_ms = way.rtt_ms + 1000.0 * num_bytes / way.bandwidth_bytes_per_s  # 0 where no link is crossed
                near += offered if not _exceeds(network_ms + response_ms, service.deadline_ms) else 0.0
            if fills_batch(service, replica.config, near):
                return True
        return False

    def _askers_near(self, replica: Replica, response_ms: float, deadline_ms: float) -> Iterator[tuple[str, float]]:
        """(origin, offered) of all whose way to a replica may be so short, those routed to it first: mostly they are
        enough, and their paths are needed anyway. The others by the way back, whose links are as long."""
        asked = self.asked_at.get(replica.service, {})
        routed = self.routed.get(replica.id, set())
        yield from ((origin, asked[origin]) for origin in sorted(routed) if origin in asked)
        for back in self.topology.around(replica.server, without=self.down).nearest():
            if _exceeds(back.rtt_ms + response_ms, deadline_ms):
                return
            if back.server in asked and back.server not in routed:
                yield back.server, asked[back.server]

    def _path(self, origin: str, server: str) -> Path | None:
        """Around the servers that were down when the problem was made."""
        key = (origin, server)
        if key not in self.ways:
            self.ways[key] = self.topology.path(origin, server, without=self.down)
        return self.ways[key]

    def _category(self, service: Service) -> Category:
        if service.name not in self.categories:
            self.categories[service.name] = categorize(service, self.topology, self.catalogue)
        return self.categories[service.name]

    def _alone(self, r: Replica) -> Performance | None:
        path = f"replicas[{r.id}]"
        service = self.topology.services.get(r.service)
        if service is None:
            self.broken(path, "expected a service of the topology", r.service)
            return None
        if r.device_type not in self.topology.device_types:
            self.broken(path, "expected a device type of the topology", r.device_type)
            return None
        if r.frames > 1 and not service.is_stream:
            self.broken(path, "expected one frame per batch: not a stream", r.frames)
        category = self._category(service)
        if r.stages:
            return self._chain(r, service, category)
        if category.scale is Scale.SINGLE_DEVICE and r.tp * r.pp > 1:
            self.broken(path, f"expected one device: {category}", f"tp {r.tp}, pp {r.pp}")
        profile = self.catalogue.shapes(service.model.profile_name, r.device_type).get((r.tp, r.pp))
        if profile is None:
            self.broken(path, f"expected a profile of {service.model.profile_name} on {r.device_type}", r.config)
            return None
        try:
            return evaluate(service, profile, r.config)
        except InputError as e:
            self.broken(path, f"expected a configuration inside the profile: {e}")
            return None

    def _chain(self, r: Replica, service: Service, category: Category) -> Performance | None:
        """What a chain can do, its stages' memory and its inner traffic, worked out anew."""
        path = f"replicas[{r.id}].stages"
        if category.scale is Scale.SINGLE_DEVICE:
            self.broken(path, f"expected one device: {category}", len(r.stages))
        cuts = tuple((s.server, s.device_type, len(s.devices), s.first_layer, s.end_layer) for s in r.stages)
        try:
            found, self.inner[r.id] = chain_performance(
                self.topology, self.catalogue, service, cuts, r.config, down=self.down
            )
        except InputError as e:
            self.broken(path, f"expected slices inside the profile and paths between them: {e}")
            return None
        for i, (stage, num_bytes) in enumerate(zip(r.stages, found.memory_bytes, strict=True)):
            there = self.topology.device_types.get(stage.device_type)
            if there is None or num_bytes > there.memory_bytes:
                most = bytes_to_gib(there.memory_bytes) if there else 0.0
                law = f"expected at most {most:.3f} GiB per device"
                self.broken(f"{path}[{i}].memory", law, f"{bytes_to_gib(num_bytes):.3f}")
            if stage.memory_bytes != num_bytes:
                self.broken(f"{path}[{i}].memory_bytes", f"expected {num_bytes}", stage.memory_bytes)
        return found.whole

    def routes(self) -> None:
        """Each reaches its replica in time over the network as it is."""
        table = self.problem.table if self.problem else None
        replicas = self.replicas
        seen: set[tuple[str, str, str]] = set()
        for route in self.plan.routes:
            path = f"routes[{route.service}, {route.origin} -> {route.replica}]"
            replica, service = replicas.get(route.replica), self.topology.services.get(route.service)
            if replica is None or service is None or replica.service != route.service:
                self.broken(path, "expected a replica of this service in the plan")
                continue
            key = (route.service, route.origin, route.replica)
            if key in seen:
                self.broken(path, "expected each route once")
            seen.add(key)
            if not 0 < route.rate < math.inf:
                self.broken(f"{path}.rate", "expected a finite number > 0", route.rate)
                continue
            self.served[key[:2]] = self.served.get(key[:2], 0.0) + route.rate
            way = self._path(route.origin, replica.server)
            if way is None:
                self.broken(path, f"expected a path from {route.origin} to {replica.server}")
                continue
            if table is not None and table.find(route.service, route.origin, replica.server) < 0:
                self.broken(path, "expected an edge of the problem: demand here, a server that stands, a route in time")
            network_ms = way.rtt_ms + way.transfer_ms(service.request.input_bytes + service.request.output_bytes)
            if not _same(route.network_ms, network_ms):
                self.broken(f"{path}.network_ms", f"expected {network_ms:.3f}", route.network_ms)
            if replica.id in self.response_ms:
                total_ms = network_ms + self.response_ms[replica.id]
                if _exceeds(total_ms, service.deadline_ms):
                    self.broken(path, f"expected at most {service.deadline_ms:g} ms", f"{total_ms:.1f}")
                if not _same(route.predicted_ms, total_ms):
                    self.broken(f"{path}.predicted_ms", f"expected {total_ms:.3f}", route.predicted_ms)

    def _busy(self) -> BusyTime:
        """Which part of its time a group may fill; all of it where no rules are known."""
        if self.problem is None:
            return BusyTime(max_utilization=1.0)
        return busy_time(self.problem.rules, self.topology, self.problem.demand)

    def time(self) -> None:
        """No group promises more than all its time."""
        busy = self._busy()
        rate: dict[str, float] = {}
        for route in self.plan.routes:
            rate[route.replica] = rate.get(route.replica, 0.0) + route.rate
        for group, members in self.by_group.items():
            if any(r.id not in self.performances for r in members):
                continue
            alone = {r.id: self.performances[r.id] for r in members}
            turn_ms = sum(p.quantum_ms for p in alone.values())
            work = {i: p.work_per_s * busy.part(p, turn_ms - p.quantum_ms) for i, p in alone.items()}
            for law, total in (
                (
                    "expected routes to ask for at most all of its time",
                    sum(rate.get(i, 0.0) / w for i, w in work.items()),
                ),
                ("expected shares of at most 1 together", sum(r.share for r in members)),
                ("expected capacities for at most all of its time", sum(r.capacity / work[r.id] for r in members)),
            ):
                if _exceeds(total, 1.0):
                    self.broken(f"groups[{group}]", law, f"{total:.6f}")
            for r in members:
                path, asked = f"replicas[{r.id}]", rate.get(r.id, 0.0)
                if not (r.share >= 0.0 and r.capacity >= 0.0):
                    self.broken(path, "expected share and capacity >= 0", (r.share, r.capacity))
                if _exceeds(asked, r.share * work[r.id], near_zero=0.0):
                    law = f"expected at most {r.share * work[r.id]:.6g} in its share of time"
                    self.broken(f"{path}.rate", law, f"{asked:.6g}")
                if _exceeds(asked, r.capacity, near_zero=0.0):
                    self.broken(f"{path}.rate", f"expected at most its capacity {r.capacity:.6g}", f"{asked:.6g}")

    def demand(self) -> None:
        """Served and unserved are together what is offered, at every origin."""
        offered = self.offered
        missed: dict[tuple[str, str], float] = {}
        for u in self.plan.unserved:
            key = (u.service, u.origin)
            if key in missed:
                self.broken(f"unserved[{u.service}@{u.origin}]", "expected once")
            missed[key] = u.rate
            if not u.rate > 0 or not u.reason:
                self.broken(f"unserved[{u.service}@{u.origin}]", "expected a rate > 0 and a reason", u.rate)
        for key in sorted(offered.keys() | self.served.keys() | missed.keys()):
            path, asked = f"demand[{key[0]}@{key[1]}]", offered.get(key, 0.0)
            done, left = self.served.get(key, 0.0), missed.get(key, 0.0)
            if _exceeds(done, asked, near_zero=0.0):
                self.broken(path, f"expected at most {asked:.6g} served", f"{done:.6g}")
            elif not abs(done + left - asked) <= TOLERANCE * asked:
                self.broken(path, f"expected served + unserved = {asked:.6g}", f"{done:.6g} + {left:.6g}")

    def links(self) -> None:
        """Each direction of each link carries at most its bandwidth: requests out, answers back, and what passes
        between a chain's stages: at its full rate where the rules are known, else as its routes need."""
        load: dict[tuple[str, str], float] = {}
        routed: dict[str, float] = {}
        for route in self.plan.routes:
            routed[route.replica] = routed.get(route.replica, 0.0) + route.rate
        for name, inner in self.inner.items():
            rate = routed.get(name, 0.0)
            if self.problem is not None and name in self.performances:
                alone = self.performances[name]
                rate = alone.work_per_s * self._busy().part(alone, 0.0)
            for hop, num_bytes in inner.items():
                load[hop] = load.get(hop, 0.0) + rate * num_bytes
        for route in self.plan.routes:
            replica, service = self.replicas.get(route.replica), self.topology.services.get(route.service)
            way = self._path(route.origin, replica.server) if replica else None
            if way is None or service is None:
                continue
            events_per_s = route.rate * service.events_per_work
            for a, b in way.hops:
                load[a, b] = load.get((a, b), 0.0) + events_per_s * service.request.input_bytes
                load[b, a] = load.get((b, a), 0.0) + events_per_s * service.request.output_bytes
        for link in self.topology.links:
            for a, b in (link.between, link.between[::-1]):
                if _exceeds(load.get((a, b), 0.0), link.bandwidth_bytes_per_s):
                    law = f"expected at most {link.bandwidth_bytes_per_s:.6g} bytes/s"
                    self.broken(f"links[{a} -> {b}]", law, f"{load[a, b]:.6g}")

    def _earning(self, replica: Replica, problem: PlacementProblem) -> float:
        """1 if loaded already, or if nothing runs yet; else the part of the cycle that loading leaves."""
        if self._loaded(replica) or not problem.residents or replica.id not in self.performances:
            return 1.0
        return max(MIN_EARNING, 1.0 - self.performances[replica.id].load_s / problem.rules.horizon_s)

    def _loaded(self, replica: Replica) -> bool:
        return replica.group in self.residents and replica.service in self.residents[replica.group].services

    def claims(self) -> None:
        """Objective, bound and predictions agree with the routes."""
        plan, services = self.plan, self.topology.services
        known = [(r, services[r.service]) for r in plan.routes if r.service in services and r.replica in self.replicas]
        worth = sum(s.weight * r.rate for r, s in known)
        if self.problem is not None:
            earned = sum(s.weight * r.rate * self._earning(self.replicas[r.replica], self.problem) for r, s in known)
            if not _same(plan.objective, earned, near_zero=0.0):
                self.broken("objective", f"expected {earned:.6f}", plan.objective)
        elif _exceeds(plan.objective, worth, near_zero=0.0):
            self.broken("objective", f"expected at most the weighted goodput {worth:.6f}", plan.objective)
        if plan.dual_bound is not None and _exceeds(plan.objective, plan.dual_bound, near_zero=0.0):
            self.broken("objective", f"expected at most the bound {plan.dual_bound:.6f}", plan.objective)
        gap = relative_gap(plan.objective, plan.dual_bound)
        if (gap is None) != (plan.gap is None) or not abs((gap or 0.0) - (plan.gap or 0.0)) <= TOLERANCE:
            self.broken("gap", f"expected {gap}", plan.gap)
        if not _same(plan.predicted.goodput, worth, near_zero=0.0):
            self.broken("predicted.goodput", f"expected the routes' sum {worth:.6f}", plan.predicted.goodput)
        total = sum(services[name].weight * rate for (name, _), rate in self.offered.items() if name in services)
        self._attainment("predicted", plan.predicted.goodput, plan.predicted.offered, plan.predicted.slo_attainment)
        if not _same(plan.predicted.offered, total, near_zero=0.0):
            self.broken("predicted.offered", f"expected {total:.6f}", plan.predicted.offered)
        listed = [f.service for f in plan.predicted.services]
        if len(set(listed)) != len(listed):
            self.broken("predicted.services", "expected each service once")
        for name in sorted({r.service for r, _ in known} - set(listed)):
            self.broken(f"predicted.services[{name}]", "expected a forecast")

    def forecasts(self) -> None:
        """What is promised for each service and server follows from the routes."""
        served: dict[str, float] = {}
        for (name, _), rate in self.served.items():
            served[name] = served.get(name, 0.0) + rate
        worst_ms: dict[str, float] = {}
        for r in self.plan.routes:  # each predicted_ms has been checked
            worst_ms[r.service] = max(worst_ms.get(r.service, 0.0), r.predicted_ms)
        for forecast in self.plan.predicted.services:
            path, name = f"predicted.services[{forecast.service}]", forecast.service
            service = self.topology.services.get(name)
            if service is None:
                self.broken(path, "expected a service of the topology", name)
                continue
            asked = sum(self.asked_at.get(name, {}).values())
            for key, expected, claimed, near_zero in (
                ("goodput", served.get(name, 0.0), forecast.goodput, 0.0),
                ("offered", asked, forecast.offered, 0.0),
                ("worst_ms", worst_ms.get(name, 0.0), forecast.worst_ms, NEAR_ZERO),
            ):
                if not _same(claimed, expected, near_zero=near_zero):
                    self.broken(f"{path}.{key}", f"expected {expected:.6f}", claimed)
            for key, word, said in (
                ("category", str(self._category(service)), forecast.category),
                ("unit", service.work_unit, forecast.unit),
            ):
                if said != word:
                    self.broken(f"{path}.{key}", f"expected {word}", said)
            self._attainment(path, forecast.goodput, forecast.offered, forecast.slo_attainment)
        self._utilization()

    def _utilization(self) -> None:
        """Of each server with devices: the part of its device time that the routes take."""
        if len(self.performances) < len(self.replicas):
            return  # told already
        busy = dict.fromkeys((s.name for s in self.topology.servers.values() if s.devices), 0.0)
        for route in self.plan.routes:
            replica = self.replicas.get(route.replica)
            for name in (place[0] for place in replica.places) if replica is not None else ():
                if name in busy:
                    busy[name] += route.rate / self.performances[route.replica].work_per_s
        claimed = self.plan.predicted.utilization
        for name in sorted(busy.keys() | claimed.keys()):
            path = f"predicted.utilization[{name}]"
            if name not in busy:
                self.broken(path, "expected a server with devices", name)
                continue
            expected = busy[name] / sum(p.count for p in self.topology.servers[name].devices)
            if not _same(claimed.get(name, 0.0), expected):
                self.broken(path, f"expected {expected:.6f}", claimed.get(name, 0.0))

    def _attainment(self, path: str, goodput: float, offered: float, claimed: float) -> None:
        expected = min(1.0, goodput / offered) if offered > 0 else 1.0
        if not _same(claimed, expected):
            self.broken(f"{path}.slo_attainment", f"expected {expected:.6f}", claimed)

    def actions(self) -> None:
        """Each names servers of the edge; what it prepares is in the plan, what it retires ran at that server."""
        groups = self.by_group
        for i, action in enumerate(self.plan.actions):
            path = f"actions[{i}]"
            if action.server not in self.topology.servers:
                self.broken(f"{path}.server", "expected a server of the topology", action.server)
            for group in action.groups:
                if action.kind is ActionKind.PREPARE and (
                    group not in groups or action.server not in groups[group][0].servers
                ):
                    self.broken(path, f"expected a group that the plan places at {action.server}", group)
                known = self.residents.get(group)
                chained = known is not None and any(s.server == action.server for s in known.stages)
                if action.kind is ActionKind.RETIRE and not chained and not group.startswith(f"{action.server}/"):
                    self.broken(path, f"expected a group of {action.server}", group)
