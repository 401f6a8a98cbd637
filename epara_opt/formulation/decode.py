"""From a point of the compact program to a placement, and back.

Decoding never makes a number larger: whatever a solver's tolerance let through is scaled down, so that a decoded
placement keeps every limit exactly (up to the last bit of a float) and its value is a true lower bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from epara_opt.formulation.compact import Column, EdgeUse, Encoded
from epara_opt.formulation.program import FloatArray
from epara_opt.placement import Flow, PlacedGroup, Placement, link_reserved, link_use, link_widths, without_idle
from epara_opt.problem import Content, PlacementProblem, Resident

INTEGRALITY = 1e-4  # a count this close to a whole number is that number; anything else is rounded down
NEGLIGIBLE = 1e-7  # part of an edge use's unit that is not worth a route


@dataclass(slots=True)
class _Supply:
    """What one group can still do for one of its tenants."""

    group: int
    response_ms: float
    work_left: float


def decode(encoded: Encoded, x: FloatArray) -> Placement:
    """The placement that a feasible point means. Groups and tenants that serve nothing are left out."""
    problem = encoded.problem
    groups: list[PlacedGroup] = []
    supplies: dict[tuple[str, str, float], list[_Supply]] = {}
    kept: dict[tuple[Resident, ...], int] = {}  # of a class: how many have a group already, whatever it holds
    for column in encoded.columns:
        num_groups = whole(float(x[column.index]))
        if num_groups < 1:
            continue
        time_left = _time_per_group(column, num_groups, x)
        for times in time_left:
            resident = None
            if column.residents:
                resident = column.residents[kept.get(column.residents, 0)]
                kept[column.residents] = kept.get(column.residents, 0) + 1
            for tenant, earning, time in zip(column.content.tenants, column.earning, times, strict=True):
                supplies.setdefault((tenant.service, column.server, earning), []).append(
                    _Supply(len(groups), tenant.response_ms, time * tenant.work_per_s)
                )
            groups.append(PlacedGroup(server=column.server, content=column.content, resident=resident))
    wanted: dict[tuple[str, str, float], list[tuple[EdgeUse, float]]] = {}
    for use, part in _parts(encoded, x):
        wanted.setdefault((use.edge.service, use.edge.server, use.earning), []).append((use, part * use.unit))
    flows: list[Flow] = []
    for key in sorted(wanted):
        flows.extend(_assign(wanted[key], supplies.get(key, [])))
    return without_idle(Placement(groups=tuple(groups), flows=tuple(_within_links(problem, groups, flows))))


def whole(count: float) -> int:
    nearest = round(count)
    return nearest if abs(count - nearest) <= INTEGRALITY else math.floor(count)


def _time_per_group(column: Column, num_groups: int, x: FloatArray) -> list[list[float]]:
    """Each group's time per tenant. Tenants fill one group after the other, so that few are split."""
    if column.share_index < 0:
        return [[1.0] for _ in range(num_groups)]
    shares = [max(0.0, float(x[column.share_index + i])) for i in range(len(column.earning))]
    used = sum(shares)
    shrink = min(1.0, num_groups / used) if used > 0 else 0.0
    left = [s * shrink for s in shares]
    table: list[list[float]] = []
    for _ in range(num_groups):
        room, row = 1.0, [0.0] * len(left)
        for i, time in enumerate(left):
            row[i] = min(room, time)
            room -= row[i]
            left[i] -= row[i]
        table.append(row)
    return table


def _parts(encoded: Encoded, x: FloatArray) -> list[tuple[EdgeUse, float]]:
    """Parts of each use's unit, together at most all that is offered for each service and origin."""
    total: dict[tuple[str, str], float] = {}
    for use in encoded.uses:
        asked = (use.edge.service, use.edge.origin)
        total[asked] = total.get(asked, 0.0) + max(0.0, float(x[use.index])) * use.unit / use.offered
    found: list[tuple[EdgeUse, float]] = []
    for use in encoded.uses:
        part = float(x[use.index]) / max(1.0, total[use.edge.service, use.edge.origin])
        if part > NEGLIGIBLE:
            found.append((use, part))
    return found


def _assign(wanted: Sequence[tuple[EdgeUse, float]], supplies: Sequence[_Supply]) -> list[Flow]:
    """Edges, tightest first, onto tenants that are fast enough. Neighbourhoods are nested, so any choice among
    those is as good as another; the slowest go first and groups are filled in turn."""
    by_speed = sorted(supplies, key=lambda s: (-s.response_ms, s.group))
    flows: list[Flow] = []
    for use, rate in sorted(wanted, key=lambda w: (w[0].edge.slack_ms, w[0].edge.origin)):
        left = rate
        for supply in by_speed:
            if supply.response_ms > use.edge.slack_ms:
                continue
            taken = min(left, supply.work_left)
            if taken > NEGLIGIBLE * use.unit:
                flows.append(Flow(edge=use.edge, group=supply.group, rate=taken))
                supply.work_left -= taken
                left -= taken
    return flows


def _within_links(problem: PlacementProblem, groups: Sequence[PlacedGroup], flows: Sequence[Flow]) -> list[Flow]:
    """Scale down what a link cannot carry beside what chains keep of it."""
    width, kept = link_widths(problem.topology), link_reserved(groups)
    room = {
        hop: min(1.0, max(0.0, width[hop] - kept.get(hop, 0.0)) / load)
        for hop, load in link_use(problem, flows).items()
    }
    return [
        replace(f, rate=f.rate * min((room[hop] for hop, _ in problem.link_loads(f.edge)), default=1.0)) for f in flows
    ]


def encode_placement(encoded: Encoded, placement: Placement) -> FloatArray:
    """A feasible point of the program that is worth as much as the placement: a warm start. (V,)

    Contents that the program left out are replaced by those that stand in for them. A group that serves nothing, or
    that the program cannot express, is left out with its flows: the point stays feasible.
    """
    x = np.zeros(encoded.program.num_vars)
    flows_of: dict[int, list[Flow]] = {}
    for flow in placement.flows:
        flows_of.setdefault(flow.group, []).append(flow)
    rivals: dict[_Place, list[Column]] = {}
    for column in encoded.columns:
        for group in [r.group for r in column.residents] or [None]:
            rivals.setdefault(_place(column.server, column.content, group), []).append(column)
    use_of = {(u.edge.service, u.edge.origin, u.edge.server, u.earning): u for u in encoded.uses}
    for index, flows in sorted(flows_of.items()):
        column = _column_for(encoded, rivals, placement.groups[index], flows)
        if column is None:
            continue
        x[column.index] = min(x[column.index] + 1.0, float(column.max_groups))
        nth = {t.service: i for i, t in enumerate(column.content.tenants)}
        for flow in flows:
            i = nth[flow.edge.service]
            if column.share_index >= 0:
                x[column.share_index + i] += flow.rate / column.content.tenants[i].work_per_s
            use = use_of[flow.edge.service, flow.edge.origin, flow.edge.server, column.earning[i]]
            x[use.index] += flow.rate / use.unit
    return x


_Place = tuple[str, str, int, int, frozenset[str], str | None]


def _place(server: str, content: Content, resident: str | None) -> _Place:
    return server, content.device_type, content.tp, content.pp, content.services, resident


def _column_for(
    encoded: Encoded, rivals: dict[_Place, list[Column]], group: PlacedGroup, flows: Sequence[Flow]
) -> Column | None:
    """The column of this group's content or its stand-in, or any that could carry the same flows."""
    content = encoded.stand_ins.get((group.server, group.content), group.content)
    for resident in (group.resident.group, None) if group.resident else (None,):
        columns = rivals.get(_place(group.server, content, resident), [])
        for column in columns:
            if column.content == content:
                return column
        for column in columns:
            if _carries(column.content, flows) and column.content.pools_at(group.server) == group.pools:
                return column
    return None


def _carries(content: Content, flows: Sequence[Flow]) -> bool:
    tenants = {t.service: t for t in content.tenants}
    in_time = all(tenants[f.edge.service].response_ms <= f.edge.slack_ms for f in flows)
    return in_time and sum(f.rate / tenants[f.edge.service].work_per_s for f in flows) <= 1.0 + INTEGRALITY**2
