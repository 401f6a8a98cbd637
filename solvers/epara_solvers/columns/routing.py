"""Who serves whom, best at once: a linear program over the groups of some servers, everything else as it is.

Repacking fills groups one after another, so what one group took first may stand in another's way. Here columns stay
and flows alone are chosen, within the time of each group, what is left of each demand and the bandwidth of each link.
Groups alike in one pool are one row, split afterwards; one that is left without work gives its devices back. A link is
a row once it would be overfull; most never are.

Measured on a generated edge of 1,000 servers x 100 services after a minute of repacking (2026-11-24, 2 shared cores,
one run): the best flows of all groups together earn 1.4 % more, after 180 s of simplex; regions of 40 servers, one
after another, 1.0 % after 5 s. At 100 x 60, 0.2 %.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from epara_solvers.columns import packing as packed
from epara_solvers.columns import simplex
from epara_solvers.columns.arrays import F64, I64, Arrays, Ground
from epara_solvers.columns.packing import NOTHING, Packing

LINK_ROUNDS = 5  # solves with more and more links; what is over after the last is cut
FULL = 0.9  # of its width: links used so far are rows from the start
OVER = 1e-7  # relative: by so much a solver may overfill a link


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ways:
    """V ways in which group rows could serve: one edge for one tenant of one row."""

    edge: I64  # (V,)
    tenant: I64  # (V,)
    row: I64  # (V,)
    work_rate: F64  # (V,) work/s of the tenant at full time
    worth: F64  # (V,) per work
    slots: tuple[tuple[int, ...], ...]  # groups of each row
    hop_way: I64  # (B,) a way crosses a directed link
    hop: I64  # (B,)
    hop_bytes: F64  # (B,) per work


class Router:
    """Re-routes among some servers of a ground at a time. Keeps nothing but indexes, so threads may share it."""

    def __init__(self, ground: Ground, pool_slot: I64) -> None:
        self._arrays = ground.arrays
        self._pool_of = np.repeat(np.arange(len(pool_slot) - 1), np.diff(pool_slot))  # (X,)
        pool_start = ground.arrays.server_pool
        self._slot_start = pool_slot[pool_start]  # (N + 1,)

    def improve(self, s: Packing, servers: I64, *, time_limit_s: float) -> float:
        """Give the groups of these servers their best flows. Returns what they earn more; at 0 nothing has changed.

        Without OR-Tools nothing ever does.
        """
        if not simplex.is_there():
            return 0.0
        a = self._arrays
        spans = [np.arange(int(self._slot_start[n]), int(self._slot_start[n + 1])) for n in servers]
        slots = np.concatenate(spans) if spans else np.zeros(0, dtype=np.int64)
        slots = slots[s.column[slots] >= 0]
        if len(slots) == 0:
            return 0.0
        parts = (s.num_flows, s.flow_edge, s.flow_tenant, s.flow_rate, s.gain)
        before = [part[slots] for part in parts]  # fancy indexes copy
        for x in slots:
            packed.book(a, s, x, -1.0)
        ways = self._ways(s, slots)
        work = _best(a, s, ways, time_limit_s) if len(ways.edge) else None
        if work is not None:
            s.num_flows[slots], s.gain[slots] = 0, 0.0
            _write(a, s, ways, work)
            gained = float(s.gain[slots].sum() - before[-1].sum())
            if gained > 0.0:
                for x in slots[s.num_flows[slots] == 0]:
                    packed.clear_slot(a, s, self._pool_of[x], x)
                return gained
            for x in slots:
                packed.book(a, s, x, -1.0)
        for part, was in zip(parts, before, strict=True):
            part[slots] = was
        for x in slots:
            packed.book(a, s, x, 1.0)
        return 0.0

    def _ways(self, s: Packing, slots: I64) -> _Ways:
        a = self._arrays
        row_of: dict[tuple[int, int], int] = {}
        members: list[list[int]] = []
        edges: list[I64] = []
        tenants: list[int] = []
        rows: list[int] = []
        for x in slots.tolist():
            q, k = int(self._pool_of[x]), int(s.column[x])
            row = row_of.setdefault((q, k), len(members))
            if row < len(members):
                members[row].append(x)
                continue
            members.append([x])
            c, n = a.column_content[k], a.pool_server[q]
            for t, service in enumerate(a.content_service[c].tolist()):
                if service < 0:
                    break
                seg = a.seg_at[n, service]
                reach = np.arange(max(int(a.seg_start[seg]), int(a.column_first[k, t])), int(a.seg_start[seg + 1]))
                demand = a.edge_demand[reach]
                edges.append(reach[s.demand_left[demand] > NOTHING * a.offered[demand]])
                tenants.append(t)
                rows.append(row)
        counts = [len(part) for part in edges]
        edge = np.concatenate(edges) if edges else np.zeros(0, dtype=np.int64)
        tenant, row = np.repeat(tenants, counts).astype(np.int64), np.repeat(rows, counts).astype(np.int64)
        first = [group[0] for group in members]
        column = s.column[first][row] if len(row) else row
        content = a.column_content[column]
        loaded = (a.column_loaded[column] >> tenant) & 1
        worth = a.content_worth[content, tenant] * np.where(loaded, 1.0, a.content_fresh[content, tenant])
        path, service = a.edge_path[edge], a.edge_service[edge]
        length = a.path_start[path + 1] - a.path_start[path]
        way = np.repeat(np.arange(len(edge)), length)
        at = np.arange(len(way)) + np.repeat(a.path_start[path] - np.cumsum(length) + length, length)
        return _Ways(
            edge=edge,
            tenant=tenant,
            row=row,
            work_rate=a.content_work[content, tenant],
            worth=worth,
            slots=tuple(tuple(group) for group in members),
            hop_way=np.concatenate((way, way)),
            hop=np.concatenate((a.path_hop[at], a.path_back[at])).astype(np.int64),
            hop_bytes=np.concatenate((a.there[service[way]], a.back[service[way]])),
        )


def _best(a: Arrays, s: Packing, ways: _Ways, time_limit_s: float) -> F64 | None:
    """(V,) work of each way; None where the solver gave none in time. Unknowns are parts of what each demand offers."""
    demands, demand_row = np.unique(a.edge_demand[ways.edge], return_inverse=True)
    num_ways, num_groups = len(ways.edge), len(ways.slots)
    scale = a.offered[demands][demand_row]
    limits = np.concatenate(
        ([len(group) for group in ways.slots], np.maximum(0.0, s.demand_left[demands]) / a.offered[demands])
    )
    every = np.arange(num_ways)
    objective = ways.worth * scale
    objective /= objective.max()  # tolerances on reduced costs are absolute, and weights may be of any size
    used = np.zeros(len(a.link_width), dtype=np.bool_)
    used[ways.hop] = True
    is_row = used & (s.link_left <= (1.0 - FULL) * a.link_width)
    room = np.maximum(0.0, s.link_left)
    work = None
    until = time.monotonic() + time_limit_s
    for _ in range(LINK_ROUNDS):
        left_s = until - time.monotonic()
        if work is not None and left_s <= 0.0:
            break
        links = np.flatnonzero(is_row)
        link_row = np.full(len(is_row), -1)
        link_row[links] = np.arange(len(links))
        hops = np.flatnonzero(is_row[ways.hop] & (ways.hop_bytes > 0.0))
        hop, way = ways.hop[hops], ways.hop_way[hops]
        work = simplex.maximum(
            objective=objective,
            row=np.concatenate((ways.row, num_groups + demand_row, num_groups + len(demands) + link_row[hop])),
            column=np.concatenate((every, every, way)),
            coefficient=np.concatenate(
                (scale / ways.work_rate, np.ones(num_ways), ways.hop_bytes[hops] * scale[way] / a.link_width[hop])
            ),
            upper=np.concatenate((limits, room[links] / a.link_width[links])),
            time_limit_s=left_s,
        )
        if work is None:
            return None
        work = np.maximum(0.0, work) * scale
        load = np.bincount(ways.hop, weights=ways.hop_bytes * work[ways.hop_way], minlength=len(room))
        over = (load > room + OVER * a.link_width) & ~is_row
        if not over.any():
            break
        is_row |= over
    return work


def _write(a: Arrays, s: Packing, ways: _Ways, work: F64) -> None:
    """Flows of these ways into the slots of their rows, each filled to its time; what has no room is left out."""
    demand = a.edge_demand[ways.edge]
    order = np.flatnonzero(work > NOTHING * a.offered[demand])
    order = order[np.argsort(ways.row[order], kind="stable")]
    row, at, left = -1, 0, 1.0
    slots: tuple[int, ...] = ()
    for v in order.tolist():
        if ways.row[v] != row:
            row, at, left = int(ways.row[v]), 0, 1.0
            slots = ways.slots[row]
        rate, e = float(ways.work_rate[v]), int(ways.edge[v])
        p, service, d = a.edge_path[e], a.edge_service[e], demand[v]
        there, back, first, last = a.there[service], a.back[service], a.path_start[p], a.path_start[p + 1]
        room = min(float(work[v]), float(s.demand_left[d]))
        room = packed.room_on_path(room, there, back, first, last, a.path_hop, a.path_back, s.link_left)
        served = 0.0
        while room - served > NOTHING * a.offered[d] and at < len(slots):
            x = slots[at]
            num = int(s.num_flows[x])
            part = min(room - served, left * rate)
            if num < s.flow_edge.shape[1] and part > 0.0:
                s.flow_edge[x, num], s.flow_tenant[x, num], s.flow_rate[x, num] = e, ways.tenant[v], part
                s.num_flows[x] = num + 1
                s.gain[x] += part * ways.worth[v]
                served += part
                left -= part / rate
            if left <= NOTHING or num >= s.flow_edge.shape[1]:
                at, left = at + 1, 1.0
        s.demand_left[d] -= served
        for h in range(first, last):
            s.link_left[a.path_hop[h]] -= served * there
            s.link_left[a.path_back[h]] -= served * back
