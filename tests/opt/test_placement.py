"""From a placement to a plan: devices, ids, shares of time, routes and predictions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from epara_opt.errors import InputError
from epara_opt.placement import Flow, PlacedGroup, Placement, assemble, link_use, served, tenant_of, value, within_moves
from epara_opt.plan import Plan, Stop
from epara_opt.problem import PlacementProblem, Resident
from epara_opt.verify import verify


def resident(device: int, *services: str) -> Resident:
    return Resident(
        group=f"a/l4/{device}/1",
        server="a",
        device_type="l4",
        devices=(device,),
        tp=1,
        pp=1,
        services=frozenset(services or ("classify",)),
    )


def groups_at_a(problem: PlacementProblem, rates: list[float], residents: list[Resident | None]) -> Placement:
    edge = next(e for e in problem.edges if e.server == "a")
    content = next(c for c in problem.contents["l4"] if len(c.tenants) == 1)
    return Placement(
        groups=tuple(PlacedGroup(server="a", content=content, resident=r) for r in residents),
        flows=tuple(Flow(edge=edge, group=i, rate=rate) for i, rate in enumerate(rates)),
    )


def planned(problem: PlacementProblem, placement: Placement, **changes) -> Plan:
    given = {"generation": 2, "solver": "hand", "stop": Stop.HEURISTIC, "dual_bound": None, "wall_s": 0.0}
    return assemble(problem, placement, **{**given, "unserved": (), **changes})


def test_groups_get_devices_ids_and_their_part_of_time(make) -> None:
    problem = make.edge().problem()
    plan = planned(problem, groups_at_a(problem, [100.0, 50.0], [None, None]))
    assert [(r.id, r.devices, r.share, r.capacity) for r in plan.replicas] == [
        ("classify@a/l4/0/2", (0,), 1.0, 100.0),
        ("classify@a/l4/1/2", (1,), 0.5, 100.0),
    ]
    assert plan.replicas[0].endpoint == "127.0.0.1:7100"
    assert plan.predicted.utilization == {"a": 0.75, "b": 0.0}
    verify(plan, problem.topology, problem.catalogue, problem=problem)


def test_tenants_share_idle_time_as_they_share_busy_time(make) -> None:
    services = [make.latency("classify"), make.latency("detect", slo_ms=200.0)]
    rows = [make.row("classify", latency_ms=10.0), make.row("detect", latency_ms=15.0)]
    demand = [make.offer("classify", "a", 30.0), make.offer("detect", "a", 10.0)]
    problem = make.edge(services=services, rows=rows, demand=demand).problem()
    shared = next(c for c in problem.contents["l4"] if len(c.tenants) == 2)
    edges = {e.service: e for e in problem.edges if e.server == "a"}
    placement = Placement(
        groups=(PlacedGroup(server="a", content=shared),),
        flows=(Flow(edge=edges["classify"], group=0, rate=30.0), Flow(edge=edges["detect"], group=0, rate=10.0)),
    )
    plan = planned(problem, placement)
    assert [r.share for r in plan.replicas] == pytest.approx([0.3, 0.15])
    assert [r.capacity for r in plan.replicas] == pytest.approx([100 * 2 / 3, 1000 / 15 / 3])
    verify(plan, problem.topology, problem.catalogue, problem=problem)


def test_a_tenant_without_work_leaves_and_the_rest_answer_sooner(make) -> None:
    services = [make.latency("classify"), make.latency("detect", slo_ms=200.0)]
    rows = [make.row("classify", latency_ms=10.0), make.row("detect", latency_ms=15.0)]
    demand = [make.offer("classify", "a", 30.0), make.offer("detect", "a", 10.0)]
    problem = make.edge(services=services, rows=rows, demand=demand).problem()
    shared = next(c for c in problem.contents["l4"] if len(c.tenants) == 2)
    edge = next(e for e in problem.edges if (e.service, e.server) == ("classify", "a"))
    kept = resident(1, "classify", "detect")
    placement = Placement(
        groups=(PlacedGroup(server="a", content=shared, resident=kept),), flows=(Flow(edge=edge, group=0, rate=30.0),)
    )
    plan = planned(replace(problem, residents=(kept,)), placement)
    assert [(r.id, r.response_ms) for r in plan.replicas] == [("classify@a/l4/1/1", 20.0)]


def test_a_resident_keeps_its_device_and_new_groups_avoid_those_of_others(make) -> None:
    problem = replace(make.edge(l4_at_a=4).problem(), residents=(resident(0), resident(2)))
    placement = groups_at_a(problem, [10.0, 10.0, 10.0], [None, problem.residents[1], None])
    plan = planned(problem, placement)
    assert sorted(r.group for r in plan.replicas) == ["a/l4/1/2", "a/l4/2/1", "a/l4/3/2"]


def test_a_group_that_serves_nothing_it_had_loaded_is_a_new_group(make) -> None:
    problem = replace(make.edge().problem(), residents=(resident(0, "other"),))
    plan = planned(problem, groups_at_a(problem, [10.0], [problem.residents[0]]))
    assert [r.group for r in plan.replicas] == ["a/l4/1/2"]
    assert plan.replicas[0].load_s == 6.0


def test_idle_groups_are_dropped_and_parallel_flows_merged(make) -> None:
    problem = make.edge().problem()
    placement = groups_at_a(problem, [30.0, 0.0], [None, None])
    placement = replace(placement, flows=(*placement.flows, replace(placement.flows[0], rate=12.0)))
    plan = planned(problem, placement)
    assert [(r.replica, r.rate) for r in plan.routes] == [("classify@a/l4/0/2", 42.0)]
    assert len(plan.replicas) == 1


def test_more_groups_than_devices_are_refused(make) -> None:
    problem = make.edge().problem()
    with pytest.raises(InputError, match=r"placement.groups\[2\] at a: expected 1 free l4 device\(s\)"):
        planned(problem, groups_at_a(problem, [1.0, 1.0, 1.0], [None, None, None]))


def test_a_resident_cannot_be_kept_twice(make) -> None:
    problem = replace(make.edge().problem(), residents=(resident(0),))
    with pytest.raises(InputError, match=r"expected 1 free l4 device\(s\), got \[0\]"):
        planned(problem, groups_at_a(problem, [1.0, 1.0], [problem.residents[0]] * 2))


def test_a_plan_is_newer_than_the_one_in_force(make) -> None:
    problem = make.edge().problem()
    first = planned(problem, groups_at_a(problem, [1.0], [None]))
    with pytest.raises(InputError, match=r"plan\.generation: expected more than the generation in force, 2, got 2"):
        planned(problem, groups_at_a(problem, [1.0], [None]), in_force=first)


def test_the_same_placement_gives_the_same_plan(make) -> None:
    problem = make.edge().problem()
    plans = {planned(problem, groups_at_a(problem, [60.0, 50.0], [None, None])).to_json() for _ in range(2)}
    assert len(plans) == 1


def test_value_prices_the_time_that_loading_takes(make) -> None:
    problem = replace(make.edge().problem(), residents=(resident(0),))
    placement = groups_at_a(problem, [50.0, 50.0], [problem.residents[0], None])
    assert value(problem, placement) == pytest.approx(50.0 + 0.98 * 50.0)
    assert served(placement) == {("classify", "a"): 100.0}


def test_requests_go_out_and_answers_come_back(make) -> None:
    shape = replace(make.latency("x").request, input_bytes=1000.0, output_bytes=10.0)
    problem = make.edge(services=[make.latency("classify", request=shape)]).problem()
    edge = next(e for e in problem.edges if e.server == "b")
    assert link_use(problem, [Flow(edge=edge, group=0, rate=5.0)]) == {("a", "b"): 5000.0, ("b", "a"): 50.0}


def test_a_group_without_the_service_is_an_error(make) -> None:
    problem = make.edge().problem()
    group = PlacedGroup(server="a", content=problem.contents["l4"][0])
    with pytest.raises(InputError, match=r"placement\.a: expected one of classify, got zebra"):
        tenant_of(group, "zebra")


def test_moves_beyond_the_cap_are_left_out_the_least_earning_first(make) -> None:
    edge = make.edge(demand=[make.offer("classify", "a", 300.0)])
    free = edge.problem()
    content = free.contents["l4"][0]
    to = {e.server: e for e in free.edges}
    kept = Resident(group="a/l4/0/0", server="a", device_type="l4", devices=(0,), tp=1, pp=1, services=content.services)
    placement = Placement(
        groups=(
            PlacedGroup(server="a", content=content, resident=kept),
            PlacedGroup(server="a", content=content),
            PlacedGroup(server="b", content=content),
        ),
        flows=tuple(
            Flow(edge=to[server], group=i, rate=rate)
            for i, (server, rate) in enumerate((("a", 9), ("a", 20), ("b", 30)))
        ),
    )
    rates = {}
    for max_moves in (None, 2, 1, 0):
        problem = replace(free, residents=(kept,), rules=replace(free.rules, max_moves=max_moves))
        rates[max_moves] = [f.rate for f in within_moves(problem, placement).flows]
    assert rates == {None: [9, 20, 30], 2: [9, 20, 30], 1: [9, 30], 0: [9]}
