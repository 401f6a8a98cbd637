"""Routes over replicas that already stand: what is left of a plan, and filling what became free.

Used where no solver is asked: for the moment between two stages of a change, and to see what the plan in force is
still worth under a new demand. Routes that stand are kept (re-routing from scratch greedily lost 5 % in our
prototype); only what has no place yet is placed greedily, most valuable first, nearest replica first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from epara_opt.busy import BusyTime
from epara_opt.chains import chain_performance
from epara_opt.domain.performance import Performance, evaluate
from epara_opt.domain.profile import ProfileCatalogue
from epara_opt.domain.service import Service
from epara_opt.domain.topology import Topology
from epara_opt.errors import InputError
from epara_opt.plan import Plan, Replica, Route

EPSILON = 1e-9  # work per second below which a rate is nothing


def standing(plan: Plan | None, topology: Topology, down: frozenset[str] = frozenset()) -> Plan | None:
    """The part of a plan that still means something: servers that answer, services and devices that exist."""
    if plan is None:
        return None
    replicas = tuple(r for r in plan.replicas if _exists(r, topology, down))
    ids = {r.id for r in replicas}
    routes = tuple(
        x
        for x in plan.routes
        if x.replica in ids and x.origin not in down and x.origin in topology.servers and x.service in topology.services
    )
    if len(replicas) == len(plan.replicas) and len(routes) == len(plan.routes):
        return plan
    return replace(plan, replicas=replicas, routes=routes, actions=())


def _exists(r: Replica, topology: Topology, down: frozenset[str]) -> bool:
    if r.service not in topology.services:
        return False
    for name, device_type, device, _ in r.places:
        server = topology.servers.get(name)
        if server is None or name in down:
            return False
        if not any(p.type == device_type and device < p.count for p in server.devices):
            return False
    return True


def stages_of(r: Replica) -> tuple[tuple[str, str, int, int, int], ...]:
    """A chain's stages as `chain_performance` takes them."""
    return tuple((s.server, s.device_type, len(s.devices), s.first_layer, s.end_layer) for s in r.stages)


def full_rates(
    replicas: Iterable[Replica], topology: Topology, catalogue: ProfileCatalogue, busy: BusyTime
) -> dict[str, float]:
    """Work per second of replicas that had their groups' whole time; 0 where the catalogue no longer knows one."""
    known: dict[str, Performance] = {}
    turn_ms: dict[str, float] = {}  # by group: one piece of every tenant
    kept = list(replicas)
    for r in kept:
        alone = _performance(r, topology, catalogue)
        if alone is not None:
            known[r.id] = alone
            turn_ms[r.group] = turn_ms.get(r.group, 0.0) + alone.quantum_ms
    found = dict.fromkeys((r.id for r in kept), 0.0)
    for r in kept:
        if r.id in known:
            p = known[r.id]
            found[r.id] = p.work_per_s * busy.part(p, turn_ms[r.group] - p.quantum_ms)
    return found


def repredicted(plan: Plan, topology: Topology, catalogue: ProfileCatalogue) -> Plan:
    """The plan with the response times that the catalogue predicts now; the plan itself where none has changed.

    Groups that the catalogue (or the topology) no longer knows keep what they had. Where replicas stand, and how much
    is routed to them, is not looked at again.
    """
    response_ms: dict[str, float] = {}
    groups: dict[str, list[Replica]] = {}
    for r in plan.replicas:
        groups.setdefault(r.group, []).append(r)
    for tenants in groups.values():
        known = {r.id: _performance(r, topology, catalogue) for r in tenants if r.service in topology.services}
        alone = {name: p for name, p in known.items() if p is not None}
        if len(alone) == len(tenants):
            turn_ms = sum(p.quantum_ms for p in alone.values())
            response_ms |= {n: p.response_in_company_ms(turn_ms - p.quantum_ms) for n, p in alone.items()}
    changed = {
        r.id
        for r in plan.replicas
        if r.id in response_ms and not math.isclose(r.response_ms, response_ms[r.id], rel_tol=1e-9)
    }
    if not changed:
        return plan
    return replace(
        plan,
        replicas=tuple(replace(r, response_ms=response_ms[r.id]) if r.id in changed else r for r in plan.replicas),
        routes=tuple(
            replace(x, predicted_ms=x.network_ms + response_ms[x.replica]) if x.replica in changed else x
            for x in plan.routes
        ),
    )


def _performance(r: Replica, topology: Topology, catalogue: ProfileCatalogue) -> Performance | None:
    service = topology.services[r.service]
    if r.stages:
        try:
            found, _ = chain_performance(topology, catalogue, service, stages_of(r), r.config)
        except InputError:
            return None
        return found.whole
    profile = catalogue.shapes(service.model.profile_name, r.device_type).get((r.tp, r.pp))
    if profile is None:
        return None
    try:
        return evaluate(service, profile, r.config)
    except InputError:  # outside the hull of a catalogue that was measured anew
        return None


class RouteBook:
    """Routes with what they leave free: time of groups, bandwidth of links. Rates in work per second."""

    def __init__(
        self,
        replicas: Iterable[Replica],
        topology: Topology,
        catalogue: ProfileCatalogue,
        *,
        busy: BusyTime,
        down: frozenset[str] = frozenset(),
    ) -> None:
        self._topology = topology
        self._down = down
        self._replicas = {r.id: r for r in sorted(replicas, key=lambda r: r.id)}
        self._full = full_rates(self._replicas.values(), topology, catalogue, busy)
        self._idle = {r.group: 1.0 for r in self._replicas.values()}  # share of the group's time
        self._bandwidth: dict[tuple[str, str], float] = {}  # bytes/s left per directed link
        for link in topology.links:
            a, b = link.between
            self._bandwidth[a, b] = self._bandwidth[b, a] = link.bandwidth_bytes_per_s
        for r in self._replicas.values():
            if r.stages and self._full[r.id] > 0.0:  # what passes between its stages, at full rate
                service = topology.services[r.service]
                _, loads = chain_performance(topology, catalogue, service, stages_of(r), r.config)
                for hop, num_bytes in loads.items():
                    self._bandwidth[hop] = max(0.0, self._bandwidth[hop] - num_bytes * self._full[r.id])
        self._rates: dict[tuple[str, str, str], Route] = {}

    def add(self, service: str, origin: str, replica: str, rate: float) -> float:
        """Route as much of `rate` as is timely and as there is room for; the rate that got through."""
        r = self._replicas.get(replica)
        s = self._topology.services[service]
        if r is None or rate <= EPSILON or self._full[replica] <= 0:
            return 0.0
        timing = self._timing(s, origin, r)
        if timing is None or timing[1] > s.deadline_ms:
            return 0.0
        loads = self._link_loads(s, origin, r.server)
        room = min([self._idle[r.group] * self._full[replica], *(self._bandwidth[hop] / b for hop, b in loads)])
        taken = min(rate, room)
        if taken <= EPSILON:
            return 0.0
        self._idle[r.group] = max(0.0, self._idle[r.group] - taken / self._full[replica])
        for hop, num_bytes in loads:
            self._bandwidth[hop] = max(0.0, self._bandwidth[hop] - taken * num_bytes)
        key = (service, origin, replica)
        before = self._rates[key].rate if key in self._rates else 0.0
        self._rates[key] = Route(
            service=service,
            origin=origin,
            replica=replica,
            rate=before + taken,
            network_ms=timing[0],
            predicted_ms=timing[1],
        )
        return taken

    def fill(self, wanted: Mapping[tuple[str, str], float]) -> None:
        """Place what of `wanted` (by service and origin) is not routed yet: most valuable first, nearest first."""
        served = self.served()
        value = {name: s.weight for name, s in self._topology.services.items()}
        for service, origin in sorted(wanted, key=lambda k: (-value[k[0]], k)):
            left = wanted[service, origin] - served.get((service, origin), 0.0)
            for target in self._nearest(service, origin):
                left -= self.add(service, origin, target, left)
                if left <= EPSILON:
                    break

    def served(self) -> dict[tuple[str, str], float]:
        """(service, origin) to the rate routed."""
        table: dict[tuple[str, str], float] = {}
        for route in self._rates.values():
            key = (route.service, route.origin)
            table[key] = table.get(key, 0.0) + route.rate
        return table

    def routes(self) -> tuple[Route, ...]:
        return tuple(self._rates[k] for k in sorted(self._rates))

    def replicas(self) -> tuple[Replica, ...]:
        """The replicas with `share` and `capacity` as these routes use them; idle time is split evenly."""
        used: dict[str, float] = {}
        for route in self._rates.values():
            used[route.replica] = used.get(route.replica, 0.0) + route.rate / self._full[route.replica]
        tenants: dict[str, int] = {}
        for r in self._replicas.values():
            tenants[r.group] = tenants.get(r.group, 0) + 1
        made: list[Replica] = []
        for r in self._replicas.values():
            share = min(1.0, used.get(r.id, 0.0) + self._idle[r.group] / tenants[r.group])
            made.append(replace(r, share=share, capacity=share * self._full[r.id]))
        return tuple(made)

    def _nearest(self, service: str, origin: str) -> list[str]:
        s = self._topology.services[service]
        reachable: list[tuple[float, str]] = []
        for r in self._replicas.values():
            if r.service == service:
                timing = self._timing(s, origin, r)
                if timing is not None:
                    reachable.append((timing[1], r.id))
        return [name for _, name in sorted(reachable)]

    def _timing(self, service: Service, origin: str, r: Replica) -> tuple[float, float] | None:
        """(network_ms, predicted_ms), or None where there is no path that stands."""
        path = self._topology.path(origin, r.server, without=self._down)
        if path is None:
            return None
        network_ms = path.rtt_ms + path.transfer_ms(service.request.input_bytes + service.request.output_bytes)
        return network_ms, network_ms + r.response_ms

    def _link_loads(self, service: Service, origin: str, server: str) -> list[tuple[tuple[str, str], float]]:
        path = self._topology.path(origin, server, without=self._down)
        if path is None:
            return []
        there = service.request.input_bytes * service.events_per_work
        back = service.request.output_bytes * service.events_per_work
        loads = [(hop, there) for hop in path.hops] + [((b, a), back) for a, b in path.hops]
        return [(hop, load) for hop, load in loads if load > 0]
