"""The checker: a good plan passes, and each way of breaking one is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from epara_opt.errors import PlanRejected
from epara_opt.placement import Flow, PlacedGroup, Placement, assemble
from epara_opt.plan import Action, ActionKind, Plan, Route, Stop
from epara_opt.problem import PlacementProblem, Resident
from epara_opt.unserved import explain_unserved
from epara_opt.verify import verify


@pytest.fixture
def problem(make) -> PlacementProblem:
    """classify and detect at a, 150/s and 40/s; two l4 at a, one at b."""
    shape = replace(make.latency("classify").request, input_bytes=1e4)
    return make.edge(
        services=[make.latency("classify", request=shape), make.latency("detect", slo_ms=200.0)],
        rows=[make.row("classify", latency_ms=10.0), make.row("detect", latency_ms=15.0)],
        demand=[make.offer("classify", "a", 150.0), make.offer("detect", "a", 40.0)],
    ).problem()


def placed(problem: PlacementProblem) -> Placement:
    """Both services share one group at a; classify has another at b. 30/s of classify and 10/s of detect are left."""
    contents = problem.contents["l4"]
    shared = next(c for c in contents if len(c.tenants) == 2)
    alone = next(c for c in contents if c.services == {"classify"})
    edge = {(e.service, e.server): e for e in problem.edges}
    return Placement(
        groups=(PlacedGroup(server="a", content=shared), PlacedGroup(server="b", content=alone)),
        flows=(
            Flow(edge=edge["classify", "a"], group=0, rate=30.0),
            Flow(edge=edge["detect", "a"], group=0, rate=30.0),
            Flow(edge=edge["classify", "b"], group=1, rate=90.0),
        ),
    )


def planned(problem: PlacementProblem, placement: Placement | None = None) -> Plan:
    placement = placement or placed(problem)
    return assemble(
        problem,
        placement,
        generation=1,
        solver="by hand",
        stop=Stop.HEURISTIC,
        dual_bound=200.0,
        wall_s=0.0,
        unserved=explain_unserved(problem, placement),
    )


def check(plan: Plan, problem: PlacementProblem) -> None:
    verify(plan, problem.topology, problem.catalogue, problem=problem)


def with_replica(plan: Plan, index: int, **changes) -> Plan:
    replicas = list(plan.replicas)
    replicas[index] = replace(replicas[index], **changes)
    return replace(plan, replicas=tuple(replicas))


def with_forecast(plan: Plan, **changes) -> Plan:
    """The first forecast (classify) bent."""
    services = (replace(plan.predicted.services[0], **changes), *plan.predicted.services[1:])
    return replace(plan, predicted=replace(plan.predicted, services=services))


def with_route(plan: Plan, index: int, **changes) -> Plan:
    routes = list(plan.routes)
    routes[index] = replace(routes[index], **changes)
    return replace(plan, routes=tuple(routes))


def test_a_good_plan_passes_with_its_problem_and_without(problem) -> None:
    plan = planned(problem)
    check(plan, problem)
    verify(plan, problem.topology, problem.catalogue)


def test_a_plan_read_back_from_json_passes(problem) -> None:
    check(Plan.from_json(planned(problem).to_json()), problem)


BROKEN: dict[str, tuple[Callable[[Plan], Plan], str]] = {
    "another topology": (lambda p: replace(p, topology="elsewhere"), "topology: expected two-servers, got elsewhere"),
    "another edge": (lambda p: replace(p, topology_digest="0"), r"expected a plan for this edge \(by-hand\), got 0"),
    "other inputs": (lambda p: replace(p, inputs_digest="0"), "inputs_digest: expected a plan for these inputs"),
    "an unknown service": (lambda p: with_replica(p, 0, service="zebra"), "expected a service of the topology"),
    "a device type nobody has": (lambda p: with_replica(p, 2, device_type="h9"), "a device type of the topology"),
    "a device that does not exist": (lambda p: with_replica(p, 2, devices=(1,)), "expected a device of b, which has 1"),
    "a device less than the shape": (lambda p: with_replica(p, 2, tp=2), "expected 2 x 1 different devices"),
    "an unknown server": (lambda p: with_replica(p, 2, server="z"), "expected a device of z, which has 0 l4"),
    "a split group": (lambda p: with_replica(p, 0, devices=(1,)), "expected one server, device type, shape"),
    "a split across one device": (lambda p: with_replica(p, 2, tp=2, devices=(0, 0)), "expected one device: latency"),
    "a replica twice": (lambda p: replace(p, replicas=(*p.replicas, p.replicas[2])), "replicas: expected each id once"),
    "frames of a request": (lambda p: with_replica(p, 2, frames=2), "expected one frame per batch: not a stream"),
    "a batch never measured": (lambda p: with_replica(p, 2, batch=8), "expected a configuration inside the profile"),
    "a rosy response": (lambda p: with_replica(p, 0, response_ms=20.0), "response_ms: expected 50.000, got 20.0"),
    "too little memory": (lambda p: with_replica(p, 0, memory_bytes=1), "memory_bytes: expected 536870912, got 1"),
    "a load without time": (lambda p: with_replica(p, 0, load_s=0.0), "load_s: expected 6, got 0"),
    "shares above 1": (lambda p: with_replica(p, 2, share=1.1), "expected shares of at most 1 together"),
    "less share than work": (lambda p: with_replica(p, 2, share=0.5), "expected at most 50 in its share of time"),
    "boasted capacity": (lambda p: with_replica(p, 2, capacity=120.0), "expected capacities for at most all"),
    "less capacity than work": (lambda p: with_replica(p, 2, capacity=80.0), "expected at most its capacity 80"),
    "more work than time": (lambda p: with_route(p, 1, rate=101.0), "expected routes to ask for at most all"),
    "more than is offered": (lambda p: with_route(p, 0, rate=70.0), r"demand\[classify@a\]: .*150 served, got 160"),
    "a rate of nothing": (lambda p: with_route(p, 0, rate=0.0), "rate: expected a finite number > 0"),
    "an endless rate": (lambda p: with_route(p, 0, rate=float("nan")), "rate: expected a finite number > 0, got nan"),
    "a route to nowhere": (lambda p: with_route(p, 0, replica="zebra"), "expected a replica of this service"),
    "a route from nowhere": (lambda p: with_route(p, 0, origin="z"), "expected a path from z to a"),
    "a route twice": (lambda p: replace(p, routes=(*p.routes, p.routes[0])), "expected each route once"),
    "a rosy network": (lambda p: with_route(p, 1, network_ms=1.0), "network_ms: expected 10.010, got 1.0"),
    "a rosy prediction": (lambda p: with_route(p, 1, predicted_ms=1.0), "predicted_ms: expected 30.010, got 1.0"),
    "demand forgotten": (lambda p: replace(p, unserved=()), r"expected served \+ unserved = 150"),
    "demand without reason": (
        lambda p: replace(p, unserved=tuple(replace(u, reason="") for u in p.unserved)),
        "expected a rate > 0 and a reason",
    ),
    "an objective not earned": (lambda p: replace(p, objective=151.0), "objective: expected 150.0"),
    "a bound below": (lambda p: replace(p, dual_bound=149.0, gap=0.0), "objective: expected at most the bound 149"),
    "a rosy gap": (lambda p: replace(p, gap=0.01), "gap: expected 0.25, got 0.01"),
    "a gap without a bound": (lambda p: replace(p, dual_bound=None), "gap: expected None"),
    "a rosy goodput": (
        lambda p: replace(p, predicted=replace(p.predicted, goodput=190.0)),
        "predicted.goodput: expected the routes' sum 150",
    ),
    "a forecast too few": (
        lambda p: replace(p, predicted=replace(p.predicted, services=p.predicted.services[:1])),
        r"predicted.services\[detect\]: expected a forecast",
    ),
    "a rosy worst case": (
        lambda p: with_forecast(p, worst_ms=1.0),
        r"\[classify\].worst_ms: expected 50.000000, got 1.0",
    ),
    "another category": (lambda p: with_forecast(p, category="rosy"), r"category: expected latency.*, got rosy"),
    "another unit": (lambda p: with_forecast(p, unit="streams"), "unit: expected requests/s, got streams"),
    "a forecast twice": (
        lambda p: replace(p, predicted=replace(p.predicted, services=p.predicted.services * 2)),
        "predicted.services: expected each service once",
    ),
    "a forecast of nobody": (
        lambda p: with_forecast(p, service="zebra"),
        r"predicted.services\[zebra\]: expected a service of the topology",
    ),
    "a rosy utilization": (
        lambda p: replace(p, predicted=replace(p.predicted, utilization={"a": 0.1, "b": 0.9})),
        r"predicted.utilization\[a\]: expected 0.[0-9]+, got 0.1",
    ),
    "utilization of nobody": (
        lambda p: replace(p, predicted=replace(p.predicted, utilization=p.predicted.utilization | {"z": 0.0})),
        r"utilization\[z\]: expected a server with devices",
    ),
    "another executor": (
        lambda p: with_replica(p, 2, endpoint="evil:1"),
        "endpoint: expected 127.0.0.1:7101, got evil:1",
    ),
    "a rosy attainment": (
        lambda p: replace(p, predicted=replace(p.predicted, slo_attainment=1.0)),
        "predicted.slo_attainment: expected 0.789",
    ),
    "preparing what is not placed": (
        lambda p: p.with_actions((Action(stage=0, kind=ActionKind.PREPARE, server="a", groups=("a/l4/7/1",)),)),
        "expected a group that the plan places at a, got a/l4/7/1",
    ),
    "retiring another server's group": (
        lambda p: p.with_actions((Action(stage=2, kind=ActionKind.RETIRE, server="a", groups=("b/l4/0/0",)),)),
        "expected a group of a, got b/l4/0/0",
    ),
    "an action nowhere": (
        lambda p: p.with_actions((Action(stage=1, kind=ActionKind.COMMIT, server="z"),)),
        "expected a server of the topology, got z",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plan_is_rejected_for_what_breaks_it(problem, case: str) -> None:
    bend, message = BROKEN[case]
    with pytest.raises(PlanRejected, match=message):
        check(bend(planned(problem)), problem)


def test_two_groups_cannot_have_one_device(problem) -> None:
    plan = planned(problem)
    moved = replace(plan.replicas[2], server="a", id="classify@x", group="a/l4/0/9")
    with pytest.raises(PlanRejected, match="expected devices of its own; a/l4/0/1 has it too, got 0"):
        check(replace(plan, replicas=(*plan.replicas[:2], moved)), problem)


def test_tenants_that_do_not_fit_in_memory_together_are_rejected(problem, make) -> None:
    tight = make.edge(services=list(problem.topology.services.values()), rows=problem.catalogue.rows, memory_gib=0.9)
    with pytest.raises(PlanRejected, match=r"memory: expected at most 0.900 GiB per device, got 1.000"):
        verify(planned(problem), tight.topology, problem.catalogue)


def test_a_late_route_is_rejected_on_the_network_as_it_is(problem, make) -> None:
    far = make.edge(services=list(problem.topology.services.values()), demand=problem.demand, rtt_ms=85.0)
    with pytest.raises(PlanRejected, match=r"routes\[classify, a -> classify@b/l4/0/1\]: expected at most 100 ms"):
        verify(planned(problem), far.topology, problem.catalogue)


def test_a_link_carries_no_more_than_its_bandwidth(problem, make) -> None:
    narrow = make.edge(
        services=list(problem.topology.services.values()), demand=problem.demand, bandwidth_bytes_per_s=8e5
    )
    with pytest.raises(PlanRejected, match=r"links\[a -> b\]: expected at most 800000 bytes/s, got 900000"):
        verify(planned(problem), narrow.topology, problem.catalogue)


def test_routes_to_a_server_that_is_down_are_rejected(make) -> None:
    edge = make.edge()
    whole = edge.problem()
    content, to_b = whole.contents["l4"][0], next(e for e in whole.edges if e.server == "b")
    placement = Placement(
        groups=(PlacedGroup(server="b", content=content),), flows=(Flow(edge=to_b, group=0, rate=90.0),)
    )
    with pytest.raises(PlanRejected, match="expected a path from a to b"):
        check(planned(whole, placement), edge.problem(down=frozenset({"b"})))


def test_a_resident_keeps_its_devices_and_earns_at_once(problem) -> None:
    kept = Resident(
        group="a/l4/1/0",
        server="a",
        device_type="l4",
        devices=(1,),
        tp=1,
        pp=1,
        services=frozenset({"classify", "detect"}),
    )
    warm = replace(problem, residents=(kept,))
    placement = placed(problem)
    groups = (replace(placement.groups[0], resident=kept), placement.groups[1])
    plan = planned(warm, replace(placement, groups=groups))
    check(plan, warm)
    assert {r.group: (r.devices, r.load_s) for r in plan.replicas} == {"a/l4/1/0": ((1,), 0.0), "b/l4/0/1": ((0,), 6.0)}
    assert plan.objective == pytest.approx(60.0 + 0.98 * 90.0)
    with pytest.raises(PlanRejected, match="expected the devices and shape that this group has in force"):
        check(with_replica(with_replica(plan, 0, devices=(0,)), 1, devices=(0,)), warm)


def test_every_violation_is_listed_at_once(problem) -> None:
    plan = with_route(with_replica(planned(problem), 2, batch=8), 0, rate=70.0)
    with pytest.raises(PlanRejected) as caught:
        check(plan, problem)
    assert len(caught.value.violations) >= 4


def test_demand_without_a_problem_is_the_topologys_own(problem) -> None:
    plan = planned(problem)
    served_more = replace(plan.routes[0], rate=31.0)
    with pytest.raises(PlanRejected, match=r"demand\[classify@a\]"):
        verify(replace(plan, routes=(served_more, *plan.routes[1:])), problem.topology, problem.catalogue)


def test_routes_are_of_their_replicas_service(problem) -> None:
    plan = planned(problem)
    wrong = Route(service="detect", origin="a", replica=plan.replicas[2].id, rate=1.0, network_ms=0.0, predicted_ms=1.0)
    with pytest.raises(PlanRejected, match="expected a replica of this service in the plan"):
        check(replace(plan, routes=(*plan.routes, wrong)), problem)


def test_more_groups_that_load_than_the_rules_allow_are_rejected(problem) -> None:
    kept = Resident(
        group="a/l4/1/0", server="a", device_type="l4", devices=(1,), tp=1, pp=1, services=frozenset({"classify"})
    )
    placement = placed(problem)
    groups = (replace(placement.groups[0], resident=kept), placement.groups[1])  # detect is loaded beside classify
    placement = replace(placement, groups=groups)
    for max_moves, residents in ((2, (kept,)), (0, ())):  # where nothing runs yet, everything must be loaded
        capped = replace(problem, residents=residents, rules=replace(problem.rules, max_moves=max_moves))
        check(planned(capped, placement if residents else placed(problem)), capped)
    capped = replace(problem, residents=(kept,), rules=replace(problem.rules, max_moves=1))
    with pytest.raises(PlanRejected, match=r"replicas: expected at most 1 group\(s\) that load something, got 2"):
        check(planned(capped, placement), capped)
