"""The reference: the optimum of a tiny problem by looking at every placement.

Independent of `epara_opt.formulation` and of every back end, so that agreement means something: contents come
straight from the rules of `domain/` with every configuration the profiles know, each group is a group of its own (no
counts), each flow goes to one group (no nesting argument), and work is routed by a dense simplex method of 30 lines.

Two exact cuts keep it finite. At one server a content is left out if another of the same shape and services answers
each of its edges and works as fast. Placements are looked at in falling order of a crude upper bound, until the bound
is below the best found.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from epara_opt.domain.category import Scale, is_timely
from epara_opt.domain.performance import Performance, configurations, evaluate
from epara_opt.errors import NoPlanError
from epara_opt.formulation.program import FloatArray
from epara_opt.placement import Flow, PlacedGroup, Placement, assemble, link_reserved, link_widths, without_idle
from epara_opt.plan import Plan, Stop
from epara_opt.problem import Content, Edge, PlacementProblem, Resident, in_company
from epara_opt.unserved import explain_unserved

MAX_PLACEMENTS = 400_000
PIVOT = 1e-9
NOTHING = 1e-12  # part of an origin's demand: less is rounding


@dataclass(frozen=True, slots=True, kw_only=True)
class BruteForce:
    """A planner for tiny problems. Raises NoPlanError where there is too much to look at."""

    max_placements: int = MAX_PLACEMENTS

    @property
    def name(self) -> str:
        return "brute"

    def plan(
        self, problem: PlacementProblem, *, generation: int, time_limit_s: float, in_force: Plan | None = None
    ) -> Plan:
        started_at = time.monotonic()
        best, placement = optimum(problem, max_placements=self.max_placements, deadline=started_at + time_limit_s)
        return assemble(
            problem,
            placement,
            generation=generation,
            solver=self.name,
            stop=Stop.OPTIMAL if problem.demand else Stop.NO_DEMAND,
            dual_bound=best,
            wall_s=time.monotonic() - started_at,
            unserved=explain_unserved(problem, placement),
            in_force=in_force,
        )


def optimum(
    problem: PlacementProblem, *, max_placements: int = MAX_PLACEMENTS, deadline: float = math.inf
) -> tuple[float, Placement]:
    """The best objective there is, and a placement that reaches it. `deadline`: of time.monotonic()."""
    worth: dict[int, list[tuple[str, float, float]]] = {}
    bounded: list[tuple[float, tuple[PlacedGroup, ...]]] = []
    known: dict[tuple[str, str, int], list[tuple[PlacedGroup, ...]]] = {}
    num_placements = 0
    for chains, left in _chain_sets(problem):
        layouts: list[list[tuple[PlacedGroup, ...]]] = []
        for (server, device_type), count in left.items():
            key = (server, device_type, count)
            if key not in known:
                every = _layouts(problem, *key)
                known[key] = list(itertools.islice(every, max_placements + 1))  # one pool alone may have too many
            layouts.append(known[key])
        num_placements += math.prod(map(len, layouts))
        if num_placements > max_placements:
            raise NoPlanError(f"brute force: expected at most {max_placements} placements, got {num_placements}+")
        for choice in itertools.product(*layouts):
            groups = (*chains, *(g for layout in choice for g in layout))
            worth |= {id(g): _worth(problem, g) for g in groups if id(g) not in worth}
            if _may_come(problem, groups):
                bounded.append((_upper_bound(problem, groups, worth), groups))
    bounded.sort(key=lambda bg: -bg[0])
    best, placement = 0.0, Placement(groups=(), flows=())
    for bound, groups in bounded:
        if bound <= best:
            break
        if time.monotonic() > deadline:
            raise NoPlanError("brute force: did not end in time")
        reached, flows = _route(problem, groups)
        if reached > best:
            best, placement = reached, Placement(groups=groups, flows=flows)
    return best, without_idle(placement)


def _chain_sets(
    problem: PlacementProblem,
) -> Iterator[tuple[tuple[PlacedGroup, ...], dict[tuple[str, str], int]]]:
    """Every multiset of chains over several servers that devices and links allow, and the devices that it leaves."""
    options = [
        PlacedGroup(server=c.stages[0].server, content=c, resident=r)
        for c in problem.chains.contents
        for r in (None, *(r for r in problem.residents if r.holds(c, c.stages[0].server)))
    ]
    widths = link_widths(problem.topology)

    def extend(
        first: int, left: dict[tuple[str, str], int], chosen: tuple[PlacedGroup, ...]
    ) -> Iterator[tuple[tuple[PlacedGroup, ...], dict[tuple[str, str], int]]]:
        yield chosen, left
        for index in range(first, len(options)):
            option = options[index]
            fewer = {pool: count - option.pools.get(pool, 0) for pool, count in left.items()}
            again = option.resident is not None and option.resident in [g.resident for g in chosen]
            kept = link_reserved((*chosen, option))
            if min(fewer.values()) >= 0 and not again and all(load <= widths[hop] for hop, load in kept.items()):
                yield from extend(index, fewer, (*chosen, option))

    yield from extend(0, {(s.name, p.type): p.count for s in problem.topology.servers.values() for p in s.devices}, ())


def _layouts(problem: PlacementProblem, server: str, device_type: str, count: int) -> Iterator[tuple[PlacedGroup, ...]]:
    """Every multiset of groups to which none could be added: idle devices earn nothing. Where it matters what runs
    now, every multiset: a cap on moves may be better spent elsewhere, room for some may have to be left by others."""
    options = _groups(problem, server, device_type)

    def extend(first: int, left: int, chosen: tuple[PlacedGroup, ...]) -> Iterator[tuple[PlacedGroup, ...]]:
        used = {g.resident.group for g in chosen if g.resident}
        grew = False
        for index, option in enumerate(options):
            if option.content.num_devices > left or (option.resident and option.resident.group in used):
                continue
            grew = True
            if index >= first:
                yield from extend(index, left - option.content.num_devices, (*chosen, option))
        if not grew or problem.moves_allowed is not None or problem.levels:
            yield chosen

    yield from extend(0, count, ())


def _may_come(problem: PlacementProblem, groups: Sequence[PlacedGroup]) -> bool:
    allowed = problem.moves_allowed
    if allowed is not None and sum(problem.is_move(g.content, g.resident) for g in groups) > allowed:
        return False
    return not problem.rules.make_before_break or all(
        _finds_room(problem, pool, [g for g in groups if pool in g.pools])
        for pool in {pool for g in groups for pool in g.pools}
    )


def _finds_room(problem: PlacementProblem, pool: tuple[str, str], groups: Sequence[PlacedGroup]) -> bool:
    """Whether some way of giving devices to the groups of a pool has room beside what runs: every way is tried."""
    server, device_type = pool
    memory = problem.topology.device_types[device_type].memory_bytes
    count = next(p.count for p in problem.topology.servers[server].devices if p.type == device_type)
    held = [0] * count
    for r in problem.residents:
        for device in r.devices if (r.server, r.device_type) == pool else ():
            held[device] += r.memory_bytes
    taken = {d for g in groups if g.resident for d in g.resident.devices}
    left = [d for d in range(count) if d not in taken]
    needs = [sum(t.memory_bytes for t in g.content.tenants) for g in groups if not g.resident]
    sizes = [g.content.num_devices for g in groups if not g.resident]

    def place(index: int, left: frozenset[int]) -> bool:
        if index == len(needs):
            return True
        fitting = [d for d in sorted(left) if held[d] + needs[index] <= memory]
        return any(place(index + 1, left - set(some)) for some in itertools.combinations(fitting, sizes[index]))

    return place(0, frozenset(left))


def _groups(problem: PlacementProblem, server: str, device_type: str) -> list[PlacedGroup]:
    """Each content that this pool could hold, as a new group and in every resident's place."""
    found: list[PlacedGroup] = []
    for content in _contents(problem, server, device_type):
        found.append(PlacedGroup(server=server, content=content))
        found.extend(
            PlacedGroup(server=server, content=content, resident=r)
            for r in problem.residents
            if (r.server, r.device_type, r.tp, r.pp, r.stages) == (server, device_type, content.tp, content.pp, ())
            and r.services & content.services
            and _replaces(problem, content, r)
        )
    return found


def _replaces(problem: PlacementProblem, content: Content, resident: Resident) -> bool:
    """Where nothing may stop first: whether tenants that leave, stay and come fit together."""
    if not problem.rules.make_before_break:
        return True
    held = dict(resident.memory)
    if len(resident.devices) > 1 and not content.services <= resident.services:
        held = {f"old {name}": num_bytes for name, num_bytes in resident.memory}  # loaded anew beside itself
    comes = sum(max(t.memory_bytes, held.pop(t.service, 0)) for t in content.tenants)
    return comes + sum(held.values()) <= problem.topology.device_types[content.device_type].memory_bytes


def _contents(problem: PlacementProblem, server: str, device_type: str) -> list[Content]:
    memory = problem.topology.device_types[device_type].memory_bytes
    slacks: dict[str, list[float]] = {}
    offered: dict[str, list[float]] = {}
    for e in problem.edges:
        if e.server == server:
            slacks.setdefault(e.service, []).append(e.slack_ms)
            offered.setdefault(e.service, []).append(problem.offered[e.service, e.origin])
    by_shape: dict[tuple[int, int], dict[str, list[Performance]]] = {}
    for name in slacks:
        service = problem.service(name)
        for shape, profile in problem.catalogue.shapes(service.model.profile_name, device_type).items():
            if math.prod(shape) == 1 or problem.categories[name].scale is Scale.MULTI_DEVICE:
                by_shape.setdefault(shape, {})[name] = [
                    evaluate(service, profile, c) for c in configurations(service, profile)
                ]
    found: list[Content] = []
    for shape, by_name in by_shape.items():
        for num_tenants in range(1, problem.rules.max_tenants + 1):
            for names in itertools.combinations(by_name, num_tenants):
                ranked: list[tuple[tuple[float, ...], Content]] = []
                for combo in itertools.product(*(by_name[n] for n in names)):
                    if sum(p.memory_bytes for p in combo) > memory or not _on_time(problem, combo):
                        continue
                    content = in_company(combo, device_type=device_type, shape=shape, busy=problem.busy)
                    reach = [sum(s >= t.response_ms for s in slacks[t.service]) for t in content.tenants]
                    if min(reach) == 0:
                        continue
                    starved = False  # a batch of b frame groups needs b streams
                    for t in content.tenants:
                        near = zip(slacks[t.service], offered[t.service], strict=True)
                        streams = sum(rate for slack, rate in near if slack >= t.response_ms)
                        starved |= problem.service(t.service).is_stream and t.config.batch > math.ceil(streams)
                    if not starved:
                        speed = [t.work_per_s for t in content.tenants]
                        needs = [-t.memory_bytes for t in content.tenants if problem.rules.make_before_break]
                        ranked.append((tuple(map(float, (*reach, *speed, *needs))), content))
                found += [
                    c
                    for i, (m, c) in enumerate(ranked)
                    if not any(
                        all(a >= b for a, b in zip(other, m, strict=True)) and (other != m or j < i)
                        for j, (other, _) in enumerate(ranked)
                        if j != i
                    )
                ]
    return found


def _on_time(problem: PlacementProblem, combo: Sequence[Performance]) -> bool:
    for p in combo:
        others_ms = sum(q.quantum_ms for q in combo if q is not p)
        service = problem.service(p.service)
        if not is_timely(service, p.response_in_company_ms(others_ms), p.tpot_in_company_ms(others_ms)):
            return False
    return True


def _worth(problem: PlacementProblem, group: PlacedGroup) -> list[tuple[str, float, float]]:
    """Per tenant: service, the most work it can do here, and what a unit of it earns."""
    found: list[tuple[str, float, float]] = []
    for t in group.content.tenants:
        reach = sum(
            problem.offered[e.service, e.origin]
            for e in problem.edges
            if (e.service, e.server) == (t.service, group.server) and e.slack_ms >= t.response_ms
        )
        earning = problem.earning_share(t, group.resident) * problem.service(t.service).weight
        found.append((t.service, min(t.work_per_s, reach), earning))
    return found


def _upper_bound(
    problem: PlacementProblem,
    groups: Sequence[PlacedGroup],
    worth: dict[int, list[tuple[str, float, float]]],
) -> float:
    """The best-earning tenants of each service first, until its demand is met: time shares, links ignored."""
    supplies: dict[str, list[tuple[float, float]]] = {}
    for group in groups:
        for service, work, earning in worth[id(group)]:
            supplies.setdefault(service, []).append((earning, work))
    total = 0.0
    for service, supply in supplies.items():
        left = sum(d.offered for d in problem.demand if d.service == service)
        for earning, work in sorted(supply, reverse=True):
            taken = min(left, work)
            total += earning * taken
            left -= taken
    return total


def _route(problem: PlacementProblem, groups: Sequence[PlacedGroup]) -> tuple[float, tuple[Flow, ...]]:
    """The best flows for these groups: one variable per edge and group that can serve it in time."""
    arcs: list[tuple[Edge, int, float, float]] = []  # edge, group, seconds per work, earning per work
    for index, group in enumerate(groups):
        for t in group.content.tenants:
            earning = problem.earning_share(t, group.resident) * problem.service(t.service).weight
            arcs += [
                (e, index, 1.0 / t.work_per_s, earning)
                for e in problem.edges
                if (e.service, e.server) == (t.service, group.server) and e.slack_ms >= t.response_ms
            ]
    if not arcs:
        return 0.0, ()
    limits: dict[object, tuple[float, dict[int, float]]] = {}  # law to limit and use per arc
    widths, kept = link_widths(problem.topology), link_reserved(groups)
    for i, (e, index, seconds, _) in enumerate(arcs):
        limits.setdefault(index, (1.0, {}))[1][i] = seconds
        limits.setdefault(("demand", e.service, e.origin), (problem.offered[e.service, e.origin], {}))[1][i] = 1.0
        for hop, load in problem.link_loads(e):
            room = max(0.0, 1.0 - kept.get(hop, 0.0) / widths[hop])
            limits.setdefault(("link", hop), (room, {}))[1][i] = load / widths[hop]
    a = np.zeros((len(limits), len(arcs)))
    for row, (_, uses) in enumerate(limits.values()):
        for i, amount in uses.items():
            a[row, i] = amount
    b = np.array([limit for limit, _ in limits.values()])
    c = np.array([earning for *_, earning in arcs])
    x = maximize(c, a, b)
    return float(c @ x), tuple(
        Flow(edge=e, group=index, rate=float(rate))
        for (e, index, *_), rate in zip(arcs, x, strict=True)
        if rate > NOTHING * problem.offered[e.service, e.origin]
    )


def maximize(c: FloatArray, a: FloatArray, b: FloatArray) -> FloatArray:
    """max c'x, Ax <= b, x >= 0 with b >= 0: the primal simplex method on a dense tableau, Bland's rule.

    c (V,), a (R, V), b (R,); returns an optimal x (V,). Bounded by the caller's rows: raises ValueError if not.
    """
    num_rows, num_vars = a.shape
    table = np.zeros((num_rows + 1, num_vars + num_rows + 1))
    table[:-1, :num_vars], table[:-1, num_vars:-1], table[:-1, -1] = a, np.eye(num_rows), b
    table[-1, :num_vars] = -c / (c.max(initial=0.0) or 1.0)  # pivots below an absolute size count for nothing
    basis = list(range(num_vars, num_vars + num_rows))
    while True:
        entering = next((j for j in range(num_vars + num_rows) if table[-1, j] < -PIVOT), None)
        if entering is None:
            break
        column = table[:-1, entering]
        ratios = [(table[i, -1] / column[i], basis[i], i) for i in range(num_rows) if column[i] > PIVOT]
        if not ratios:
            raise ValueError("expected a bounded program")
        leaving = min(ratios)[2]
        table[leaving] /= table[leaving, entering]
        for i in range(num_rows + 1):
            if i != leaving and table[i, entering] != 0.0:
                table[i] -= table[i, entering] * table[leaving]
        basis[leaving] = entering
    x = np.zeros(num_vars + num_rows)
    x[basis] = table[:-1, -1]
    return np.maximum(x[:num_vars], 0.0)
