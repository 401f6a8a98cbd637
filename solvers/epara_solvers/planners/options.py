"""Every group that could still be placed, scored at once: the arrays behind the greedy rule.

For one server, a candidate is (content, resident or none). Its score is what one such group would earn from the
demand that is left: its tenants fill the group's time in order of value per time, each up to the demand within
its reach. Demand counts at most what each edge's own path could still carry, so links shared by several edges are
seen one edge at a time: the score is an upper bound on the gain, exact where links do not bind.

Edges of one service at one server are sorted by slack; a tenant reaches those from the first whose slack is at
least its response, so reach is a difference of two prefix sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from epara_opt.formulation.program import BoolArray, FloatArray, IntArray
from epara_opt.placement import link_widths
from epara_opt.problem import Content, Edge, PlacementProblem, Resident

NOTHING = 1e-9  # relative to an origin's demand: less work than that is not worth a flow


@dataclass(frozen=True, slots=True)
class ContentTable:
    """All contents of one device type, tenants in columns, padded to the widest. C contents, T tenants."""

    contents: tuple[Content, ...]
    service: IntArray  # (C, T) index into the problem's services; padding repeats the first tenant's
    response_ms: FloatArray  # (C, T) inf where padded, so that it reaches nothing
    work_per_s: FloatArray  # (C, T) 1 where padded
    weight: FloatArray  # (C, T) 0 where padded
    fresh_share: FloatArray  # (C, T) earning share of a tenant that must be loaded first
    batch: IntArray  # (C, T) streams that must be in reach to fill a batch; 0 where it fills by waiting, or padded
    num_devices: IntArray  # (C,)

    @staticmethod
    def of(problem: PlacementProblem, contents: Sequence[Content], service_index: Mapping[str, int]) -> ContentTable:
        width = max((len(c.tenants) for c in contents), default=1)
        shape = (len(contents), width)
        service = np.zeros(shape, dtype=np.int64)
        response = np.full(shape, np.inf)
        work = np.ones(shape)
        weight = np.zeros(shape)
        fresh = np.zeros(shape)
        batch = np.zeros(shape, dtype=np.int64)
        for row, content in enumerate(contents):
            service[row, :] = service_index[content.tenants[0].service]
            for col, tenant in enumerate(content.tenants):
                service[row, col] = service_index[tenant.service]
                response[row, col] = tenant.response_ms
                work[row, col] = tenant.work_per_s
                weight[row, col] = problem.service(tenant.service).weight
                fresh[row, col] = problem.earning_share(tenant, None)
                batch[row, col] = tenant.config.batch if problem.service(tenant.service).is_stream else 0
        devices = np.array([c.num_devices for c in contents], dtype=np.int64)
        return ContentTable(tuple(contents), service, response, work, weight, fresh, batch, devices)


@dataclass(frozen=True, slots=True)
class Options:
    """What one pool of one server could host, as new groups or on one resident. K candidates."""

    device_type: str
    resident: Resident | None
    contents: tuple[Content, ...]  # (K,)
    num_devices: IntArray  # (K,)
    is_move: BoolArray  # (K,) as the problem counts moves
    exceeded: IntArray  # (K,) levels of its pool (epara_opt.beside) that are too little for it
    first: IntArray  # (K, T) where a tenant's reach begins among the site's edges; tenants by value per time
    last: IntArray  # (K, T) where it ends
    work_per_s: FloatArray  # (K, T)
    value_per_work: FloatArray  # (K, T) weight x earning share

    def scores(self, reach_before: FloatArray) -> FloatArray:
        """(K,) what each candidate would earn. reach_before: prefix sums over the site's edges."""
        left = np.ones(len(self.contents))
        gain = np.zeros(len(self.contents))
        for t in range(self.first.shape[1]):
            work = self.work_per_s[:, t]
            reach = np.maximum(0.0, reach_before[self.last[:, t]] - reach_before[self.first[:, t]])
            time = np.minimum(left, reach / work)
            gain += self.value_per_work[:, t] * work * time
            left -= time
        return gain


@dataclass(frozen=True, slots=True)
class Site:
    """One server: its edges, sorted by service and slack, and its options. E edges, H hops at most."""

    server: str
    edges: tuple[Edge, ...]
    origin_index: IntArray  # (E,) index into demand
    hop: IntArray  # (E, H) directed link indexes; padding points at a link without limit
    bytes_per_work: FloatArray  # (E, H)
    segment: Mapping[str, tuple[int, int]]  # service to its range of edges
    options: tuple[Options, ...]

    def caps(self, demand_left: FloatArray, link_left: FloatArray) -> FloatArray:
        """(E,) work that each edge alone could still carry."""
        caps = demand_left[self.origin_index]
        if self.hop.shape[1]:
            caps = np.minimum(caps, (link_left[self.hop] / self.bytes_per_work).min(axis=1))
        return np.maximum(caps, 0.0)


@dataclass(frozen=True, slots=True)
class Ground:
    """The whole edge in arrays. D origins with demand, L directed links and one that never binds."""

    problem: PlacementProblem
    sites: tuple[Site, ...]
    offered: FloatArray  # (D,)
    link_width: FloatArray  # (L + 1,) bytes/s, the last one inf

    @staticmethod
    def of(problem: PlacementProblem) -> Ground:
        services = sorted({d.service for d in problem.demand})
        service_index = {name: i for i, name in enumerate(services)}
        demand_index = {(d.service, d.origin): i for i, d in enumerate(problem.demand)}
        widths = link_widths(problem.topology)
        link_index = {hop: i for i, hop in enumerate(widths)}
        tables = {g: ContentTable.of(problem, c, service_index) for g, c in problem.contents.items() if c}
        by_server: dict[str, list[tuple[str, tuple[Edge, ...]]]] = {}
        for (service, server), edges in sorted(problem.edges_by_service_server.items()):
            by_server.setdefault(server, []).append((service, edges))
        sites = [
            _site(problem, server.name, by_server[server.name], tables, service_index, demand_index, link_index)
            for server in problem.topology.servers.values()
            if server.name in by_server
        ]
        return Ground(
            problem=problem,
            sites=tuple(s for s in sites if s.options),
            offered=np.array([d.offered for d in problem.demand], dtype=np.float64),
            link_width=np.array([*widths.values(), np.inf], dtype=np.float64),
        )


def _site(
    problem: PlacementProblem,
    server: str,
    by_service: Sequence[tuple[str, tuple[Edge, ...]]],
    tables: Mapping[str, ContentTable],
    service_index: Mapping[str, int],
    demand_index: Mapping[tuple[str, str], int],
    link_index: Mapping[tuple[str, str], int],
) -> Site:
    edges: list[Edge] = []
    segment: dict[str, tuple[int, int]] = {}
    for service, mine in by_service:
        segment[service] = (len(edges), len(edges) + len(mine))
        edges.extend(mine)
    loads = [problem.link_loads(e) for e in edges]
    width = max((len(row) for row in loads), default=0)
    hop = np.full((len(edges), width), len(link_index), dtype=np.int64)
    load = np.ones((len(edges), width))
    for row, pairs in enumerate(loads):
        for col, (name, per_work) in enumerate(pairs):
            hop[row, col], load[row, col] = link_index[name], per_work
    slack = np.array([e.slack_ms for e in edges])
    before = np.concatenate(([0.0], np.cumsum([problem.offered[e.service, e.origin] for e in edges])))
    starts = np.zeros(len(service_index), dtype=np.int64)
    ends = np.zeros(len(service_index), dtype=np.int64)
    for service, (start, end) in segment.items():
        starts[service_index[service]], ends[service_index[service]] = start, end
    options: list[Options] = []
    for pool in problem.topology.servers[server].devices:
        table = tables.get(pool.type)
        if table is None:
            continue
        first, useful = _reach(table, slack, before, starts, ends, pool.count)
        held = [r for r in problem.residents if (r.server, r.device_type) == (server, pool.type) and not r.stages]
        for resident in (None, *held):
            made = _options(problem, server, pool.type, table, first, ends, useful, resident)
            if made.contents:
                options.append(made)
    return Site(
        server=server,
        edges=tuple(edges),
        origin_index=np.array([demand_index[e.service, e.origin] for e in edges], dtype=np.int64),
        hop=hop,
        bytes_per_work=load,
        segment=segment,
        options=tuple(options),
    )


def _reach(
    table: ContentTable, slack: FloatArray, before: FloatArray, starts: IntArray, ends: IntArray, pool_size: int
) -> tuple[IntArray, BoolArray]:
    """Where each tenant's reach begins (C, T), and which contents are useful here, as the problem defines it."""
    first = ends[table.service].copy()
    for index in range(len(starts)):
        mine = (table.service == index) & np.isfinite(table.response_ms)
        if starts[index] < ends[index] and mine.any():
            within = slack[starts[index] : ends[index]]
            first[mine] = starts[index] + np.searchsorted(within, table.response_ms[mine], side="left")
    last = ends[table.service]
    reaches = (first < last) | ~np.isfinite(table.response_ms)
    fills = table.batch <= np.ceil(before[last] - before[first] - NOTHING)
    return first, (reaches & fills).all(axis=1) & (table.num_devices <= pool_size)


def _options(
    problem: PlacementProblem,
    server: str,
    device_type: str,
    table: ContentTable,
    first: IntArray,
    ends: IntArray,
    useful: BoolArray,
    resident: Resident | None,
) -> Options:
    share = table.fresh_share
    chosen = np.flatnonzero(useful)
    if resident is not None:
        chosen = np.array(
            [
                i
                for i in chosen.tolist()
                if (table.contents[i].tp, table.contents[i].pp) == (resident.tp, resident.pp)
                and table.contents[i].services & resident.services
                and problem.can_replace(table.contents[i], resident)
            ],
            dtype=np.int64,
        )
        share = share.copy()
        for i in chosen.tolist():
            for t, tenant in enumerate(table.contents[i].tenants):
                if tenant.service in resident.services:
                    share[i, t] = 1.0
    value = (table.weight * share)[chosen]
    work = table.work_per_s[chosen]
    order = np.argsort(-(value * work), axis=1, kind="stable")
    return Options(
        device_type=device_type,
        resident=resident,
        contents=tuple(table.contents[i] for i in chosen.tolist()),
        num_devices=table.num_devices[chosen],
        is_move=np.array([problem.is_move(table.contents[i], resident) for i in chosen.tolist()], dtype=np.bool_),
        exceeded=_exceeded(problem, (server, device_type), [table.contents[i] for i in chosen.tolist()], resident),
        first=np.take_along_axis(first[chosen], order, axis=1),
        last=np.take_along_axis(ends[table.service[chosen]], order, axis=1),
        work_per_s=np.take_along_axis(work, order, axis=1),
        value_per_work=np.take_along_axis(value, order, axis=1),
    )


def _exceeded(
    problem: PlacementProblem, pool: tuple[str, str], contents: Sequence[Content], resident: Resident | None
) -> IntArray:
    levels = problem.levels.get(pool)
    if levels is None:
        return np.zeros(len(contents), dtype=np.int64)
    return np.array([levels.exceeded(problem.needs_beside(c, resident)) for c in contents], dtype=np.int64)
