"""The problem in arrays: what the compiled kernels read. Made once per problem, never changed.

D demands, H directed links, P paths, E edges, N servers, L services, S segments (edges of one service to one server),
Q pools (devices of one type at one server), C contents of all device types, K columns, T tenants at most.

A *column* is a content at a pool, new or on a class of interchangeable residents, kept where every tenant could serve
somebody from there in time and no other content of the same shape and services replaces it (the same rule as in
`formulation.compact`, so both models have the same optimum).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from epara_solvers.columns.sifting import Sifted, sift

from epara_opt.edges import EdgeTable
from epara_opt.problem import Content, PlacementProblem, Resident

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
I8 = npt.NDArray[np.int8]


class Arrays(NamedTuple):
    """See the module. Indexes are int32 where there are many of them. A named tuple, so that kernels take it whole."""

    offered: F64  # (D,) work
    worth: F64  # (D,) weight of the demand's service
    service_worth: F64  # (L,)
    link_width: F64  # (H,) bytes/s
    path_start: I64  # (P + 1,)
    path_hop: I32  # directed links, there
    path_back: I32  # the same links the other way
    there: F64  # (L,) bytes per work towards the server
    back: F64  # (L,) bytes per work of the answer
    edge_demand: I32  # (E,)
    edge_path: I32  # (E,)
    edge_service: I32  # (E,)
    seg_start: I64  # (S + 1,) edges of a segment, tightest slack first
    seg_service: I32  # (S,)
    server_seg: I64  # (N + 1,) segments of a server
    seg_at: I32  # (N, L) segment of a service at a server; -1: none
    pool_server: I32  # (Q,)
    pool_devices: I64  # (Q,)
    server_pool: I64  # (N + 1,) pools of a server
    pool_column: I64  # (Q + 1,) columns of a pool, those of fewer tenants first
    content_service: I32  # (C, T) -1: no such tenant
    content_work: F64  # (C, T) work/s
    content_worth: F64  # (C, T) weight
    content_fresh: F64  # (C, T) earning share of a tenant that must be loaded
    content_devices: I64  # (C,)
    every_column: I32  # (K,) 0, 1, 2, ...
    column_content: I32  # (K,)
    column_class: I32  # (K,) of residents; -1: new
    column_loaded: I8  # (K,) bit t: tenant t is loaded in the class
    column_max: I32  # (K,) groups that demand can fill
    column_first: I32  # (K, T) first edge fast enough for the tenant
    column_moves: I8  # (K,) 1: it loads something, where moves are counted
    column_exceeds: I32  # (K,) levels of its pool (epara_opt.beside) that are too little for it
    class_size: I64  # (R,) residents of a class
    level_start: I64  # (Q + 1,) levels of a pool
    level_devices: I64  # devices with more than a level free beside what runs


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """Arrays, and what their indexes mean."""

    problem: PlacementProblem
    table: EdgeTable
    arrays: Arrays
    contents: tuple[Content, ...]
    pools: tuple[tuple[str, str], ...]  # server, device type
    classes: tuple[tuple[Resident, ...], ...]

    @property
    def num_servers(self) -> int:
        return len(self.table.servers)


def ground_of(problem: PlacementProblem) -> Ground:
    """The arrays of a problem. Raises nothing; a problem without demand or contents gives empty arrays."""
    table = problem.table
    service_index = {name: i for i, name in enumerate(table.services)}
    types = sorted(problem.contents)
    contents = tuple(c for g in types for c in sorted(problem.contents[g], key=_shape_and_services))
    width = max((len(c.tenants) for c in contents), default=1)
    beside = bool(problem.levels)  # whether memory beside what runs matters
    rows = _content_rows(problem, contents, service_index, width)
    type_start = np.zeros(len(types) + 1, dtype=np.int64)
    type_start[1:] = np.cumsum([len(problem.contents[g]) for g in types])
    pools = tuple(
        (n, p.type) for n in table.servers for p in problem.topology.servers[n].devices if p.type in problem.contents
    )
    server_index = {name: i for i, name in enumerate(table.servers)}
    pool_server = np.array([server_index[n] for n, _ in pools], dtype=np.int32)
    pool_devices = np.array(
        [p.count for n in table.servers for p in problem.topology.servers[n].devices if p.type in problem.contents],
        dtype=np.int64,
    )
    seg_start, seg_service, server_seg, seg_at = _segments(table)
    offered = np.array([d.offered for d in problem.demand], dtype=np.float64)
    worth = np.array([problem.service(d.service).weight for d in problem.demand], dtype=np.float64)
    classes = _classes(problem, pools)
    class_pool = np.array([pools.index((c[0].server, c[0].device_type)) for c in classes], dtype=np.int64)
    class_start = np.searchsorted(class_pool, np.arange(len(pools) + 1))
    class_services = np.zeros((len(classes), max(1, len(table.services))), dtype=np.bool_)
    class_memory = np.zeros((len(classes), max(1, len(table.services)) + 1))  # the last: of services nobody asks for
    for i, members in enumerate(classes):
        for name in members[0].services:
            if name in service_index:
                class_services[i, service_index[name]] = True
        for name, num_bytes in members[0].memory if beside else ():
            class_memory[i, service_index.get(name, len(table.services))] += num_bytes
    level_start, level_free, level_devices = _levels(problem, pools)
    sifted = sift(
        pool_server=pool_server,
        pool_devices=pool_devices,
        pool_type=np.array([types.index(g) for _, g in pools], dtype=np.int64),
        type_start=type_start,
        content_group=rows.group,
        content_devices=rows.devices,
        content_service=rows.service,
        content_response=rows.response_ms,
        content_work=rows.work,
        content_load=rows.load_s,
        content_streams=rows.streams,
        # Keeping a tenant spares its load, a move where those are counted, or room beside what runs.
        content_spared=(rows.fresh < 1.0) | problem.staying_counts,
        content_tp=np.array([c.tp for c in contents], dtype=np.int64),
        content_pp=np.array([c.pp for c in contents], dtype=np.int64),
        content_memory=rows.memory,
        content_needs=np.array([problem.needs_beside(c, None) for c in contents], dtype=np.int64),
        level_start=level_start,
        level_free=level_free,
        pool_memory=np.array([problem.topology.device_types[g].memory_bytes for _, g in pools], dtype=np.float64),
        seg_at=seg_at,
        seg_start=seg_start,
        edge_slack=table.slack_ms,
        edge_offered=offered[table.demand],
        class_start=class_start.astype(np.int64),
        class_shape=np.array([(c[0].tp, c[0].pp) for c in classes], dtype=np.int64).reshape(-1, 2),
        class_size=np.array([len(c) for c in classes], dtype=np.int64),
        class_services=class_services,
        class_memory=class_memory,
    )
    server_pool = np.searchsorted(pool_server, np.arange(len(table.servers) + 1)).astype(np.int64)
    return Ground(
        problem=problem,
        table=table,
        contents=contents,
        pools=pools,
        classes=classes,
        arrays=Arrays(
            offered=offered,
            worth=worth,
            service_worth=np.array([problem.service(s).weight for s in table.services], dtype=np.float64),
            link_width=table.link_width,
            path_start=table.path_start,
            path_hop=table.path_hop,
            path_back=table.path_hop ^ np.int32(1),
            there=table.there_bytes,
            back=table.back_bytes,
            edge_demand=table.demand,
            edge_path=table.path,
            edge_service=table.service,
            seg_start=seg_start,
            seg_service=seg_service,
            server_seg=server_seg,
            seg_at=seg_at,
            pool_server=pool_server,
            pool_devices=pool_devices,
            server_pool=server_pool,
            pool_column=sifted.pool_column,
            content_service=rows.service,
            content_work=rows.work,
            content_worth=rows.worth,
            content_fresh=rows.fresh,
            content_devices=rows.devices,
            every_column=np.arange(len(sifted.content), dtype=np.int32),
            column_content=sifted.content,
            column_class=sifted.resident_class,
            column_loaded=sifted.loaded,
            column_max=sifted.max_groups,
            column_first=sifted.first,
            column_moves=_moves(problem, sifted, rows.service, class_services),
            column_exceeds=_exceeded(problem, sifted, contents, pools, classes),
            class_size=np.array([len(c) for c in classes], dtype=np.int64),
            level_start=level_start,
            level_devices=level_devices,
        ),
    )


def _shape_and_services(content: Content) -> tuple[int, int, int, tuple[str, ...]]:
    """Smaller companies first: what they gain rules out most of the larger ones unseen."""
    return len(content.tenants), content.tp, content.pp, tuple(t.service for t in content.tenants)


@dataclass(frozen=True, slots=True)
class _ContentRows:
    group: I64  # (C,) contents of one shape and the same services, in a row
    devices: I64
    service: I32  # (C, T)
    response_ms: F64  # inf where there is no tenant
    work: F64
    worth: F64
    fresh: F64
    load_s: F64
    memory: F64  # bytes per device; 0 where there is no tenant
    streams: F64  # that must be in reach to fill a batch; 0 where waiting fills it


def _content_rows(
    problem: PlacementProblem, contents: Sequence[Content], service_index: dict[str, int], width: int
) -> _ContentRows:
    shape = (len(contents), width)
    rows = _ContentRows(
        group=np.zeros(len(contents), dtype=np.int64),
        devices=np.array([c.num_devices for c in contents], dtype=np.int64),
        service=np.full(shape, -1, dtype=np.int32),
        response_ms=np.full(shape, math.inf),
        work=np.ones(shape),
        worth=np.zeros(shape),
        fresh=np.zeros(shape),
        load_s=np.zeros(shape),
        memory=np.zeros(shape),
        streams=np.zeros(shape),
    )
    last: tuple[str, int, int, int, tuple[str, ...]] | None = None
    group = -1
    for i, content in enumerate(contents):
        key = (content.device_type, *_shape_and_services(content))
        group += key != last
        last = key
        rows.group[i] = group
        for t, tenant in enumerate(content.tenants):
            service = problem.service(tenant.service)
            rows.service[i, t] = service_index[tenant.service]
            rows.response_ms[i, t] = tenant.response_ms
            rows.work[i, t] = tenant.work_per_s
            rows.worth[i, t] = service.weight
            rows.fresh[i, t] = problem.earning_share(tenant, None)
            rows.load_s[i, t] = tenant.load_s
            rows.memory[i, t] = tenant.memory_bytes
            rows.streams[i, t] = tenant.config.batch if service.is_stream else 0
    return rows


def _segments(table: EdgeTable) -> tuple[I64, I32, I64, I32]:
    """Runs of edges of one server and one service."""
    num_servers, num_services = len(table.servers), max(1, len(table.services))
    key = table.server.astype(np.int64) * num_services + table.service
    starts = np.flatnonzero(np.diff(key, prepend=-1))
    seg_start = np.append(starts, len(key)).astype(np.int64)
    seg_key = key[starts]
    seg_service = (seg_key % num_services).astype(np.int32)
    seg_server = seg_key // num_services
    seg_at = np.full((num_servers, num_services), -1, dtype=np.int32)
    seg_at[seg_server, seg_service] = np.arange(len(starts), dtype=np.int32)
    return seg_start, seg_service, np.searchsorted(seg_server, np.arange(num_servers + 1)).astype(np.int64), seg_at


def _classes(problem: PlacementProblem, pools: Sequence[tuple[str, str]]) -> tuple[tuple[Resident, ...], ...]:
    """Residents that are alike, in the order of pools."""
    alike: dict[tuple[str, str], dict[tuple[object, ...], list[Resident]]] = {}
    for r in problem.residents:
        if r.stages:
            continue  # a chain over several servers is no column of a pool
        alike.setdefault((r.server, r.device_type), {}).setdefault(problem.kind(r), []).append(r)
    return tuple(
        tuple(sorted(members, key=lambda r: r.group))
        for pool in pools
        for _, members in sorted(alike.get(pool, {}).items())
    )


def _moves(problem: PlacementProblem, sifted: Sifted, service: I32, class_services: npt.NDArray[np.bool_]) -> I8:
    """(K,) as the problem counts moves; all 0 where it does not."""
    if problem.moves_allowed is None:
        return np.zeros(len(sifted.content), dtype=np.int8)
    held = np.zeros((len(class_services) + 1, class_services.shape[1] + 1), dtype=np.bool_)  # the last row: new
    held[:-1, :-1] = class_services
    held[:, -1] = True  # no tenant
    loaded = held[sifted.resident_class[:, None], service[sifted.content]]
    return np.asarray(~loaded.all(axis=1), dtype=np.int8)


def _levels(problem: PlacementProblem, pools: Sequence[tuple[str, str]]) -> tuple[I64, I64, I64]:
    """Where the levels of each pool begin (Q + 1,), their bytes, and the devices above each."""
    known = [problem.levels.get(pool) for pool in pools]
    start = np.concatenate(([0], np.cumsum([len(k.devices) if k else 0 for k in known]))).astype(np.int64)
    free = np.array([b for k in known if k for b in k.free_bytes], dtype=np.int64)
    return start, free, np.array([d for k in known if k for d in k.devices], dtype=np.int64)


def _exceeded(
    problem: PlacementProblem,
    sifted: Sifted,
    contents: Sequence[Content],
    pools: Sequence[tuple[str, str]],
    classes: Sequence[tuple[Resident, ...]],
) -> I32:
    """(K,) how many levels of its pool are too little for a column."""
    exceeded = np.zeros(len(sifted.content), dtype=np.int32)
    if not problem.levels:
        return exceeded
    new = np.array([problem.needs_beside(c, None) for c in contents], dtype=np.int64)
    kept = np.array([*(problem.left_by(members[0]) for members in classes), 0], dtype=np.int64)
    for q, pool in enumerate(pools):
        if pool in problem.levels:
            mine = slice(sifted.pool_column[q], sifted.pool_column[q + 1])
            kind = sifted.resident_class[mine]
            needs = np.where(kind < 0, new[sifted.content[mine]], kept[kind])
            exceeded[mine] = np.searchsorted(problem.levels[pool].free_bytes, needs)
    return exceeded
