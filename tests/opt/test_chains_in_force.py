"""Plans with chains away from planners: what executors are told, change by change, and what people are."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from typing import Any, cast

import pytest
from epara_solvers.planners.greedy import GreedyPlanner
from rich.console import Console

from epara_opt.control.apply import apply
from epara_opt.control.deploy import commit_specs, group_specs
from epara_opt.control.diff import actions, compare
from epara_opt.control.fakes import FakeFleet
from epara_opt.control.ports import Fence
from epara_opt.control.regroup import regrouped
from epara_opt.control.reroute import rerouted
from epara_opt.control.routing import standing
from epara_opt.control.running import reconcile
from epara_opt.control.transition import stages
from epara_opt.domain.service import Task
from epara_opt.domain.topology import Topology
from epara_opt.errors import ExecutorRefused, ExecutorUnreachable, InputError
from epara_opt.explain import explain
from epara_opt.plan import ActionKind, Plan
from epara_opt.problem import PlacementProblem, build_problem
from epara_opt.report.figures import num_devices_used
from epara_opt.report.html import render
from epara_opt.report.terminal import plan_view
from epara_opt.verify import verify

GROUP = "a/l4/0/1"


@pytest.fixture
def problem(make) -> PlacementProblem:
    return make.row_edge().problem()


@pytest.fixture
def plan(make, problem: PlacementProblem) -> Plan:
    return make.chain_plan(problem)


@pytest.fixture
def topology(problem: PlacementProblem) -> Topology:
    """As a model of text, which executors can cut; nothing else about it matters here."""
    big = problem.topology.services["big"]
    shape = replace(big.request, prompt_tokens=1, output_tokens=1)
    text = replace(big, model=replace(big.model, task=Task.TEXT_GENERATION), request=shape)
    return replace(problem.topology, services={"big": text})


@pytest.fixture
def fleet(topology: Topology, problem: PlacementProblem) -> FakeFleet:
    return FakeFleet(topology, problem.catalogue)


@pytest.fixture
def bring(topology: Topology, problem: PlacementProblem, fleet: FakeFleet) -> Any:
    """Apply a plan to the fleet in memory."""

    def to_force(plan: Plan, before: Plan | None = None, generation: int = 1, **more: Any) -> Any:
        fence = Fence(epoch=1, generation=generation)
        return apply(plan, before, topology, problem.catalogue, fleet, fence, max_parallel=1, **more)

    return to_force


def empty(plan: Plan, generation: int) -> Plan:
    return replace(plan, replicas=(), routes=(), generation=generation)


def test_other_tasks_are_refused_before_any_executor_is_called(problem: PlacementProblem, plan: Plan) -> None:
    fleet = cast("Any", None)  # any call would fail
    law = r"plan.replicas.big@a/l4/0/1.stages: expected none: .* text-generation alone .*, got image-classification"
    with pytest.raises(InputError, match=law):
        apply(plan, None, problem.topology, problem.catalogue, fleet, Fence(epoch=1, generation=1))


def test_stages_at_devices_that_are_not_there_are_refused(plan: Plan, bring: Any) -> None:
    (r,) = plan.replicas
    odd = replace(plan, replicas=(replace(r, stages=(r.stages[0], replace(r.stages[1], devices=(3,)))),))
    with pytest.raises(InputError, match=r"stages\[1\]\.devices: expected devices of b, which has 1, got l4 \(3,\)"):
        bring(odd)


def test_every_server_is_told_all_stages_and_its_own_devices(
    topology: Topology, problem: PlacementProblem, plan: Plan
) -> None:
    specs = commit_specs(plan, topology, problem.catalogue)
    assert sorted(specs) == ["a", "b"]
    (head,), (further,) = specs["a"].groups, specs["b"].groups
    assert (head.server, head.is_led_here, head.stages_here) == ("a", True, (0,))
    assert (further.server, further.is_led_here, further.stages_here) == ("b", False, (1,))
    assert head.stages == further.stages
    assert [(s.server, s.address, s.first_layer, s.end_layer) for s in head.stages] == [
        ("a", "127.0.0.1:7100", 0, 3),
        ("b", "127.0.0.1:7101", 3, 6),
    ]
    (tenant,) = head.tenants
    assert tenant.work_per_s == pytest.approx(1000 / 30)
    assert group_specs(plan.replicas, topology, problem.catalogue, server="c") == ()


def test_further_stages_are_prepared_first_and_retired_last(plan: Plan, fleet: FakeFleet, bring: Any) -> None:
    bring(plan)
    prepared = [(s, g) for what, s, g in fleet.calls if what == "prepare"]
    assert prepared == [("b", (GROUP,)), ("a", (GROUP,))]
    assert [e.live() for e in fleet.executors.values()] == [{f"big@{GROUP}"}, {f"big@{GROUP}"}, set()]
    bring(empty(plan, 2), plan, 2)
    assert [(s, g) for what, s, g in fleet.calls if what == "retire"] == [("a", (GROUP,)), ("b", (GROUP,))]
    assert all(e.loaded == {} for e in fleet.executors.values())
    assert fleet.broken_laws == []


@pytest.mark.parametrize("call", range(8))
def test_what_fails_half_way_leaves_nothing_of_it_anywhere(plan: Plan, fleet: FakeFleet, bring: Any, call: int) -> None:
    """Models at a and b; prepare at b, at a; commits of all: whichever fails, everything is taken back."""
    fleet.fail_at(call, lambda server: ExecutorRefused(server, "not today"))
    if call < 7:
        with pytest.raises(ExecutorRefused, match="not today"):
            bring(plan)
        assert all(e.loaded == {} and not e.live() for e in fleet.executors.values())
    else:
        bring(plan)
        assert fleet.executors["a"].live() == {f"big@{GROUP}"}
    assert fleet.broken_laws == []


def test_a_chain_that_lost_a_server_is_unloaded_where_servers_answer(
    plan: Plan, fleet: FakeFleet, bring: Any, topology: Topology, problem: PlacementProblem
) -> None:
    bring(plan)
    fleet.crash("b")
    down = frozenset({"b"})
    todo = stages(plan, empty(plan, 2), topology, problem.catalogue, down=down)
    assert [(s.kind, dict(s.groups)) for s in todo if s.kind is ActionKind.RETIRE] == [
        (ActionKind.RETIRE, {"a": (GROUP,)})
    ]
    bring(empty(plan, 2), plan, 2, down=down)
    assert fleet.executors["a"].loaded == {}
    fleet.restart("b")  # its disk still has the stage: a stray, for nobody leads it
    state = fleet.observe({s.name: s.address or "" for s in topology.servers.values()}, with_plan=True)
    running = reconcile(empty(plan, 2), state, topology)
    assert running.strays == {"b": (GROUP,)}
    assert running.plan is not None
    assert running.plan.replicas == ()


@pytest.mark.parametrize(("lost", "left"), [("a", "b"), ("b", "a")])
def test_a_chain_that_one_executor_has_forgotten_runs_no_more(
    plan: Plan, fleet: FakeFleet, bring: Any, topology: Topology, lost: str, left: str
) -> None:
    bring(plan)
    addresses = {s.name: s.address or "" for s in topology.servers.values()}
    assert reconcile(plan, fleet.observe(addresses, with_plan=True), topology).plan == plan
    fleet.crash(lost)
    silent = reconcile(plan, fleet.observe(addresses, with_plan=True), topology)
    assert silent.plan == plan  # whether it is down is for others to decide
    fleet.restart(lost, blank=True)
    running = reconcile(plan, fleet.observe(addresses, with_plan=True), topology)
    assert (running.strays, running.plan and running.plan.replicas) == ({left: (GROUP,)}, ())


def test_memory_is_counted_where_each_stage_stands(plan: Plan, topology: Topology, problem: PlacementProblem) -> None:
    """A stage of 1 GiB less at b than at a: what fits beside it there fits, at a it must wait."""
    (r,) = plan.replicas
    small = replace(r, stages=(r.stages[0], replace(r.stages[1], memory_bytes=r.stages[1].memory_bytes - 2**30)))

    def beside(server: str) -> Plan:
        group = f"{server}/l4/0/2"
        other = replace(r, id=f"big@{group}", group=group, server=server, tp=1, pp=1, stages=(), memory_bytes=2 * 2**30)
        return replace(plan, replicas=(other,), routes=(), generation=2)

    def first_kind(server: str) -> ActionKind:
        return stages(replace(plan, replicas=(small,)), beside(server), topology, problem.catalogue)[0].kind

    assert (first_kind("a"), first_kind("b")) == (ActionKind.COMMIT, ActionKind.PREPARE)


def test_an_executor_that_is_gone_fails_the_change(plan: Plan, fleet: FakeFleet, bring: Any) -> None:
    fleet.crash("b")
    with pytest.raises(ExecutorUnreachable):
        bring(plan)
    assert fleet.executors["a"].loaded == {}


def test_its_actions_are_listed_at_every_server(problem: PlacementProblem, plan: Plan) -> None:
    todo = actions(None, plan, problem.topology, problem.catalogue)
    assert [(a.server, a.groups) for a in todo if a.kind is ActionKind.PREPARE] == [("a", (GROUP,)), ("b", (GROUP,))]
    verify(plan.with_actions(todo), problem.topology, problem.catalogue, problem=problem)


def test_it_stands_while_all_its_stages_do(problem: PlacementProblem, plan: Plan) -> None:
    assert standing(plan, problem.topology) is plan
    lost = standing(plan, problem.topology, frozenset({"b"}))
    assert lost is not None
    assert (lost.replicas, lost.routes) == ((), ())


def test_new_demand_is_routed_over_it(problem: PlacementProblem, plan: Plan, make) -> None:
    later = build_problem(
        problem.topology,
        problem.catalogue,
        rules=problem.rules,
        demand=[make.offer("big", "a", 50.0)],
        in_force=plan,
    )
    stay = rerouted(plan, later, generation=2)
    assert stay.predicted.goodput == pytest.approx(1000 / 30)
    verify(stay, later.topology, later.catalogue, problem=later)
    assert regrouped(stay, plan, later) is stay


def test_a_diff_counts_its_load_from_the_plan(problem: PlacementProblem, plan: Plan) -> None:
    found = compare(None, plan, catalogue=problem.catalogue, topology=problem.topology)
    assert (found.groups_added, found.load_s) == (("a/l4/0/1",), 9.0)


def test_reports_show_each_stage_where_it_is(problem: PlacementProblem, plan: Plan) -> None:
    assert num_devices_used(plan) == 2
    console = Console(width=160, record=True, file=StringIO())
    console.print(plan_view(plan, problem.topology))
    text = console.export_text()
    assert "l4 0, layers 0-2" in text
    assert "l4 0, layers 3-5" in text
    page = render(plan, problem.topology)
    assert "l4 0, layers 0-2" in page
    assert "l4 0, layers 3-5" in page


def test_an_explanation_names_all_stages(problem: PlacementProblem, plan: Plan) -> None:
    (placed,) = explain(problem, plan, "big").placed
    assert placed.where == "layers 0-2 on l4 0 at a, layers 3-5 on l4 0 at b; tp1 pp2 b1 f1"
    assert placed.why.startswith("fits on no server alone")


def test_reasons_say_what_a_chain_would_need(make) -> None:
    edge = make.row_edge(services=[make.big(slo_ms=100.0)])
    (late,) = GreedyPlanner().plan(edge.problem(), generation=1, time_limit_s=5).unserved
    assert late.code == "no_memory"
    assert "no chain of up to 4 stages over neighbours is in time" in late.reason
    busy = make.row_edge(demand=[make.offer("big", "a", 80.0)])
    (outbid,) = GreedyPlanner().plan(busy.problem(), generation=1, time_limit_s=5).unserved
    assert outbid.reason.startswith("outbid: a chain over neighbouring servers would need devices that are in use")
    off = replace(busy.rules, across_servers=False)
    (hint,) = GreedyPlanner().plan(busy.but(rules=off).problem(), generation=1, time_limit_s=5).unserved
    assert hint.reason.endswith("rules.across_servers would let it run over several servers")
