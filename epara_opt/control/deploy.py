"""From a plan to what each executor is told: groups, routes and peers, with addresses and executors' units.

A plan speaks of work (requests/s or streams); an executor counts requests and frames per second. The conversion
happens here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice

from epara_opt.chains import chain_performance
from epara_opt.control.ports import (
    CommitSpec,
    FetchSpec,
    GroupSpec,
    HolderSpec,
    PeerSpec,
    RouteSpec,
    StageSpec,
    TenantSpec,
)
from epara_opt.control.routing import stages_of
from epara_opt.domain.performance import Performance, evaluate
from epara_opt.domain.profile import ProfileCatalogue
from epara_opt.domain.service import Service
from epara_opt.domain.topology import Topology
from epara_opt.errors import InputError, Violation
from epara_opt.plan import Plan, Replica, Route

MAX_HOLDERS = 16  # asked for one model by one server
_NEAR = 256  # servers around one that are looked at for holders


def servers_used(plan: Plan | None) -> frozenset[str]:
    """Servers that host a replica of the plan or at which routed demand enters."""
    if plan is None:
        return frozenset()
    return frozenset(s for r in plan.replicas for s in r.servers) | frozenset(r.origin for r in plan.routes)


def is_led_at(group: str, server: str) -> bool:
    """Whether requests for a group enter at this server: its id begins with it. Others of a chain hold stages of it."""
    return group.startswith(f"{server}/")


def replicas_by_group(replicas: Iterable[Replica]) -> dict[str, tuple[Replica, ...]]:
    """Group id to its tenants, both sorted."""
    table: dict[str, list[Replica]] = {}
    for r in sorted(replicas, key=lambda r: (r.group, r.service)):
        table.setdefault(r.group, []).append(r)
    return {g: tuple(rs) for g, rs in table.items()}


def address_of(server: str, topology: Topology) -> str:
    """Where a server's executor listens. Raises InputError naming the server where there is none."""
    known = topology.servers.get(server)
    if known is None:
        raise InputError(Violation(path=f"servers.{server}", law="expected a server of the topology", value="none"))
    if not known.address:
        raise InputError(
            Violation(path=f"servers.{server}.address", law="expected host:port, the plan uses this server")
        )
    return known.address


def group_spec(
    tenants: Sequence[Replica], topology: Topology, catalogue: ProfileCatalogue, *, server: str | None = None
) -> GroupSpec:
    """One device group with these tenants. All of them share group, server, devices and shape.

    server: of a chain, whose part of it is described; its head's unless given.
    """
    first = tenants[0]
    here = server or first.server
    kinds = {name: t.kind.value for name, t in topology.device_types.items()}
    mine = next((s for s in first.stages if s.server == here), first)
    return GroupSpec(
        group=first.group,
        server=here,
        device_type=mine.device_type,
        device_kind=kinds[mine.device_type],
        devices=mine.devices,
        tp=len(mine.devices) if first.stages else first.tp,
        pp=first.pp,
        parts=topology.device_types[first.device_type].parts,
        tenants=tuple(_tenant_spec(r, topology, catalogue) for r in sorted(tenants, key=lambda r: r.service)),
        stages=tuple(
            StageSpec(
                server=s.server,
                address=address_of(s.server, topology),
                device_kind=kinds[s.device_type],
                devices=s.devices,
                first_layer=s.first_layer,
                end_layer=s.end_layer,
            )
            for s in first.stages
        ),
    )


def group_specs(
    replicas: Iterable[Replica], topology: Topology, catalogue: ProfileCatalogue, *, server: str | None = None
) -> tuple[GroupSpec, ...]:
    """Every group of these replicas (at one server, if named, stages of chains too), in group order."""
    chosen = [r for r in replicas if server is None or server in r.servers]
    groups = replicas_by_group(chosen).values()
    return tuple(group_spec(tenants, topology, catalogue, server=server) for tenants in groups)


def fetch_specs(
    server: str,
    replicas: Iterable[Replica],
    running: Iterable[Replica],
    topology: Topology,
    *,
    down: frozenset[str] = frozenset(),
) -> tuple[FetchSpec, ...]:
    """Models that `server` needs for `replicas`, and who may have them: hosts of `running` first, nearest first.

    After those every other executor nearby: its disk may have what it does not run. Where the server has a model
    already it asks nobody.
    """
    hosts: dict[str, set[str]] = {}
    for r in running:
        if r.service in topology.services:
            hosts.setdefault(topology.services[r.service].model.source, set()).update(r.servers)
    address = {s.name: s.address for s in topology.servers.values() if s.address and s.name not in down}
    address.pop(server, None)
    around = [s.server for s in islice(topology.explore(server, without=down - {server}).nearest(), _NEAR)]
    near = [s for s in around if s in address]
    specs: list[FetchSpec] = []
    for source in sorted({topology.services[r.service].model.source for r in replicas}):
        have = hosts.get(source, set()) & address.keys()
        order = [s for s in near if s in have] + sorted(have.difference(near)) + [s for s in near if s not in have]
        holders = tuple(HolderSpec(server=s, address=address[s]) for s in order[:MAX_HOLDERS])
        specs.append(FetchSpec(source=source, holders=holders))
    return tuple(specs)


def _tenant_spec(r: Replica, topology: Topology, catalogue: ProfileCatalogue) -> TenantSpec:
    service = topology.services.get(r.service)
    if service is None:
        raise InputError(Violation(path=f"replicas.{r.id}", law="expected a service of the topology", value=r.service))
    performance = _performance(r, service, topology, catalogue)
    return TenantSpec(
        replica=r.id,
        service=r.service,
        source=service.model.source,
        task=service.model.task.value,
        batch=r.batch,
        frames=r.frames,
        sensitivity=service.sensitivity.value,
        deadline_ms=service.deadline_ms,
        fps=service.fps or 0.0,
        response_ms=r.response_ms,
        work_per_s=performance.work_per_s * service.events_per_work,
        prompt_tokens=service.request.prompt_tokens,
        output_tokens=service.request.output_tokens,
        tpot_ms=service.tpot_ms or 0.0,
    )


def _performance(r: Replica, service: Service, topology: Topology, catalogue: ProfileCatalogue) -> Performance:
    if r.stages:
        return chain_performance(topology, catalogue, service, stages_of(r), r.config)[0].whole
    profile = catalogue.shapes(service.model.profile_name, r.device_type).get((r.tp, r.pp))
    if profile is None:
        raise InputError(
            Violation(
                path=f"replicas.{r.id}",
                law=f"expected a profile of {service.model.profile_name} on {r.device_type}",
                value=f"none for tp{r.tp} pp{r.pp}",
            )
        )
    return evaluate(service, profile, r.config)


def commit_spec(
    server: str,
    *,
    topology: Topology,
    catalogue: ProfileCatalogue,
    live: Sequence[Replica],
    plan: Plan,
    plan_json: str | None = None,
) -> CommitSpec:
    """What `server` is told: `live` replicas of the whole edge (its own, and its stages of chains, become its groups),
    routes of `plan`.

    live: usually `plan.replicas`; during a change also those that an executor not yet switched still routes to.
    plan_json: what the executor keeps on disk; the plan itself unless given.
    """
    here = {r.id: r for r in plan.replicas}
    return CommitSpec(
        server=server,
        groups=group_specs(live, topology, catalogue, server=server),
        routes=tuple(
            _route_spec(route, here[route.replica], topology)
            for route in sorted(plan.routes, key=lambda x: (x.service, x.replica))
            if route.origin == server
        ),
        peers=_peers(server, plan, topology),
        plan_json=replace(plan, edge=None).to_json() if plan_json is None else plan_json,
    )


def _route_spec(route: Route, target: Replica, topology: Topology) -> RouteSpec:
    return RouteSpec(
        service=route.service,
        replica=route.replica,
        server=target.server,
        address=address_of(target.server, topology),
        rate_per_s=route.rate * topology.services[route.service].events_per_work,
        network_ms=route.network_ms,
        frames=target.frames,
    )


def _peers(server: str, plan: Plan, topology: Topology) -> tuple[PeerSpec, ...]:
    """Every other server with live replicas of a service, whether or not this one's routes use it."""
    capacity: dict[tuple[str, str], float] = {}
    for r in plan.replicas:
        if r.server != server:
            key = (r.service, r.server)
            capacity[key] = capacity.get(key, 0.0) + r.capacity * topology.services[r.service].events_per_work
    peers: list[PeerSpec] = []
    for (name, host), per_s in sorted(capacity.items()):
        path = topology.path(server, host)
        if path is None:
            continue
        request = topology.services[name].request
        peers.append(
            PeerSpec(
                service=name,
                server=host,
                address=address_of(host, topology),
                network_ms=path.rtt_ms + path.transfer_ms(request.input_bytes + request.output_bytes),
                capacity_per_s=per_s,
            )
        )
    return tuple(peers)


def commit_specs(
    plan: Plan, topology: Topology, catalogue: ProfileCatalogue, *, servers: Iterable[str] | None = None
) -> Mapping[str, CommitSpec]:
    """The final state of every server named (those the plan uses, unless given)."""
    names = sorted(servers_used(plan) if servers is None else servers)
    for name in names:
        address_of(name, topology)
    return {
        name: commit_spec(name, topology=topology, catalogue=catalogue, live=plan.replicas, plan=plan) for name in names
    }


def with_endpoints(plan: Plan, topology: Topology) -> Plan:
    """The plan with each replica's executor address filled in where the topology gives one."""
    return replace(
        plan,
        replicas=tuple(replace(r, endpoint=topology.servers[r.server].address or "") for r in plan.replicas),
    )
