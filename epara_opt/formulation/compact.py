"""The compact model: exact packing by counts, continuous shares of time, demand routed over edges.

Sets
    l services, s origins, n servers, g device types, p contents (`problem.contents[g]`, less those that another
    content of the same shape and services replaces at n), i tenants of a content;
    R(n, p): `new`, and the classes of interchangeable residents (same server, type, shape and services) that share
    a service with p;
    j = (n, p, R): columns, kept where every tenant of p could serve somebody from n in time; among them chains over
    several servers (`problem.chains`), of which n is the head and R(n, p) holds residents with the same cuts;
    E: edges (l, s, n), each with a slack; k: distinct earning shares of the tenants of l at n.

Parameters
    w_l weight; D_ls offered work; G_ng devices; d_jng devices of (n, g) that j takes (tp x pp; a chain's at all its
    servers); i_jh bytes/s that a chain keeps on directed link h at its full rate;
    m_R residents in a class (new: unlimited);
    mu_ji work/s of tenant i at full time (`max_utilization` applied), r_ji its response in company;
    a_ji its earning share (1 if loaded in R, else the part of the cycle left after loading);
    D_ji = sum of D_ls over edges (l, s, n) with slack >= r_ji: all the demand that tenant i can ever reach;
    b_e,h bytes/s that one unit on edge e puts on directed link h; B_h bandwidth.

Variables
    z[n,p,R]        integer in [0, u_j]   groups; u_j = min(G // d, m_R, ceil(sum_i D_ji / mu_ji)), what demand can fill
    share[n,p,R,l]  in [0, inf)           groups' time given to tenant l; only for contents of several tenants
    y[l,s,n,k]      in [0, 1]             what n serves of D_ls by tenants that earn k, in parts of
                                          D_e = min(D_ls, what all devices of n could do for l at k)

maximize  sum w_l k D_e y_e               e = (l, s, n, k)

Constraints
    devices[n,g]       sum_j d_jng z_j <= G_ng
    resident[n,R]      sum_p z[n,p,R] <= m_R
    moves              sum z[n,p,R] over columns with a tenant to load <= max_moves    where that rule is set
    beside[n,g,f]      sum_j d_j z_j <= devices of (n, g) with more than f bytes free beside what runs there, over
                       new columns that need more than f and residents kept that leave more than f free:
                       where `make_before_break` is set; see epara_opt.beside
    time[n,p,R]        sum_l share[n,p,R,l] <= z[n,p,R]
    reach[n,p,R,l]     share[n,p,R,l] <= (D_ji / mu_ji) z[n,p,R]                       where D_ji < SCANT mu_ji; tighter
    capacity[l,n,k,t]  sum_{e: slack <= t} D_e y[e,k] <= sum_{ji of class k: r <= t} c_jit
    demand[l,s]        sum_{n,k} D_e y_e <= D_ls
    link[a->b]         sum_e b_eh D_e y_e / B_h + sum_j i_jh z_j / B_h <= 1            where it could bind

c_jit is what tenant i of column j can do for edges of slack <= t: for a single tenant min(mu, D over edges with
r <= slack <= t) z, for others mu share.

Why capacity needs no configuration index on y: a tenant serves an edge iff r <= slack, so tighter edges see subsets
of what looser ones see. For such nested neighbourhoods Hall's condition need only hold for the prefixes {slack <= t},
and among prefixes with the same tenants only for the longest. Why counts suffice: groups of one column are alike,
time is divisible, and any free device indexes will do for a new group while a resident keeps its own, so the sum of
devices decides. The tightenings cut no integer point that earns: a group serves no more than is
offered in its reach (so min() and `reach`, column by column), and devices beyond that earn nothing (so u_j). Hence
the LP relaxation and any bound of the program hold for the problem, under its rules (`max_tenants`, `max_contents`:
see `problem.notes`).

What tightening is worth, measured (seeded edges, HiGHS 1.12, 30 s on a shared desk, one run each, so no more than an
order of magnitude): at 20 servers x 24 services under overload min() took HiGHS from a gap of 6.8 % to about 1.6 %; at
3 x 24 with light services that share groups `reach` lowered the LP bound by 1.4 %. Rows y_e <= sum min(mu, D_e) z for
single edges lowered it by at most 0.01 % and made the LP four times slower, so they are left out; `reach` for every
tenant with D < mu cost HiGHS more at 12 x 20 than it gave, so it is kept for those with little to do.

Solvers' tolerances are absolute, so rows of `capacity` and `demand` are divided by their largest coefficient, and y is
no part of a demand but of what a server could serve of it: where a million times more is asked for than could be
served, HiGHS once rounded all of it away and proved a bound of two thirds of the optimum.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from epara_opt.formulation.program import MilpProgram
from epara_opt.formulation.rows import RowBuilder
from epara_opt.placement import link_widths
from epara_opt.problem import Content, Edge, PlacementProblem, Resident, fills_batch

SCANT = 0.5  # of a group's time: tenants that demand can keep busy for less get a `reach` row


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """What one variable z counts."""

    server: str
    content: Content
    residents: tuple[Resident, ...]  # interchangeable groups in force it may keep; empty: new groups
    earning: tuple[float, ...]  # per tenant
    max_groups: int
    index: int  # of z
    share_index: int  # of the first tenant's share; -1 for a single tenant

    @property
    def name(self) -> str:
        shape = f"tp{self.content.tp}pp{self.content.pp}"
        held = "+".join(f"{t.service}:b{t.config.batch}f{t.config.frames}" for t in self.content.tenants)
        return f"{self.server},{self.content.device_type},{shape},{held},{_class_name(self.residents)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeUse:
    """What one variable y measures: the part of an edge's demand served by tenants of one earning share."""

    edge: Edge
    earning: float
    offered: float
    unit: float  # work at y = 1: what is offered, or what the server could do of it, whichever is less
    index: int

    @property
    def name(self) -> str:
        return f"{self.edge.service},{self.edge.origin},{self.edge.server},{self.earning:.6g}"


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """The program and what its variables mean. Variables: all z, then all shares, then all y."""

    problem: PlacementProblem
    program: MilpProgram
    columns: tuple[Column, ...]
    uses: tuple[EdgeUse, ...]
    stand_ins: Mapping[tuple[str, Content], Content]  # a content left out at a server, and the one that replaces it


@dataclass(frozen=True, slots=True)
class Reach:
    """The edges of one service to one server, tightest first."""

    edges: tuple[Edge, ...]
    slack_ms: tuple[float, ...]
    before: tuple[float, ...]  # before[i]: demand of the first i edges

    def first(self, response_ms: float) -> int:
        """Index of the first edge with slack >= response."""
        return bisect_left(self.slack_ms, response_ms)

    def demand(self, response_ms: float, end: int | None = None) -> float:
        """Demand of the edges from the first that this response can serve up to (not including) `end`."""
        end = len(self.edges) if end is None else end
        return max(0.0, self.before[end] - self.before[min(self.first(response_ms), end)])


@dataclass(frozen=True, slots=True)
class _Supply:
    """One tenant of one column, seen from its service."""

    response_ms: float
    work_per_s: float
    column: Column
    share_index: int  # -1: single tenant, counted through z


def encode(problem: PlacementProblem, *, tighten: bool = True) -> Encoded:
    """Build the program above. `tighten=False` leaves out what cuts no integer point, to measure its worth."""
    reaches = _reaches(problem)
    columns, stand_ins = _columns(problem, reaches)
    num_shares = sum(len(c.earning) for c in columns if c.share_index >= 0)
    supplies: dict[tuple[str, str, float], list[_Supply]] = {}
    for c in columns:
        for i, tenant in enumerate(c.content.tenants):
            supplies.setdefault((tenant.service, c.server, c.earning[i]), []).append(
                _Supply(tenant.response_ms, tenant.work_per_s, c, c.share_index + i if c.share_index >= 0 else -1)
            )
    uses: list[EdgeUse] = []
    rows = RowBuilder()
    _packing_rows(problem, columns, reaches, rows, tighten)
    for key in sorted(supplies):
        supply = sorted(supplies[key], key=lambda s: (s.response_ms, s.column.index))
        first_use = len(columns) + num_shares + len(uses)
        made = _edge_uses(problem, reaches[key[0], key[1]], supply, key[2], first_use)
        uses.extend(made)
        _capacity_rows(key, reaches[key[0], key[1]], supply, made, rows, tighten)
    _demand_rows(uses, rows)
    _link_rows(problem, columns, uses, rows)
    _moves_row(problem, columns, rows)
    _beside_rows(problem, columns, rows)
    return Encoded(
        problem=problem,
        program=_program(problem, columns, uses, num_shares, rows),
        columns=tuple(columns),
        uses=tuple(uses),
        stand_ins=stand_ins,
    )


def columns_of(problem: PlacementProblem) -> tuple[Column, ...]:
    """What could be placed inside servers: all that `encode` counts but chains."""
    return tuple(c for c in _columns(problem, _reaches(problem))[0] if not c.content.stages)


def chain_columns(problem: PlacementProblem) -> tuple[Column, ...]:
    """The chains among what `encode` counts; their indexes are their own."""
    if not problem.chains.contents:
        return ()
    found = _chain_entries(problem, _reaches(problem, problem.chains.services))
    return tuple(
        Column(
            server=head, content=content, residents=members, earning=earning, max_groups=top, index=i, share_index=-1
        )
        for i, (head, content, members, earning, top) in enumerate(found)
    )


def _reaches(problem: PlacementProblem, services: frozenset[str] | None = None) -> dict[tuple[str, str], Reach]:
    """By service and server; of these services alone, if given."""
    offered = problem.offered
    return {
        key: Reach(
            edges,
            tuple(e.slack_ms for e in edges),
            tuple(accumulate((offered[e.service, e.origin] for e in edges), initial=0.0)),
        )
        for key, edges in problem.edges_by_service_server.items()
        if services is None or key[0] in services
    }


def _class_name(residents: Sequence[Resident]) -> str:
    return residents[0].group if residents else "new"


def _columns(
    problem: PlacementProblem, reaches: Mapping[tuple[str, str], Reach]
) -> tuple[list[Column], dict[tuple[str, Content], Content]]:
    found: list[tuple[str, Content, tuple[Resident, ...], tuple[float, ...], int]] = []
    stand_ins: dict[tuple[str, Content], Content] = {}
    for server in problem.topology.servers.values():
        for pool in server.devices:
            classes = _resident_classes(problem, server.name, pool.type)
            best = list(_best_contents(problem, reaches, server.name, pool.type, stand_ins))
            alike = not problem.levels.get((server.name, pool.type))  # what is best does not depend on what runs
            turns = [(content, [(), *classes]) for content in best] if alike else [(content, [()]) for content in best]
            for members in () if alike else classes:
                kept = _best_contents(problem, reaches, server.name, pool.type, stand_ins, members)
                turns += [(content, [members]) for content in kept]
            for content, places in turns:
                fresh = tuple(problem.earning_share(t, None) for t in content.tenants)
                fill = sum(
                    reaches[t.service, server.name].demand(t.response_ms) / t.work_per_s for t in content.tenants
                )
                top = min(pool.count // content.num_devices, math.ceil(fill))
                if top < 1:
                    continue
                if () in places:
                    found.append((server.name, content, (), fresh, top))
                on = [members for members in places if members]
                found += _on_residents(problem, server.name, content, on, fresh, top)
    found += _chain_entries(problem, reaches)
    columns: list[Column] = []
    next_share = len(found)
    for index, (server_name, content, members, earning, top) in enumerate(found):
        several = len(content.tenants) > 1
        columns.append(
            Column(
                server=server_name,
                content=content,
                residents=members,
                earning=earning,
                max_groups=top,
                index=index,
                share_index=next_share if several else -1,
            )
        )
        next_share += len(content.tenants) if several else 0
    return columns, stand_ins


def _chain_entries(
    problem: PlacementProblem, reaches: Mapping[tuple[str, str], Reach]
) -> list[tuple[str, Content, tuple[Resident, ...], tuple[float, ...], int]]:
    """Chains that could serve somebody: head, content, residents, earning, most copies."""
    found: list[tuple[str, Content, tuple[Resident, ...], tuple[float, ...], int]] = []
    for content in problem.chains.contents:
        head, (tenant,) = content.stages[0].server, content.tenants
        reach = reaches.get((tenant.service, head))
        if reach is not None:
            top = min(
                math.ceil(reach.demand(tenant.response_ms) / tenant.work_per_s),
                *(_count(problem, pool) // number for pool, number in content.pools_at(head).items()),
            )
            if top >= 1:
                fresh = (problem.earning_share(tenant, None),)
                found.append((head, content, (), fresh, top))
                chained = _resident_classes(problem, head, content.device_type, chains=True)
                found += _on_residents(problem, head, content, chained, fresh, top)
    return found


def _count(problem: PlacementProblem, pool: tuple[str, str]) -> int:
    server, device_type = pool
    return next((p.count for p in problem.topology.servers[server].devices if p.type == device_type), 0)


def _on_residents(
    problem: PlacementProblem,
    server: str,
    content: Content,
    classes: Sequence[tuple[Resident, ...]],
    fresh: tuple[float, ...],
    top: int,
) -> Iterator[tuple[str, Content, tuple[Resident, ...], tuple[float, ...], int]]:
    """The content on each class of residents that could keep something for it."""
    for members in classes:
        loaded = tuple(problem.earning_share(t, members[0]) for t in content.tenants)
        counted = problem.staying_counts and bool(members[0].services & content.services)
        spares = loaded != fresh or counted
        if spares and members[0].holds(content, server) and problem.can_replace(content, members[0]):
            yield server, content, members, loaded, min(top, len(members))


def _resident_classes(
    problem: PlacementProblem, server: str, device_type: str, *, chains: bool = False
) -> list[tuple[Resident, ...]]:
    """Residents of this pool (or chains from it on), those alike together: which of them a group keeps makes no
    difference."""
    alike: dict[tuple[object, ...], list[Resident]] = {}
    for r in problem.residents:
        if r.server == server and r.device_type == device_type and bool(r.stages) is chains:
            alike.setdefault(problem.kind(r), []).append(r)
    return [tuple(sorted(members, key=lambda r: r.group)) for _, members in sorted(alike.items())]


def _best_contents(
    problem: PlacementProblem,
    reaches: Mapping[tuple[str, str], Reach],
    server: str,
    device_type: str,
    stand_ins: dict[tuple[str, Content], Content],
    members: Sequence[Resident] = (),
) -> Iterator[Content]:
    """Contents worth having at this server; the others are noted with the content that replaces them.

    Same shape and services: one replaces another if each of its tenants reaches as many of the server's edges and
    works as fast. A single tenant's speed counts only up to the demand in its reach. Where room must be found beside
    what runs, it must also need no higher a level of the pool, or fit in the place of these residents.
    """
    levels = problem.levels.get((server, device_type))
    rivals: dict[tuple[int, int, tuple[str, ...]], list[tuple[tuple[float, ...], Content]]] = {}
    for content in problem.contents.get(device_type, ()):
        if members and not (members[0].holds(content, server) and problem.can_replace(content, members[0])):
            continue
        mark: tuple[float, ...] = (-levels.exceeded(content.memory_bytes),) if levels and not members else ()
        for t in content.tenants:
            reach = reaches.get((t.service, server))
            num_edges = len(reach.edges) - reach.first(t.response_ms) if reach else 0
            if reach is None or num_edges == 0:
                break
            if not fills_batch(problem.service(t.service), t.config, reach.demand(t.response_ms)):
                break
            rate = min(t.work_per_s, reach.demand(t.response_ms)) if len(content.tenants) == 1 else t.work_per_s
            mark += (float(num_edges), rate, -t.load_s)
        else:
            key = (content.tp, content.pp, tuple(t.service for t in content.tenants))
            rivals.setdefault(key, []).append((mark, content))
    for group in rivals.values():
        kept: list[tuple[tuple[float, ...], Content]] = []
        group.sort(key=lambda mc: (mc[0], tuple(t.work_per_s for t in mc[1].tenants)), reverse=True)
        for mark, content in group:  # in falling order, so nothing later can replace what is kept
            better = next((c for m, c in kept if all(a >= b for a, b in zip(m, mark, strict=True))), None)
            if better is None:
                kept.append((mark, content))
                yield content
            elif not members:
                stand_ins[server, content] = better


def _packing_rows(
    problem: PlacementProblem,
    columns: Sequence[Column],
    reaches: Mapping[tuple[str, str], Reach],
    rows: RowBuilder,
    tighten: bool,
) -> None:
    pools: dict[tuple[str, str], list[tuple[int, float]]] = {}
    kept: dict[tuple[str, tuple[Resident, ...]], list[Column]] = {}
    for c in columns:
        for pool, number in c.content.pools_at(c.server).items():
            pools.setdefault(pool, []).append((c.index, float(number)))
        if c.residents:
            kept.setdefault((c.server, c.residents), []).append(c)
    for pool, terms in pools.items():
        rows.add(f"devices[{pool[0]},{pool[1]}]", terms, upper=float(_count(problem, pool)))
    for (server, residents), members in kept.items():
        name = f"resident[{server},{_class_name(residents)}]"
        rows.add(name, [(c.index, 1.0) for c in members], upper=float(len(residents)))
    for c in columns:
        if c.share_index < 0:
            continue
        shares = [(c.share_index + i, 1.0) for i in range(len(c.earning))]
        rows.add(f"time[{c.name}]", [*shares, (c.index, -1.0)], upper=0.0)
        for i, t in enumerate(c.content.tenants if tighten else ()):
            part = reaches[t.service, c.server].demand(t.response_ms) / t.work_per_s
            if part < SCANT:
                rows.add(f"reach[{c.name},{t.service}]", [(c.share_index + i, 1.0), (c.index, -part)], upper=0.0)


def _edge_uses(
    problem: PlacementProblem, reach: Reach, supply: Sequence[_Supply], earning: float, first_index: int
) -> list[EdgeUse]:
    usable = reach.edges[reach.first(supply[0].response_ms) :]
    per_device: dict[str, float] = {}
    by_chains = sum(s.work_per_s * s.column.max_groups for s in supply if s.column.content.stages)
    for s in (s for s in supply if not s.column.content.stages):
        content = s.column.content
        best = per_device.get(content.device_type, 0.0)
        per_device[content.device_type] = max(best, s.work_per_s / content.num_devices)
    pools = problem.topology.servers[supply[0].column.server].devices
    most = by_chains + sum(p.count * per_device.get(p.type, 0.0) for p in pools)
    found: list[EdgeUse] = []
    for i, edge in enumerate(usable):
        offered = problem.offered[edge.service, edge.origin]
        found.append(
            EdgeUse(edge=edge, earning=earning, offered=offered, unit=min(offered, most), index=first_index + i)
        )
    return found


def _capacity_rows(
    key: tuple[str, str, float],
    reach: Reach,
    supply: Sequence[_Supply],
    uses: Sequence[EdgeUse],
    rows: RowBuilder,
    tighten: bool,
) -> None:
    """One row per distinct set of tenants fast enough; supply and uses come in rising response and slack."""
    service, server, earning = key
    responses = [s.response_ms for s in supply]
    skipped = len(reach.edges) - len(uses)
    fast = [bisect_right(responses, u.edge.slack_ms) for u in uses]
    for end, num_fast in enumerate(fast, start=1):
        edge = uses[end - 1].edge
        if end == len(uses) or fast[end] != num_fast:
            terms = [(u.index, u.unit) for u in uses[:end]]
            for s in supply[:num_fast]:
                if s.share_index >= 0:
                    terms.append((s.share_index, -s.work_per_s))
                else:
                    cap = min(s.work_per_s, reach.demand(s.response_ms, skipped + end)) if tighten else s.work_per_s
                    terms.append((s.column.index, -cap))
            rows.add_scaled(f"capacity[{service},{server},{earning:.6g},{edge.slack_ms:.6g}]", terms)


def _demand_rows(uses: Sequence[EdgeUse], rows: RowBuilder) -> None:
    served: dict[tuple[str, str], list[EdgeUse]] = {}
    for u in uses:
        served.setdefault((u.edge.service, u.edge.origin), []).append(u)
    for (service, origin), members in sorted(served.items()):
        top, offered = max(u.unit for u in members), members[0].offered
        rows.add(f"demand[{service},{origin}]", [(u.index, u.unit / top) for u in members], upper=offered / top)


def _link_rows(problem: PlacementProblem, columns: Sequence[Column], uses: Sequence[EdgeUse], rows: RowBuilder) -> None:
    width = link_widths(problem.topology)
    terms: dict[tuple[str, str], list[tuple[int, float]]] = {}
    worst: dict[tuple[str, str], dict[tuple[str, str], float]] = {}  # link to the most that each demand could put on it
    for u in uses:
        for hop, load in problem.link_loads(u.edge):
            part = load * u.unit / width[hop]
            terms.setdefault(hop, []).append((u.index, part))
            seen = worst.setdefault(hop, {})
            asked = (u.edge.service, u.edge.origin)
            seen[asked] = max(seen.get(asked, 0.0), part)
    kept: dict[tuple[str, str], float] = {}  # link to the most that chains could keep of it
    for c in columns:
        for hop, load in c.content.reserved:
            terms.setdefault(hop, []).append((c.index, load / width[hop]))
            kept[hop] = kept.get(hop, 0.0) + c.max_groups * load / width[hop]
    for hop in sorted(terms):
        if sum(worst.get(hop, {}).values()) + kept.get(hop, 0.0) > 1.0:
            rows.add(f"link[{hop[0]}->{hop[1]}]", terms[hop], upper=1.0)


def _moves_row(problem: PlacementProblem, columns: Sequence[Column], rows: RowBuilder) -> None:
    if problem.moves_allowed is None:
        return
    moves = [c for c in columns if problem.is_move(c.content, c.residents[0] if c.residents else None)]
    rows.add("moves", [(c.index, 1.0) for c in moves], upper=float(problem.moves_allowed))


def _beside_rows(problem: PlacementProblem, columns: Sequence[Column], rows: RowBuilder) -> None:
    """Nested needs of devices with room beside what runs (see epara_opt.beside)."""
    for (server, device_type), levels in problem.levels.items():
        mine = [c for c in columns if (c.server, c.content.device_type) == (server, device_type)]
        exceeded = [
            levels.exceeded(problem.needs_beside(c.content, c.residents[0] if c.residents else None)) for c in mine
        ]
        for i, (free, devices) in enumerate(zip(levels.free_bytes, levels.devices, strict=True)):
            terms = [(c.index, float(c.content.num_devices)) for c, n in zip(mine, exceeded, strict=True) if n > i]
            if terms:
                rows.add(f"beside[{server},{device_type},{free}]", terms, upper=float(devices))


def _program(
    problem: PlacementProblem,
    columns: Sequence[Column],
    uses: Sequence[EdgeUse],
    num_shares: int,
    rows: RowBuilder,
) -> MilpProgram:
    num_z, num_vars = len(columns), len(columns) + num_shares + len(uses)
    objective, upper = np.zeros(num_vars), np.ones(num_vars)
    upper[:num_z] = [c.max_groups for c in columns]
    upper[num_z : num_z + num_shares] = np.inf
    for u in uses:
        objective[u.index] = problem.service(u.edge.service).weight * u.earning * u.unit
    share_names = [f"share[{c.name},{t.service}]" for c in columns if c.share_index >= 0 for t in c.content.tenants]
    return MilpProgram(
        objective=objective,
        col_lower=np.zeros(num_vars),
        col_upper=upper,
        is_integer=np.arange(num_vars) < num_z,
        row_start=rows.row_start,
        col_index=rows.col_index,
        coefficient=rows.coefficient,
        row_lower=rows.lower,
        row_upper=rows.upper,
        row_names=tuple(rows.names),
        col_names=(*(f"z[{c.name}]" for c in columns), *share_names, *(f"y[{u.name}]" for u in uses)),
    )
