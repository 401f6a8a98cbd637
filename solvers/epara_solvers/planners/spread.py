"""Use devices that the optimum leaves idle: less company, shorter queues, and a second place when a server is lost.

The program is fluid: where everything can be served it is indifferent between four services on one device and four
services on four devices. Bursts and crashes are not. So work moves from the fullest groups to idle devices, as long
as that costs nothing: the moved work earns as much as before (a replica that would have to load while others serve
does not), every deadline and every link holds, and no device that serves becomes fuller than the one relieved.

The measure is the sum over groups of utilization squared, which for Poisson arrivals grows as the waiting does near
the lower end (M/G/1: proportional to u / (1 - u) per unit of work u); a service without a second server counts double.
The objective, its bound and the gap stay what they were.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from epara_opt.placement import Flow, PlacedGroup, Placement, link_reserved, link_use, link_widths, tenant_of
from epara_opt.problem import Content, Edge, PlacementProblem

ENOUGH = 1e-4  # improvement of the measure below which a replica is not worth its memory
SECOND_PLACE = 2.0  # weight of an improvement that gives a service a second server
FREE = 1.0 - 1e-9  # earning share from which a new replica costs nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shift:
    """Flows (by index, with the rate that moves) to a new group."""

    gain: float
    server: str
    content: Content
    moved: tuple[tuple[int, float, Edge], ...]


def spread(problem: PlacementProblem, placement: Placement, *, time_is_up: Callable[[], bool]) -> Placement:
    """The same value on more devices. Returns the placement itself where nothing is to be had."""
    if problem.moves_allowed is not None or problem.levels:
        return placement  # every shift is a move, and moves are counted or must find room beside what runs
    free = _free_devices(problem, placement)
    if time_is_up() or not any(free.values()):
        return placement
    ways = _Ways(problem)
    homes = _single_tenant_contents(problem)
    links = _Links(problem, placement)
    while any(free.values()):
        shift = _best(problem, placement, free, ways, homes, links, time_is_up)
        if shift is None:
            break
        free[shift.server, shift.content.device_type] -= shift.content.num_devices
        links.take(links.more(placement, shift))
        placement = _made(placement, shift)
    return placement


class _Ways:
    """Edges by service, origin and server, looked up when somebody asks: most never are."""

    def __init__(self, problem: PlacementProblem) -> None:
        self._table = problem.table
        self._known: dict[tuple[str, str, str], Edge | None] = {}

    def find(self, service: str, origin: str, server: str) -> Edge | None:
        key = (service, origin, server)
        if key not in self._known:
            at = self._table.find(*key)
            self._known[key] = self._table.edge(at) if at >= 0 else None
        return self._known[key]


class _Links:
    """What is left of each directed link, kept as work moves: adding up all flows for each shift took seconds."""

    def __init__(self, problem: PlacementProblem, placement: Placement) -> None:
        self._problem = problem
        self._left = link_widths(problem.topology)
        for used in (link_use(problem, placement.flows), link_reserved(placement.groups)):
            for hop, load in used.items():
                self._left[hop] -= load

    def more(self, placement: Placement, shift: _Shift) -> dict[tuple[str, str], float]:
        """Bytes per second that a shift adds to each link; less than 0 where it takes load off."""
        added: dict[tuple[str, str], float] = {}
        for i, rate, edge in shift.moved:
            if edge.server == placement.flows[i].edge.server:
                continue  # the same way, from one device to the next
            for sign, way in ((1.0, edge), (-1.0, placement.flows[i].edge)):
                for hop, per_work in self._problem.link_loads(way):
                    added[hop] = added.get(hop, 0.0) + sign * per_work * rate
        return added

    def fit(self, added: dict[tuple[str, str], float]) -> bool:
        return all(load <= max(0.0, self._left[hop]) for hop, load in added.items())

    def take(self, added: dict[tuple[str, str], float]) -> None:
        for hop, load in added.items():
            self._left[hop] -= load


def _free_devices(problem: PlacementProblem, placement: Placement) -> dict[tuple[str, str], int]:
    hosts = sorted(problem.table.servers)  # those that stand and can be reached
    free = {(s, p.type): p.count for s in hosts for p in problem.topology.servers[s].devices}
    for group in placement.groups:
        for pool, number in group.pools.items():
            if pool in free:
                free[pool] -= number
    return free


def _single_tenant_contents(problem: PlacementProblem) -> dict[tuple[str, str], list[Content]]:
    """(service, device type) to contents that hold it alone and cost nothing to start; the strongest first."""
    found: dict[tuple[str, str], list[Content]] = {}
    for device_type, contents in problem.contents.items():
        for content in contents:
            if len(content.tenants) == 1 and problem.earning_share(content.tenants[0], None) >= FREE:
                found.setdefault((content.tenants[0].service, device_type), []).append(content)
    for same in found.values():
        same.sort(key=lambda c: (c.num_devices, -c.tenants[0].work_per_s))
    return found


def _best(
    problem: PlacementProblem,
    placement: Placement,
    free: dict[tuple[str, str], int],
    ways: _Ways,
    homes: dict[tuple[str, str], list[Content]],
    links: _Links,
    time_is_up: Callable[[], bool],
) -> _Shift | None:
    """The shift that lowers the measure most; ties go to the shorter network time, then to names. None: out of time."""
    used: dict[int, dict[str, list[int]]] = {}
    hosts: dict[str, set[str]] = {}
    for i, flow in enumerate(placement.flows):
        if flow.rate > 0:
            used.setdefault(flow.group, {}).setdefault(flow.edge.service, []).append(i)
            hosts.setdefault(flow.edge.service, set()).add(placement.groups[flow.group].server)
    best: tuple[tuple[float, float, str, str], _Shift] | None = None
    for g, by_service in used.items():
        if time_is_up():
            return None
        group = placement.groups[g]
        share = {s: _share(placement, group, s, flows) for s, flows in by_service.items()}
        full = sum(share.values())
        for service, flows in by_service.items():
            part = 1.0 if len(by_service) > 1 else 0.5  # a tenant leaves its company; a lone one is halved
            relief = full**2 - (full - part * share[service]) ** 2
            for (server, device_type), count in free.items():
                for content in homes.get((service, device_type), ()):
                    if content.num_devices > count or not problem.useful_at(content, server):
                        continue
                    tenant = content.tenants[0]
                    moved = tuple(
                        (i, part * placement.flows[i].rate, edge)
                        for i in flows
                        if (edge := ways.find(service, placement.flows[i].edge.origin, server)) is not None
                        and edge.slack_ms >= tenant.response_ms
                    )
                    if len(moved) < len(flows):
                        continue
                    there = sum(rate for _, rate, _ in moved) / tenant.work_per_s
                    second = SECOND_PLACE if part < 1.0 and hosts[service] == {group.server} != {server} else 1.0
                    gain = (relief - there**2) * second
                    if there > full or gain < ENOUGH:
                        continue
                    network_ms = sum(rate * edge.network_ms for _, rate, edge in moved)
                    shift = _Shift(gain=gain, server=server, content=content, moved=moved)
                    key = (-gain, network_ms, server, service)
                    if (best is None or key < best[0]) and links.fit(links.more(placement, shift)):
                        best = key, shift
                    break  # weaker contents of the same service and type do not do better
    return best[1] if best else None


def _share(placement: Placement, group: PlacedGroup, service: str, flows: list[int]) -> float:
    return sum(placement.flows[i].rate for i in flows) / tenant_of(group, service).work_per_s


def _made(placement: Placement, shift: _Shift) -> Placement:
    new = len(placement.groups)
    flows = list(placement.flows)
    for i, rate, edge in shift.moved:
        flows[i] = replace(flows[i], rate=flows[i].rate - rate)
        flows.append(Flow(edge=edge, group=new, rate=rate))
    return Placement(
        groups=(*placement.groups, PlacedGroup(server=shift.server, content=shift.content)),
        flows=tuple(f for f in flows if f.rate > 0),
    )
