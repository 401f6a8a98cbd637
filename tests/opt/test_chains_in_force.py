"""Plans with chains away from planners: refused where executors would have to act, told truthfully everywhere else."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from typing import Any, cast

import pytest
from epara_solvers.planners.greedy import GreedyPlanner
from rich.console import Console

from epara_opt.control.apply import apply, require_inside_servers
from epara_opt.control.deploy import group_specs
from epara_opt.control.diff import actions, compare
from epara_opt.control.ports import Fence
from epara_opt.control.regroup import regrouped
from epara_opt.control.reroute import rerouted
from epara_opt.control.routing import standing
from epara_opt.errors import InputError
from epara_opt.explain import explain
from epara_opt.plan import ActionKind, Plan
from epara_opt.problem import PlacementProblem, build_problem
from epara_opt.report.figures import num_devices_used
from epara_opt.report.html import render
from epara_opt.report.terminal import plan_view
from epara_opt.verify import verify

REFUSED = r"plan.replicas.big@a/l4/0/1.stages: expected a replica inside one server: .*, got a -> b"


@pytest.fixture
def problem(make) -> PlacementProblem:
    return make.row_edge().problem()


@pytest.fixture
def plan(make, problem: PlacementProblem) -> Plan:
    return make.chain_plan(problem)


def test_apply_refuses_it_before_any_executor_is_called(problem: PlacementProblem, plan: Plan) -> None:
    fleet = cast("Any", None)  # any call would fail
    with pytest.raises(InputError, match=REFUSED):
        apply(plan, None, problem.topology, problem.catalogue, fleet, Fence(epoch=1, generation=1))
    with pytest.raises(InputError, match=REFUSED):
        require_inside_servers(plan)


def test_no_group_of_it_is_ever_described_to_an_executor(problem: PlacementProblem, plan: Plan) -> None:
    with pytest.raises(InputError, match="executors of this release run no groups across servers, got a -> b"):
        group_specs(plan.replicas, problem.topology, problem.catalogue)


def test_its_actions_are_listed_at_the_head(problem: PlacementProblem, plan: Plan) -> None:
    todo = actions(None, plan, problem.topology, problem.catalogue)
    assert [(a.server, a.groups) for a in todo if a.kind is ActionKind.PREPARE] == [("a", ("a/l4/0/1",))]
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
