"""How busy tenants may be, and that contents, checker and re-routing all say the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from epara_opt.control.fake_planner import FirstFitPlanner
from epara_opt.control.reroute import rerouted
from epara_opt.domain.utilization import Kind, utilizations
from epara_opt.errors import PlanRejected
from epara_opt.problem import PlanningRules
from epara_opt.verify import verify


def bursty(make, *, target: float | None = 0.95, cv: float = 2.0, **edge):
    demand = [replace(make.offer("classify", "a", 150.0), burstiness_cv=cv)]
    return make.edge(demand=demand, rules=PlanningRules(max_utilization=0.8, on_time_target=target), **edge)


def test_without_a_target_every_tenant_may_fill_max_utilization(make) -> None:
    for content in bursty(make, target=None).problem().contents["l4"]:
        assert all(t.utilization == 0.8 for t in content.tenants)


def test_a_tenant_may_fill_what_the_table_says_for_its_time_left_and_batch(make) -> None:
    tenant = bursty(make).problem().contents["l4"][0].tenants[0]
    # 10 ms of 100 ms, batch 1; a replica does 100 of the 150 requests per second: CV^2 = 1 + 2/3 (4 - 1) = 3
    point = (np.array([3.0**0.5]), np.array([1.0]), np.array([10.0]))
    said = utilizations(Kind.BATCHES, target=0.95, cv=point[0], batch=point[1], time_left=point[2])[0]
    assert tenant.utilization == pytest.approx(min(0.8, said))
    assert 0.05 < tenant.utilization < 0.8
    assert tenant.work_per_s == pytest.approx(100.0 * tenant.utilization)


def test_burstier_demand_and_higher_targets_leave_less(make) -> None:
    def allowed(target: float, cv: float) -> float:
        return bursty(make, target=target, cv=cv).problem().contents["l4"][0].tenants[0].utilization

    assert allowed(0.99, 2.0) < allowed(0.95, 2.0) < allowed(0.9, 2.0)
    assert allowed(0.95, 4.0) < allowed(0.95, 2.0) < allowed(0.95, 1.0)


def test_streams_are_periodic_and_keep_max_utilization(make) -> None:
    edge = make.edge(
        services=[make.stream("lanes")],
        rows=[make.row("lanes", latency_ms=10.0)],
        demand=[replace(make.offer("lanes", "a", 3.0, streams=True), burstiness_cv=5.0)],
        rules=PlanningRules(max_utilization=0.7, on_time_target=0.99),
    )
    assert {t.utilization for c in edge.problem().contents["l4"] for t in c.tenants} == {0.7}


def test_company_takes_time_and_with_it_utilization(make) -> None:
    edge = make.edge(
        services=[make.latency("classify"), make.latency("spot")],
        rows=[make.row("classify", latency_ms=10.0), make.row("spot", latency_ms=12.0)],
        demand=[make.offer("classify", "a", 150.0), make.offer("spot", "a", 50.0)],
        rules=PlanningRules(max_utilization=1.0, on_time_target=0.95),
    )
    by_size = {len(c.tenants): c for c in edge.problem().contents["l4"] if "classify" in c.services}
    assert by_size[2].tenants[0].utilization < by_size[1].tenants[0].utilization


def test_the_checker_refuses_a_plan_that_fills_more_than_the_target_leaves(make) -> None:
    problem = bursty(make).problem()
    plan = FirstFitPlanner().plan(problem, generation=1, time_limit_s=1.0)
    verify(plan, problem.topology, problem.catalogue, problem=problem)
    eager = bursty(make, target=None).problem()
    filled = FirstFitPlanner().plan(eager, generation=1, time_limit_s=1.0)
    verify(filled, eager.topology, eager.catalogue, problem=eager)
    with pytest.raises(PlanRejected, match="ask for at most all of its time"):
        verify(replace(filled, inputs_digest=problem.digest), problem.topology, problem.catalogue, problem=problem)


def test_rerouting_keeps_within_what_the_target_leaves(make) -> None:
    eager = bursty(make, target=None).problem()
    in_force = FirstFitPlanner().plan(eager, generation=1, time_limit_s=1.0)
    problem = bursty(make).problem(in_force=in_force)
    plan = rerouted(in_force, problem, generation=2)
    assert 0 < plan.predicted.goodput < in_force.predicted.goodput
    verify(plan, problem.topology, problem.catalogue, problem=problem)
