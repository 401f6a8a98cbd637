"""Best flows of the groups there are: feasible, never worse, and the optimum of the program solved another way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from epara_solvers.brute import maximize
from epara_solvers.columns import packing
from epara_solvers.columns.arrays import Ground, ground_of
from epara_solvers.columns.dual import Pricer, Prices
from epara_solvers.columns.packing import Packing, copy_packing
from epara_solvers.columns.routing import Router
from epara_solvers.columns.search import Repacker, placement_of

from epara_opt.placement import Placement, link_use, link_widths, served, tenant_of, value
from epara_opt.problem import PlacementProblem

SEEDS = range(60)
LIMIT_S = 30.0


@dataclass(frozen=True)
class Case:
    """A packing whose flows were made worse, and what is free of its groups is free."""

    ground: Ground
    packed: Packing

    @property
    def everywhere(self) -> np.ndarray:
        return np.arange(self.ground.num_servers)

    def improve(self, time_limit_s: float = LIMIT_S) -> float:
        return Router(self.ground, self.packed.pool_slot).improve(
            self.packed, self.everywhere, time_limit_s=time_limit_s
        )


@pytest.fixture
def case(request: pytest.FixtureRequest, tiny_problem: Callable[[int], PlacementProblem]) -> Case:
    made = case_of(tiny_problem(request.param))
    if made is None:
        pytest.skip("nothing to place")
    return made


def case_of(problem: PlacementProblem) -> Case | None:
    ground = ground_of(problem)
    a = ground.arrays
    if not len(a.column_content):
        return None
    search = Repacker(ground, seed=1)
    nothing = Prices(np.zeros(len(a.offered)), np.zeros(len(a.link_width)))
    pricer = Pricer(ground)
    search.under(nothing, pricer(nothing), pricer.active())
    search.construct(theta=0.0)
    return Case(ground, search.packing)


def best_by_simplex(problem: PlacementProblem, placement: Placement) -> float:
    """The same program, from the domain's objects and by another simplex: ways, group time, demand, links."""
    gains: list[float] = []
    rows: dict[object, tuple[float, dict[int, float]]] = {}
    widths = link_widths(problem.topology)
    for g, group in enumerate(placement.groups):
        for edge in problem.edges:
            if edge.server != group.server or edge.service not in group.content.services:
                continue
            tenant = tenant_of(group, edge.service)
            if tenant.response_ms > edge.slack_ms:
                continue
            i = len(gains)
            gains.append(problem.service(edge.service).weight * problem.earning_share(tenant, group.resident))
            rows.setdefault(("time", g), (1.0, {}))[1][i] = 1.0 / tenant.work_per_s
            asked = (edge.service, edge.origin)
            rows.setdefault(asked, (problem.offered[asked], {}))[1][i] = 1.0
            for hop, load in problem.link_loads(edge):
                row = rows.setdefault(("link", hop), (1.0, {}))[1]
                row[i] = row.get(i, 0.0) + load / widths[hop]
    matrix = np.zeros((len(rows), len(gains)))
    for r, (_, entries) in enumerate(rows.values()):
        for i, entry in entries.items():
            matrix[r, i] = entry
    worth = np.array(gains)
    return float(worth @ maximize(worth, matrix, np.array([limit for limit, _ in rows.values()])))


def check_feasible(problem: PlacementProblem, placement: Placement) -> None:
    for key, rate in served(placement).items():
        assert rate <= problem.offered[key] * (1 + 1e-9)
    widths = link_widths(problem.topology)
    assert all(load <= widths[hop] * (1 + 1e-6) for hop, load in link_use(problem, placement.flows).items())
    busy = [0.0] * len(placement.groups)
    for flow in placement.flows:
        tenant = tenant_of(placement.groups[flow.group], flow.edge.service)
        assert tenant.response_ms <= flow.edge.slack_ms
        busy[flow.group] += flow.rate / tenant.work_per_s
    assert all(0.0 < part <= 1 + 1e-9 for part in busy)


def test_value_never_falls_and_reaches_the_optimum_of_the_program(
    tiny_problem: Callable[[int], PlacementProblem],
) -> None:
    improved = links_bind = 0
    for seed in SEEDS:
        problem = tiny_problem(seed)
        case = case_of(problem)
        if case is None:
            continue
        groups = placement_of(case.ground, case.packed)
        best = best_by_simplex(problem, groups)
        before = float(case.packed.gain.sum())
        gained = case.improve()
        after = placement_of(case.ground, case.packed)
        check_feasible(problem, after)
        reached = value(problem, after)
        assert gained >= 0.0
        assert reached == pytest.approx(before + gained, rel=1e-9, abs=1e-9)
        assert reached == pytest.approx(float(case.packed.gain.sum()), rel=1e-9)
        # Who is left without room by rounding to groups in turn loses no more than tolerances.
        assert best * (1 - 1e-5) - 1e-9 <= reached <= best * (1 + 1e-6) + 1e-9, seed
        improved += gained > 1e-6 * before
        widths = link_widths(problem.topology)
        links_bind += any(load >= 0.999 * widths[h] for h, load in link_use(problem, after.flows).items())
    assert improved >= 3
    assert links_bind >= 3


@pytest.mark.parametrize("case", range(6), indirect=True)
def test_books_balance_afterwards(case: Case) -> None:
    """What is left of demand, links and devices is what the flows and groups leave."""
    case.improve()
    a, s = case.ground.arrays, case.packed
    problem = case.ground.problem
    placement = placement_of(case.ground, s)
    done = served(placement)
    left = [d.offered - done.get((d.service, d.origin), 0.0) for d in problem.demand]
    assert s.demand_left == pytest.approx(left, abs=1e-6)
    used = link_use(problem, placement.flows)
    spare = [w - used.get(h, 0.0) for h, w in zip(case.ground.table.link_ends, a.link_width.tolist(), strict=True)]
    assert s.link_left == pytest.approx(spare, rel=1e-6, abs=1e-3)
    devices = dict(zip(case.ground.pools, a.pool_devices.tolist(), strict=True))
    for g in placement.groups:
        devices[g.server, g.content.device_type] -= g.content.num_devices
    assert s.devices_left.tolist() == [devices[p] for p in case.ground.pools]


def test_a_group_left_without_work_gives_its_devices_back(tiny_problem: Callable[[int], PlacementProblem]) -> None:
    """Two groups serve some of what one of them could serve whole."""
    closed = 0
    for seed in SEEDS:
        case = case_of(tiny_problem(seed))
        if case is None:
            continue
        a, s = case.ground.arrays, packing.empty_packing(case.ground.arrays)
        pool_of = np.repeat(np.arange(len(a.pool_devices)), np.diff(a.pool_column))
        for k, q in enumerate(pool_of.tolist()):
            c = a.column_content[k]
            seg = a.seg_at[a.pool_server[q], a.content_service[c, 0]]
            edges = np.arange(a.column_first[k, 0], a.seg_start[seg + 1])
            work = a.offered[a.edge_demand[edges]]
            alone = int((a.content_service[c] >= 0).sum()) == 1 and a.column_class[k] < 0
            if alone and a.pool_devices[q] >= 2 * a.content_devices[c] and work.sum() <= a.content_work[c, 0]:
                break
        else:
            continue
        for _ in range(2):
            packing.put(a, s, q, k, edges, np.zeros(len(edges), dtype=np.int64), 0.3 * work)
        if int((s.column >= 0).sum()) < 2:
            continue  # links were too narrow
        if Case(case.ground, s).improve() > 0.0:
            assert int((s.column >= 0).sum()) == 1, seed
            assert s.devices_left[q] == a.pool_devices[q] - a.content_devices[c]
            closed += 1
    assert closed >= 3


@pytest.mark.parametrize("case", range(4), indirect=True)
def test_nothing_is_changed_without_servers_or_where_nothing_is_gained(case: Case) -> None:
    router = Router(case.ground, case.packed.pool_slot)
    before = copy_packing(case.packed)
    assert router.improve(case.packed, np.zeros(0, dtype=np.int64), time_limit_s=LIMIT_S) == 0.0
    assert all(np.array_equal(x, y) for x, y in zip(before, case.packed, strict=True))
    case.improve()
    best = copy_packing(case.packed)
    assert case.improve() <= 1e-6 * max(1.0, float(best.gain.sum()))
