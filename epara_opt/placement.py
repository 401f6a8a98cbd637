"""A placement: groups with contents, and flows over them. What solvers produce before it becomes a plan.

`assemble` turns it into a plan. Groups and tenants that serve nothing are left out, whether they run already or not:
dropping them costs nothing now, and what a later cycle wants it pays for then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from epara_opt.domain.snapshot import topology_to_dict
from epara_opt.domain.topology import Topology
from epara_opt.errors import InputError, Violation
from epara_opt.plan import (
    Certificate,
    Plan,
    Predicted,
    Replica,
    Route,
    ServiceForecast,
    Stage,
    Stop,
    Unserved,
    relative_gap,
)
from epara_opt.problem import Content, Edge, PlacementProblem, Resident, Tenant, reduced

ROUNDING = 1e-9  # relative


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedGroup:
    """One device group of a server holding a content."""

    server: str
    content: Content
    resident: Resident | None = None  # the group in force whose devices and loaded tenants it keeps

    @property
    def pools(self) -> dict[tuple[str, str], int]:
        """(server, device type) to the devices it takes there."""
        return self.content.pools_at(self.server)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """Work of one service from one origin to one group, in the service's unit."""

    edge: Edge
    group: int  # index into Placement.groups
    rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    groups: tuple[PlacedGroup, ...]
    flows: tuple[Flow, ...]


def tenant_of(group: PlacedGroup, service: str) -> Tenant:
    """The tenant that serves this service. Raises InputError where there is none."""
    for tenant in group.content.tenants:
        if tenant.service == service:
            return tenant
    held = ", ".join(sorted(group.content.services))
    raise InputError(Violation(path=f"placement.{group.server}", law=f"expected one of {held}", value=service))


def value(problem: PlacementProblem, placement: Placement) -> float:
    """The objective: weight x rate, times the part of the cycle for which the tenant is loaded."""
    total = 0.0
    for flow in placement.flows:
        group = placement.groups[flow.group]
        earning = problem.earning_share(tenant_of(group, flow.edge.service), group.resident)
        total += problem.service(flow.edge.service).weight * earning * flow.rate
    return total


def link_widths(topology: Topology) -> dict[tuple[str, str], float]:
    """Bytes per second of each directed link."""
    widths: dict[tuple[str, str], float] = {}
    for link in topology.links:
        a, b = link.between
        widths[a, b] = widths[b, a] = link.bandwidth_bytes_per_s
    return widths


def link_use(problem: PlacementProblem, flows: Iterable[Flow]) -> dict[tuple[str, str], float]:
    """Bytes per second that flows put on each directed link they cross."""
    used: dict[tuple[str, str], float] = {}
    for flow in flows:
        for hop, per_work in problem.link_loads(flow.edge):
            used[hop] = used.get(hop, 0.0) + per_work * flow.rate
    return used


def link_reserved(groups: Iterable[PlacedGroup]) -> dict[tuple[str, str], float]:
    """Bytes per second that chains over several servers keep for what passes between their stages, at full rate."""
    kept: dict[tuple[str, str], float] = {}
    for group in groups:
        for hop, load in group.content.reserved:
            kept[hop] = kept.get(hop, 0.0) + load
    return kept


def served(placement: Placement) -> dict[tuple[str, str], float]:
    """(service, origin) to work served."""
    done: dict[tuple[str, str], float] = {}
    for flow in placement.flows:
        key = (flow.edge.service, flow.edge.origin)
        done[key] = done.get(key, 0.0) + flow.rate
    return done


def without_idle(placement: Placement) -> Placement:
    """Leave out groups that no flow uses."""
    used = sorted({f.group for f in placement.flows if f.rate > 0})
    index = {old: new for new, old in enumerate(used)}
    return Placement(
        groups=tuple(placement.groups[i] for i in used),
        flows=tuple(replace(f, group=index[f.group]) for f in placement.flows if f.rate > 0),
    )


def within_moves(problem: PlacementProblem, placement: Placement) -> Placement:
    """Leave out the moves that earn least where there are more than the rules allow."""
    allowed = problem.moves_allowed
    if allowed is None:
        return placement
    placement = _settled(problem, placement)
    earned = dict.fromkeys((i for i, g in enumerate(placement.groups) if problem.is_move(g.content, g.resident)), 0.0)
    for flow in placement.flows:
        if flow.group in earned:
            tenant = tenant_of(placement.groups[flow.group], flow.edge.service)
            share = problem.earning_share(tenant, placement.groups[flow.group].resident)
            earned[flow.group] += problem.service(flow.edge.service).weight * share * flow.rate
    dropped = set(sorted(earned, key=lambda i: (-earned[i], i))[allowed:])
    if not dropped:
        return placement
    return without_idle(replace(placement, flows=tuple(f for f in placement.flows if f.group not in dropped)))


def assemble(
    problem: PlacementProblem,
    placement: Placement,
    *,
    generation: int,
    solver: str,
    stop: Stop,
    dual_bound: float | None,
    wall_s: float,
    unserved: tuple[Unserved, ...],
    in_force: Plan | None = None,
    notes: Sequence[str] = (),
    made_at: str = "",
    certificate: Certificate | None = None,
) -> Plan:
    """The plan that carries out a placement: device indexes, ids, shares of time, routes and predictions.

    A group that keeps a resident keeps its id and its devices. New groups take free devices, first those that no
    resident uses, so that most can be prepared beside what runs. The same placement always gives the same plan.
    """
    if in_force is not None and generation <= in_force.generation:
        law = f"expected more than the generation in force, {in_force.generation}"
        raise InputError(Violation(path="plan.generation", law=law, value=str(generation)))
    placement = _settled(problem, placement)
    devices = _devices(problem, placement.groups)
    ids = [
        g.resident.group
        if g.resident
        else f"{g.server}/{g.content.device_type}/{'+'.join(map(str, d[0]))}/{generation}"
        for g, d in zip(placement.groups, devices, strict=True)
    ]
    replicas: list[Replica] = []
    busy: dict[str, float] = {}
    for index, (group, shares) in enumerate(zip(placement.groups, _shares(placement), strict=True)):
        used = sum(shares.values())
        filled = sum(t.utilization * shares[t.service] for t in group.content.tenants)
        for (server, _), num_devices in group.pools.items():
            busy[server] = busy.get(server, 0.0) + filled * num_devices
        replicas.extend(
            Replica(
                id=f"{tenant.service}@{ids[index]}",
                service=tenant.service,
                group=ids[index],
                server=group.server,
                device_type=group.content.device_type,
                devices=devices[index][0],
                tp=group.content.tp,
                pp=group.content.pp,
                batch=tenant.config.batch,
                frames=tenant.config.frames,
                share=shares[tenant.service],
                capacity=tenant.work_per_s * shares[tenant.service] / used,
                response_ms=tenant.response_ms,
                memory_bytes=tenant.memory_bytes,
                load_s=0.0 if group.resident and tenant.service in group.resident.services else tenant.load_s,
                endpoint=problem.topology.servers[group.server].address or "",
                stages=_stages(group.content, devices[index]),
            )
            for tenant in group.content.tenants
        )
    routes = _routes(placement, ids)
    objective = value(problem, placement)
    # Sums in another order differ in the last digits; a bound that was met must not fall below what met it.
    met = dual_bound is not None and dual_bound < objective <= dual_bound * (1.0 + ROUNDING)
    bound = objective if met else dual_bound
    return Plan(
        generation=generation,
        topology=problem.topology.name,
        inputs_digest=problem.digest,
        topology_digest=problem.topology.digest,
        edge=topology_to_dict(problem.topology),
        solver=solver,
        stop=stop,
        objective=objective,
        dual_bound=bound,
        gap=relative_gap(objective, bound),
        wall_s=wall_s,
        replicas=tuple(sorted(replicas, key=lambda r: (r.server, r.device_type, r.devices, r.service))),
        routes=routes,
        unserved=unserved,
        predicted=_predicted(problem, routes, busy),
        notes=(*problem.notes, *notes),
        made_at=made_at,
        certificate=certificate,
    )


def _settled(problem: PlacementProblem, placement: Placement) -> Placement:
    """No idle group or tenant; a resident is kept only by a group that still serves something it has loaded."""
    placement = without_idle(placement)
    groups: list[PlacedGroup] = []
    for group, shares in zip(placement.groups, _shares(placement), strict=True):
        services = frozenset(shares)
        keeps = group.resident is not None and bool(services & group.resident.services)
        groups.append(
            PlacedGroup(
                server=group.server,
                content=reduced(problem, group.content, services),
                resident=group.resident if keeps else None,
            )
        )
    return Placement(groups=tuple(groups), flows=placement.flows)


def _shares(placement: Placement) -> list[dict[str, float]]:
    """For each group, per service with work on it: the part of the group's time it takes."""
    table: list[dict[str, float]] = [{} for _ in placement.groups]
    for flow in placement.flows:
        service, shares = flow.edge.service, table[flow.group]
        work_per_s = tenant_of(placement.groups[flow.group], service).work_per_s
        shares[service] = shares.get(service, 0.0) + flow.rate / work_per_s
    return table


def _stages(content: Content, devices: Sequence[tuple[int, ...]]) -> tuple[Stage, ...]:
    return tuple(
        Stage(
            server=s.server,
            device_type=s.device_type,
            devices=chosen,
            first_layer=s.first_layer,
            end_layer=s.end_layer,
            memory_bytes=s.memory_bytes,
        )
        for s, chosen in zip(content.stages, devices, strict=False)
    )


def _devices(problem: PlacementProblem, groups: Sequence[PlacedGroup]) -> list[list[tuple[int, ...]]]:
    """Device indexes per group and stage (one stage inside a server). Raises InputError when a pool is asked for more
    than it has.

    Residents keep theirs. Others come in falling order of memory and take devices where that is free beside what runs,
    empty ones first: so none takes room that another needs more (see epara_opt.beside).
    """
    free = {(s.name, p.type): list(range(p.count)) for s in problem.topology.servers.values() for p in s.devices}
    held = {
        (server, device_type, device): num_bytes
        for r in problem.residents
        for server, device_type, devices, num_bytes in r.held
        for device in devices
    }
    chosen: dict[int, list[tuple[int, ...]]] = {}
    order = sorted(range(len(groups)), key=lambda i: -groups[i].content.memory_bytes if held else 0)
    for index in sorted(order, key=lambda i: groups[i].resident is None):
        group = groups[index]
        beside = problem.topology.device_types[group.content.device_type].memory_bytes - group.content.memory_bytes
        for pool in group.pools if group.resident is None else ():
            free[pool].sort(key=lambda d: (held.get((*pool, d), 0) > beside, (*pool, d) in held, d))
        chosen[index] = [_take(free, index, *asked) for asked in _asked(group)]
    return [chosen[i] for i in range(len(groups))]


def _asked(group: PlacedGroup) -> list[tuple[str, str, int, tuple[int, ...] | None]]:
    """Per stage: server, device type, number of devices, and those it keeps."""
    content, resident = group.content, group.resident
    if not content.stages:
        return [(group.server, content.device_type, content.num_devices, resident.devices if resident else None)]
    kept = [s.devices for s in resident.stages] if resident else [None] * len(content.stages)
    return [(s.server, s.device_type, s.tp, d) for s, d in zip(content.stages, kept, strict=True)]


def _take(
    free: dict[tuple[str, str], list[int]],
    index: int,
    server: str,
    device_type: str,
    number: int,
    kept: tuple[int, ...] | None,
) -> tuple[int, ...]:
    pool_free = free.get((server, device_type), [])
    wanted = tuple(sorted(pool_free[:number])) if kept is None else kept
    if len(wanted) != number or not set(wanted) <= set(pool_free):
        law, path = f"expected {number} free {device_type} device(s)", f"placement.groups[{index}] at {server}"
        raise InputError(Violation(path=path, law=law, value=str(list(wanted))))
    for device in wanted:
        pool_free.remove(device)
    return wanted


def _routes(placement: Placement, ids: Sequence[str]) -> tuple[Route, ...]:
    """Flows, those alike in service, origin and replica merged."""
    merged: dict[tuple[str, str, str], Route] = {}
    for flow in placement.flows:
        service, origin = flow.edge.service, flow.edge.origin
        replica = f"{service}@{ids[flow.group]}"
        known = merged.get((service, origin, replica))
        if known is not None:
            merged[service, origin, replica] = replace(known, rate=known.rate + flow.rate)
            continue
        response_ms = tenant_of(placement.groups[flow.group], service).response_ms
        merged[service, origin, replica] = Route(
            service=service,
            origin=origin,
            replica=replica,
            rate=flow.rate,
            network_ms=flow.edge.network_ms,
            predicted_ms=flow.edge.network_ms + response_ms,
        )
    return tuple(merged[key] for key in sorted(merged))


def _predicted(problem: PlacementProblem, routes: Sequence[Route], busy: Mapping[str, float]) -> Predicted:
    """What the plan promises. `busy`: device time used per server."""
    forecasts: list[ServiceForecast] = []
    for service in problem.topology.services.values():
        offered = sum(d.offered for d in problem.demand if d.service == service.name)
        mine = [r for r in routes if r.service == service.name]
        goodput = sum(r.rate for r in mine)
        forecasts.append(
            ServiceForecast(
                service=service.name,
                category=str(problem.categories[service.name]),
                unit=service.work_unit,
                offered=offered,
                goodput=goodput,
                slo_attainment=min(1.0, goodput / offered) if offered > 0 else 1.0,
                worst_ms=max((r.predicted_ms for r in mine), default=0.0),
            )
        )
    weights = [problem.service(f.service).weight for f in forecasts]
    goodput = sum(w * f.goodput for w, f in zip(weights, forecasts, strict=True))
    offered = sum(w * f.offered for w, f in zip(weights, forecasts, strict=True))
    return Predicted(
        goodput=goodput,
        offered=offered,
        slo_attainment=min(1.0, goodput / offered) if offered > 0 else 1.0,
        services=tuple(forecasts),
        utilization={
            s.name: busy.get(s.name, 0.0) / sum(p.count for p in s.devices)
            for s in problem.topology.servers.values()
            if s.devices
        },
    )
