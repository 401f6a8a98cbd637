"""Why demand is not served: typed reasons from infeasibility and dual prices, never from guessing.

Asked in this order, for each service and origin with demand left over:

    no_profile         its model was never measured on any device type that stands
    no_memory          it was, but fits none of them
    no_route_in_time   no device, or no route from this origin to one, answers within the deadline
    no_devices         servers in reach have no devices, or fewer than one group needs
    no_batch           streams in reach of a server are fewer than the smallest batch that was measured
    outbid             it could be served, but what it needs is worth more elsewhere: devices, or a link
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from epara_opt.contents import Content, Tenant, fills_batch, least_responses
from epara_opt.domain.service import Demand
from epara_opt.placement import Placement, link_reserved, link_use, link_widths, served, value
from epara_opt.plan import Unserved
from epara_opt.problem import Edge, PlacementProblem

NEGLIGIBLE = 5e-7  # part of an origin's demand; less is a solver's tolerance, not a decision
FULL = 1.0 - 1e-6  # part of a link's bandwidth


@dataclass(frozen=True, slots=True)
class _Option:
    """The fastest way to serve an edge on one device type of its server."""

    edge: Edge
    device_type: str
    num_devices: int
    num_there: int
    response_ms: float

    @property
    def in_time(self) -> bool:
        return self.response_ms <= self.edge.slack_ms

    @property
    def fits(self) -> bool:
        return self.num_devices <= self.num_there


def explain_unserved(
    problem: PlacementProblem, placement: Placement, prices: Mapping[str, float] | None = None
) -> tuple[Unserved, ...]:
    """One entry per service and origin with demand left over, in the order of the demand.

    prices: dual values of the LP relaxation by row name (devices[...], link[...]): what one more unit on the row's
    right-hand side is worth, >= 0. Without them a reason says only what the placement itself shows.
    """
    done = served(placement)
    found: list[Unserved] = []
    scarcity = _Scarcity(problem, placement, prices or {})
    for i, d in enumerate(problem.demand):
        left = d.offered - done.get((d.service, d.origin), 0.0)
        if left > NEGLIGIBLE * d.offered:
            code, reason = _why(problem, d, i, scarcity)
            found.append(Unserved(service=d.service, origin=d.origin, rate=left, code=code, reason=reason))
    return tuple(found)


def _why(problem: PlacementProblem, demand: Demand, index: int, scarcity: _Scarcity) -> tuple[str, str]:
    if demand.service in problem.chains.services:
        return _why_no_chain(problem, demand, index, scarcity)
    misfits = problem.misfits.get(demand.service, ())
    for code in ("no_route_in_time", "no_memory", "no_profile"):  # the one that came closest
        if any(m.startswith(code) for m in misfits):
            return code, "; ".join(m.split(": ", 1)[-1] for m in misfits) + _over_several(problem, demand.service)
    service = problem.service(demand.service)
    edges = problem.table.of_demand(index)
    if not edges:
        nearest = _nearest_network(problem, demand)
        if nearest is None:
            return "no_devices", f"no server with devices can be reached from {demand.origin}"
        if nearest[0] <= service.deadline_ms:  # it would have an edge if it and the way to it stood
            if nearest[1] in problem.down:
                return "no_devices", f"the servers with devices near {demand.origin}, {nearest[1]} first, do not answer"
            way = problem.topology.path(demand.origin, nearest[1])
            lost = ", ".join(b for _, b in (way.hops if way else ()) if b in problem.down)
            return (
                "no_route_in_time",
                f"{lost} on the way to {nearest[1]} does not answer, and no way around it keeps "
                f"{service.deadline_ms:.0f} ms",
            )
        return (
            "no_route_in_time",
            f"every route breaks the SLO: nearest {nearest[1]} {nearest[0]:.0f} ms network > "
            f"{service.deadline_ms:.0f} ms",
        )
    options = [o for e in edges for o in scarcity.options(e)]
    if not options:
        servers = ", ".join(sorted({e.server for e in edges}))
        return "no_devices", f"no device type of the servers in reach ({servers}) can run {demand.service}"
    timely = [o for o in options if o.in_time]
    if not timely:
        best = min(options, key=lambda o: o.edge.network_ms + o.response_ms)
        return (
            "no_route_in_time",
            f"every route breaks the SLO: nearest {best.edge.server} {best.edge.network_ms:.0f} ms network + "
            f"{best.response_ms:.0f} ms service > {service.deadline_ms:.0f} ms",
        )
    fitting = [o for o in timely if o.fits]
    if not fitting:
        best = min(timely, key=lambda o: o.num_devices - o.num_there)
        return (
            "no_devices",
            f"one group needs {best.num_devices} {best.device_type} at one server; "
            f"{best.edge.server} has {best.num_there}, and no server in reach has more to spare",
        )
    if service.is_stream and not any(scarcity.fills_batch(o) for o in fitting):
        return "no_batch", scarcity.streams_wanted(demand, fitting)
    return "outbid", scarcity.reason(fitting)


def _over_several(problem: PlacementProblem, service: str) -> str:
    """What could be tried for a service that fits on no server."""
    model = problem.service(service).model
    sliced = any(m == model.profile_name for m, _, _ in problem.catalogue.slices)
    if problem.rules.across_servers or model.layers is None or not sliced:
        return ""
    return "; rules.across_servers would let it run over several servers"


def _why_no_chain(problem: PlacementProblem, demand: Demand, index: int, scarcity: _Scarcity) -> tuple[str, str]:
    """Of a service that runs over several servers or not at all."""
    service, limit = problem.service(demand.service), problem.rules.max_stages
    chains = [c for c in problem.chains.contents if demand.service in c.services]
    if not chains:
        return "no_memory", f"fits on no server, and no chain of up to {limit} stages over neighbours is in time"
    by_head: dict[str, list[Content]] = {}
    for c in chains:
        by_head.setdefault(c.stages[0].server, []).append(c)
    ways = [
        (e.network_ms + c.tenants[0].response_ms, e, c)
        for e in problem.table.of_demand(index)
        for c in by_head.get(e.server, ())
    ]
    timely = [c for _, e, c in ways if c.tenants[0].response_ms <= e.slack_ms]
    if not timely:
        best = min(ways, key=lambda w: w[0], default=None)
        nearest = f": the soonest takes {best[0]:.0f} ms from {demand.origin} by {best[1].server}" if best else ""
        return (
            "no_route_in_time",
            f"fits on no server, and no chain over neighbours answers within {service.deadline_ms:.0f} ms{nearest}",
        )
    return "outbid", scarcity.of_chains(timely)


def _nearest_network(problem: PlacementProblem, demand: Demand) -> tuple[float, str] | None:
    shape = problem.service(demand.service).request
    found: list[tuple[float, str]] = []
    for server in problem.topology.servers.values():
        path = problem.topology.path(demand.origin, server.name)
        if server.devices and path is not None:
            found.append((path.rtt_ms + path.transfer_ms(shape.input_bytes + shape.output_bytes), server.name))
    return min(found, default=None)


class _Scarcity:
    """What is used up, and what more of it would be worth."""

    def __init__(self, problem: PlacementProblem, placement: Placement, prices: Mapping[str, float]) -> None:
        self._problem = problem
        self._prices = prices
        widths = link_widths(problem.topology)
        used = link_reserved(placement.groups)
        for hop, load in link_use(problem, placement.flows).items():
            used[hop] = used.get(hop, 0.0) + load
        self._full = {hop for hop, load in used.items() if load >= FULL * widths[hop]}
        self._left = sum(problem.service(d.service).weight * d.offered for d in problem.demand) - value(
            problem, placement
        )
        self._crossed: dict[tuple[tuple[tuple[str, str], ...], bool, bool], list[tuple[str, str]]] = {}
        self._near: dict[tuple[str, str], list[tuple[float, float]]] = {}
        self._fillable: dict[tuple[str, str, str], list[float]] = {}
        self._singles: dict[str, dict[str, list[Tenant]]] = {}
        self._least: dict[tuple[str, str], list[tuple[int, float]]] = {}
        self._used: dict[tuple[str, str], int] = {}
        for group in placement.groups:
            for pool, number in group.pools.items():
                self._used[pool] = self._used.get(pool, 0) + number

    def options(self, edge: Edge) -> list[_Option]:
        """The edge's server, per device type and shape that can run the service."""
        found: list[_Option] = []
        for pool in self._problem.topology.servers[edge.server].devices:
            key = (edge.service, pool.type)
            if key not in self._least:
                problem = self._problem
                service = problem.service(edge.service)
                self._least[key] = least_responses(
                    service, problem.categories[service.name], problem.topology, problem.catalogue, pool.type
                )
            found += [_Option(edge, pool.type, k, pool.count, response_ms) for k, response_ms in self._least[key]]
        return found

    def streams_near(self, service: str, server: str) -> Sequence[tuple[float, float]]:
        """(slack_ms, streams) of each origin that reaches the server."""
        key = (service, server)
        if key not in self._near:
            problem = self._problem
            self._near[key] = [
                (e.slack_ms, problem.offered[service, e.origin]) for e in problem.table.to_server(service, server)
            ]
        return self._near[key]

    def fills_batch(self, option: _Option) -> bool:
        """Whether streams in reach can fill the batch of some content that serves this edge in time."""
        edge = option.edge
        key = (edge.service, edge.server, option.device_type)
        if key not in self._fillable:
            near = self.streams_near(edge.service, edge.server)
            service = self._problem.service(edge.service)
            self._fillable[key] = [
                t.response_ms
                for t in self._alone(edge.service, option.device_type)
                if fills_batch(service, t.config, sum(rate for slack, rate in near if slack >= t.response_ms))
            ]
        return any(response_ms <= edge.slack_ms for response_ms in self._fillable[key])

    def _alone(self, service: str, device_type: str) -> Sequence[Tenant]:
        """The service's tenants of contents that it has for itself."""
        if device_type not in self._singles:
            table: dict[str, list[Tenant]] = {}
            for content in self._problem.contents.get(device_type, ()):
                if len(content.tenants) == 1:
                    table.setdefault(content.tenants[0].service, []).append(content.tenants[0])
            self._singles[device_type] = table
        return self._singles[device_type].get(service, ())

    def streams_wanted(self, demand: Demand, options: Sequence[_Option]) -> str:
        least = [
            (t.config.batch, o.edge.server)
            for o in options
            for t in self._alone(demand.service, o.device_type)
            if t.response_ms <= o.edge.slack_ms
        ]
        batch, server = min(least, default=(0, options[0].edge.server))
        near = sum(rate for _, rate in self.streams_near(demand.service, server))
        return f"the smallest batch that is in time takes {batch} streams; {server} has {near:g} in reach"

    def reason(self, options: Sequence[_Option]) -> str:
        """Of a demand that could be served: what stands in its way."""
        open_options = [o for o in options if not self._full_hops(o.edge)]
        if not open_options:
            return self._links(options)
        short = [
            o for o in open_options if o.num_there - self._used.get((o.edge.server, o.device_type), 0) < o.num_devices
        ]
        if len(short) < len(open_options):
            free = next(o for o in open_options if o not in short)
            text = f"outbid: this plan leaves it out, though {free.device_type} are free at {free.edge.server}"
            if (free.edge.server, free.device_type) in self._problem.levels:
                text += "; what runs there now may leave no room to load it (rules.make_before_break)"
            return text
        pools = sorted({(o.device_type, o.edge.server) for o in short})
        types = " and ".join(sorted({t for t, _ in pools}))
        servers = ", ".join(sorted({s for _, s in pools}))
        left = any(o.num_there > self._used.get((o.edge.server, o.device_type), 0) for o in short)
        what = (
            f"too few {types} in reach ({servers}) are left" if left else f"all {types} in reach ({servers}) are in use"
        )
        if not self._prices:
            return f"outbid: {what}"
        text = f"outbid: {what} for what is worth more"
        best = max(pools, key=lambda p: (self._price(f"devices[{p[1]},{p[0]}]"), p))
        price = self._price(f"devices[{best[1]},{best[0]}]")
        if price > 0:
            text += f"; one more {best[0]} at {best[1]} would raise {self._worth(price)}"
        return text

    def of_chains(self, chains: Sequence[Content]) -> str:
        """Of chains that would be in time: what stands in their way."""
        short: set[tuple[str, str]] = set()
        narrow: set[tuple[str, str]] = set()
        for c in chains:
            pools = c.pools_at(c.stages[0].server)
            lacking = {p for p, number in pools.items() if self._there(p) - self._used.get(p, 0) < number}
            full = {hop for hop, _ in c.reserved if hop in self._full}
            if not lacking and not full:
                return "outbid: this plan leaves it out, though there are devices free for a chain over " + ", ".join(
                    dict.fromkeys(s.server for s in c.stages)
                )
            short |= lacking
            narrow |= full
        if not short:
            return (
                "outbid: every chain crosses a full link (" + ", ".join(f"{a} -> {b}" for a, b in sorted(narrow)) + ")"
            )
        where = ", ".join(f"{kind} at {server}" for server, kind in sorted(short))
        return f"outbid: a chain over neighbouring servers would need devices that are in use ({where})"

    def _there(self, pool: tuple[str, str]) -> int:
        server, device_type = pool
        return next((p.count for p in self._problem.topology.servers[server].devices if p.type == device_type), 0)

    def _full_hops(self, edge: Edge) -> list[tuple[str, str]]:
        """Links without room that the edge's requests or answers cross. Services at one origin share their paths."""
        if not self._full:
            return []
        shape = self._problem.service(edge.service).request
        key = (edge.path.hops, shape.input_bytes > 0, shape.output_bytes > 0)
        if key not in self._crossed:
            there = [hop for hop in edge.path.hops if key[1] and hop in self._full]
            back = [(b, a) for a, b in edge.path.hops if key[2] and (b, a) in self._full]
            self._crossed[key] = there + back
        return self._crossed[key]

    def _links(self, options: Sequence[_Option]) -> str:
        hops = sorted({hop for o in options for hop in self._full_hops(o.edge)})
        text = "outbid: every route crosses a full link (" + ", ".join(f"{a} -> {b}" for a, b in hops) + ")"
        a, b = max(hops, key=lambda h: (self._price(f"link[{h[0]}->{h[1]}]"), h))
        price = self._price(f"link[{a}->{b}]")
        if price > 0:  # of the whole bandwidth
            text += f"; 10 % more bandwidth {a} -> {b} would raise {self._worth(0.1 * price)}"
        return text

    def _price(self, row: str) -> float:
        return max(0.0, self._prices.get(row, 0.0))

    def _worth(self, price: float) -> str:
        """A price says what the whole plan would gain, not this demand alone; it never gains more than is left over."""
        return f"the plan's weighted goodput by about {min(price, self._left):.3g} per second"
