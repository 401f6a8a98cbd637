"""The checker on plans with chains: a good one passes, each way of breaking one is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from epara_opt.errors import InputError, PlanRejected
from epara_opt.placement import Flow, PlacedGroup, Placement, assemble
from epara_opt.plan import Plan, Stop
from epara_opt.problem import PlacementProblem, build_problem
from epara_opt.unserved import explain_unserved
from epara_opt.verify import verify


@pytest.fixture
def problem(make) -> PlacementProblem:
    return make.row_edge(pools=(2, 2, 1)).problem()


def test_a_good_plan_passes_with_its_problem_and_without(make, problem: PlacementProblem) -> None:
    plan = make.chain_plan(problem)
    verify(plan, problem.topology, problem.catalogue, problem=problem)
    verify(plan, problem.topology, problem.catalogue)
    (replica,) = plan.replicas
    assert (replica.server, replica.devices, replica.tp, replica.pp) == ("a", (0,), 1, 2)
    assert [(s.server, s.devices, s.first_layer, s.end_layer) for s in replica.stages] == [
        ("a", (0,), 0, 3),
        ("b", (0,), 3, 6),
    ]
    assert plan.predicted.utilization == {"a": pytest.approx(0.3), "b": pytest.approx(0.3), "c": 0.0}


def but(plan: Plan, index: int | None = None, **changes: object) -> Plan:
    """The replica bent, or one of its stages."""
    (replica,) = plan.replicas
    if index is not None:
        stages = list(replica.stages)
        stages[index] = replace(stages[index], **changes)  # type: ignore[arg-type]
        changes = {"stages": tuple(stages)}
    return replace(plan, replicas=(replace(replica, **changes),))  # type: ignore[arg-type]


BROKEN: dict[str, tuple[Callable[[Plan], Plan], str]] = {
    "a device that is not there": (lambda p: but(p, 1, devices=(2,)), "expected a device of b, which has 2 l4"),
    "a server that is not there": (lambda p: but(p, 1, server="z"), "expected slices inside the profile and paths"),
    "layers missing": (lambda p: but(p, 1, first_layer=4), r"stages: expected layers 0 to 6, each once and in order"),
    "layers at the end missing": (lambda p: but(p, 1, end_layer=5), r"stages: expected layers 0 to 6"),
    "one server": (lambda p: but(p, 1, server="a", devices=(1,)), "expected two servers or more, got a"),
    "a device twice": (lambda p: but(p, 1, devices=(0, 0)), "expected each device in one stage"),
    "another head": (lambda p: but(p, 0, devices=(1,)), "expected the first to be the replica's server"),
    "a tp of its own": (lambda p: but(p, tp=2), "expected the first to be the replica's server"),
    "less memory": (lambda p: but(p, 1, memory_bytes=1), r"stages\[1\].memory_bytes: expected 3221225472, got 1"),
    "a rosy response": (lambda p: but(p, response_ms=120.0), "response_ms: expected 126.000, got 120.0"),
    "more than the slowest stage": (lambda p: but(p, capacity=40.0), "expected capacities for at most all of its time"),
    "an unmeasured batch": (lambda p: but(p, batch=2), "expected slices inside the profile"),
    "five layers on one device": (
        lambda p: but(but(p, 0, end_layer=5, memory_bytes=5 * 2**30), 1, first_layer=5),
        r"stages\[0\].memory: expected at most 4.000 GiB per device, got 5.000",
    ),
    "a load without time": (lambda p: but(p, load_s=1.0), "load_s: expected 9, got 1.0"),
}


@pytest.mark.parametrize(("broken", "message"), BROKEN.values(), ids=BROKEN)
def test_what_is_broken_is_named(make, problem: PlacementProblem, broken: Callable[[Plan], Plan], message: str) -> None:
    with pytest.raises(PlanRejected, match=message):
        verify(broken(make.chain_plan(problem)), problem.topology, problem.catalogue, problem=problem)


def test_rules_that_forbid_chains_are_kept(make, problem: PlacementProblem) -> None:
    plan = make.chain_plan(problem)
    for rules, message in (
        (replace(problem.rules, across_servers=False), "expected none: rules.across_servers is false, got 2"),
        (replace(problem.rules, max_stages=2), "inputs_digest"),
    ):
        other = build_problem(problem.topology, problem.catalogue, rules=rules)
        with pytest.raises(PlanRejected, match=message):
            verify(plan, problem.topology, problem.catalogue, problem=other)


def test_links_carry_what_passes_between_stages_at_full_rate(make) -> None:
    """33.3 kB/s are kept on a link of 40 kB/s: 10 requests/s of 1 kB more do not fit."""
    shape = replace(make.big().request, input_bytes=1000.0)
    edge = make.row_edge(services=[make.big(slo_ms=400.0), make.latency("classify", slo_ms=400.0, request=shape)])
    edge = edge.but(
        rows=[*edge.rows, make.row("classify", latency_ms=10.0)],
        demand=[*edge.demand, make.offer("classify", "a", 10.0)],
        bandwidth_bytes_per_s=4e4,
        pools=(1, 2, 1),
    )
    problem = edge.problem()
    plan = make.chain_plan(problem)
    small = next(c for c in problem.contents["l4"] if c.services == {"classify"})
    way = next(e for e in problem.edges if (e.service, e.server) == ("classify", "b"))
    chain = next(c for c in problem.chains.contents if c.stages[0].end_layer == 3 and c.stages[1].server == "b")
    here = next(e for e in problem.edges if (e.service, e.origin, e.server) == ("big", "a", "a"))
    placement = Placement(
        groups=(PlacedGroup(server="a", content=chain), PlacedGroup(server="b", content=small)),
        flows=(Flow(edge=here, group=0, rate=20.0), Flow(edge=way, group=1, rate=10.0)),
    )
    both = assemble(
        problem,
        placement,
        generation=1,
        solver="by hand",
        stop=Stop.HEURISTIC,
        dual_bound=None,
        wall_s=0.0,
        unserved=explain_unserved(problem, placement),
    )
    verify(plan, problem.topology, problem.catalogue, problem=problem)
    with pytest.raises(PlanRejected, match=r"links\[a -> b\]: expected at most 40000 bytes/s, got 43"):
        verify(both, problem.topology, problem.catalogue, problem=problem)


def test_stages_that_are_no_list_are_refused_when_read(make, problem: PlacementProblem) -> None:
    text = make.chain_plan(problem).to_json()
    with pytest.raises(InputError, match=r"replicas\[0\].stages: expected a list"):
        Plan.from_json(text.replace('"stages": [', '"stages": 7, "zebra": ['))


def test_plans_of_before_read_without_stages(make, problem: PlacementProblem) -> None:
    data = json.loads(make.chain_plan(problem).to_json())
    del data["replicas"][0]["stages"]
    assert Plan.from_json(json.dumps(data)).replicas[0].stages == ()
