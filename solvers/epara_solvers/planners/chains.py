"""Chains on what a placement leaves: devices, bandwidth and demand that nothing inside servers uses.

Services that run on chains run nowhere else, so their demand is all there; what they compete for is devices and links.
A chain's gain is a fractional knapsack over the edges to its head, the most valuable work first, nearest origins first
among equals. Greedy: the chain of the highest gain per device, again and again, until none fits or gains.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from epara_opt.formulation.compact import Column, chain_columns
from epara_opt.placement import Flow, PlacedGroup, Placement, link_reserved, link_use, link_widths, served
from epara_opt.problem import PlacementProblem, Resident

NOTHING = 1e-9  # part of a demand, or of a link, that is not worth a flow
Hop = tuple[str, str]
Pool = tuple[str, str]


@dataclass(slots=True)
class Room:
    """What is left beside a placement."""

    devices: dict[Pool, int]
    links: dict[Hop, float]  # bytes/s
    demand: dict[tuple[str, str], float]
    moves: int | None  # None: as many as wanted
    kept: set[str] = field(default_factory=set[str])  # residents in use

    @staticmethod
    def beside(problem: PlacementProblem, placement: Placement) -> Room:
        devices = {
            (s.name, p.type): p.count
            for s in problem.topology.servers.values()
            if s.name not in problem.down
            for p in s.devices
        }
        for group in placement.groups:
            for pool, number in group.pools.items():
                devices[pool] -= number
        links = link_widths(problem.topology)
        for used in (link_use(problem, placement.flows), link_reserved(placement.groups)):
            for hop, load in used.items():
                links[hop] = max(0.0, links[hop] - load)
        done = served(placement)
        allowed = problem.moves_allowed
        made = sum(problem.is_move(g.content, g.resident) for g in placement.groups)
        return Room(
            devices=devices,
            links=links,
            demand={key: max(0.0, rate - done.get(key, 0.0)) for key, rate in problem.offered.items()},
            moves=None if allowed is None else allowed - made,
            kept={g.resident.group for g in placement.groups if g.resident is not None},
        )


@dataclass(frozen=True, slots=True)
class Offer:
    """One chain that could be added, and what it would carry."""

    group: PlacedGroup
    flows: tuple[Flow, ...]  # of group 0
    gain: float

    @property
    def per_device(self) -> float:
        return self.gain / self.group.content.num_devices


def offer(problem: PlacementProblem, column: Column, room: Room) -> Offer | None:
    """What one more group of a chain's column would carry and gain; None where it does not fit or gains nothing."""
    content, (tenant,), (earning,) = column.content, column.content.tenants, column.earning
    resident: Resident | None = next((r for r in column.residents if r.group not in room.kept), None)
    if column.residents and resident is None:
        return None
    if any(room.devices.get(pool, 0) < number for pool, number in content.pools_at(column.server).items()):
        return None
    if room.moves is not None and room.moves < problem.is_move(content, resident):
        return None
    links = dict(room.links)
    for hop, load in content.reserved:
        if load > links[hop] * (1.0 + NOTHING):
            return None
        links[hop] = max(0.0, links[hop] - load)
    worth = problem.service(tenant.service).weight * earning
    flows: list[Flow] = []
    left, gain = tenant.work_per_s, 0.0
    edges = problem.edges_by_service_server.get((tenant.service, column.server), ())
    for edge in sorted(edges, key=lambda e: (e.network_ms, e.origin)):
        if edge.slack_ms < tenant.response_ms:
            continue
        loads = problem.link_loads(edge)
        asked = room.demand[edge.service, edge.origin]
        rate = min([left, asked, *(links[hop] / load for hop, load in loads)])
        if rate <= NOTHING * problem.offered[edge.service, edge.origin]:
            continue
        for hop, load in loads:
            links[hop] = max(0.0, links[hop] - rate * load)
        flows.append(Flow(edge=edge, group=0, rate=rate))
        left -= rate
        gain += worth * rate
    if gain <= 0.0:
        return None
    return Offer(PlacedGroup(server=column.server, content=content, resident=resident), tuple(flows), gain)


def add(placement: Placement, chosen: Offer) -> Placement:
    """The placement with the chain after its other groups."""
    index = len(placement.groups)
    flows = tuple(Flow(edge=f.edge, group=index, rate=f.rate) for f in chosen.flows)
    return Placement(groups=(*placement.groups, chosen.group), flows=(*placement.flows, *flows))


def with_chains(
    problem: PlacementProblem, placement: Placement, *, time_is_up: Callable[[], bool] = lambda: False
) -> Placement:
    """The placement, and chains on what it leaves; itself where there is nothing to add."""
    columns = chain_columns(problem)
    while columns and not time_is_up():
        room = Room.beside(problem, placement)
        offers = [found for c in columns if (found := offer(problem, c, room)) is not None]
        if not offers:
            break
        placement = add(placement, max(offers, key=lambda o: (o.per_device, o.gain)))
    return placement
