"""explain, advise and the changes they try: constructed edges whose remedy is known to the last GiB and millisecond."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from epara_solvers.columns.engine import Budget
from epara_solvers.planners.columns import ColumnPlanner

from epara_opt.advise import Advice, candidates, fixes, try_all
from epara_opt.domain.topology import Topology
from epara_opt.errors import InputError
from epara_opt.explain import explain
from epara_opt.plan import Plan
from epara_opt.problem import PlacementProblem, build_problem
from epara_opt.units import GIB
from epara_opt.whatif import longer_deadline, more_devices, more_memory, wider_link

COUNTED = Budget(steps=100, rounds=200)


def planned(problem: PlacementProblem) -> Plan:
    return ColumnPlanner(budget=COUNTED, threads=1).plan(problem, generation=1, time_limit_s=10.0)


def tried(edge: Any, problem: PlacementProblem, plan: Plan, service: str) -> dict[str, Advice]:
    """Every fix for the first demand that is not served, planned for."""

    def replan(topology: Topology) -> Plan:
        changed = build_problem(topology, edge.catalogue, rules=edge.rules, in_force=plan)
        return ColumnPlanner(budget=COUNTED, threads=1).plan(changed, generation=2, time_limit_s=10.0, in_force=plan)

    changes = fixes(problem, plan, plan.unserved[0])
    return {a.change: a for a in try_all(changes, edge.topology, replan, service)}


def test_a_model_too_large_is_cured_by_the_memory_it_lacks(make) -> None:
    edge = make.edge(rows=[make.row("classify", latency_ms=10.0, memory_bytes=int(24.1 * GIB))])
    problem = edge.problem()
    found = tried(edge, problem, planned(problem), "classify")
    best = found["memory per l4 22 to 24.25 GiB (+2.25 GiB)"]
    assert best.service_gain == pytest.approx(150.0)
    assert best.proved


def test_a_deadline_too_tight_is_cured_by_the_soonest_answer_there_is(make) -> None:
    edge = make.edge(rows=[make.row("classify", latency_ms=65.0)], demand=[make.offer("classify", "a", 10.0)])
    problem = edge.problem()
    found = tried(edge, problem, planned(problem), "classify")
    assert found["slo_ms of classify 100 to 130 ms"].service_gain == pytest.approx(10.0)


def test_a_far_origin_counts_its_network(make) -> None:
    edge = make.edge(l4_at_a=0, rtt_ms=95.0)
    problem = edge.problem()
    found = tried(edge, problem, planned(problem), "classify")
    assert found["slo_ms of classify 100 to 115 ms"].service_gain == pytest.approx(100.0)


def test_one_more_device_adds_what_it_can_serve(make) -> None:
    edge = make.edge(demand=[make.offer("classify", "a", 380.0)])
    problem = edge.problem()
    plan = planned(problem)
    assert plan.objective == pytest.approx(300.0)
    found = tried(edge, problem, plan, "classify")
    for server in ("a", "b"):
        more = found[f"one more l4 at {server}"]
        assert more.service_gain == pytest.approx(80.0)
        assert more.gain == pytest.approx(80.0 * (1 - 6 / 300))  # the new one must load its model first
        assert more.proved


def test_a_group_larger_than_any_server_says_how_many_devices_are_missing(make) -> None:
    rows = [make.row("classify", tp=2, latency_ms=10.0)]
    edge = make.edge(l4_at_a=1, l4_at_b=0, rows=rows, demand=[make.offer("classify", "a", 50.0)])
    problem = edge.problem()
    plan = planned(problem)
    assert plan.objective == 0.0
    assert plan.unserved[0].code == "no_devices"


def test_a_full_link_is_cured_by_a_wider_one(make) -> None:
    from epara_opt.domain.service import RequestShape

    service = make.latency("classify", request=RequestShape(input_bytes=10_000.0))
    edge = make.edge(l4_at_a=0, bandwidth_bytes_per_s=4e5, services=[service], rtt_ms=5.0)
    problem = edge.problem()
    plan = planned(problem)
    assert plan.objective == pytest.approx(40.0)
    found = tried(edge, problem, plan, "classify")
    assert found["2 times the bandwidth of a - b"].service_gain == pytest.approx(40.0)
    assert found["one more l4 at b"].service_gain == pytest.approx(0.0)


def test_advice_names_the_pool_where_demand_is_turned_away(make) -> None:
    edge = make.edge(demand=[make.offer("classify", "b", 380.0)], rtt_ms=90.0)  # nothing at a is in time
    problem = edge.problem()
    plan = planned(problem)
    names = [c.name for c in candidates(problem, plan)]
    assert names[0] == "one more l4 at b"
    assert "one more l4 at a" not in names


def test_explanations_say_where_and_why_there(make) -> None:
    edge = make.edge(demand=[make.offer("classify", "a", 290.0)])
    problem = edge.problem()
    found = explain(problem, planned(problem), "classify", "a")
    assert found.served == pytest.approx(290.0)
    assert found.unserved == ()
    at = {p.server: p for p in found.placed}
    assert "no server nearer to a could serve it in time" in at["a"].why
    assert at["b"].why == "nearer to a: a holds classify"
    assert "of 100 ms" in at["b"].origins[0]


@pytest.mark.parametrize(
    ("service", "origin", "said"),
    [
        ("classfy", None, "service: expected one of classify, got classfy"),
        ("classify", "b", "origin: expected an origin of classify: a, got b"),
    ],
)
def test_questions_about_nothing_are_refused(make, service: str, origin: str | None, said: str) -> None:
    problem = make.edge().problem()
    with pytest.raises(InputError, match=said):
        explain(problem, planned(problem), service, origin)


def test_changes_change_one_thing(make) -> None:
    topology = make.edge().topology
    assert more_devices("a", "l4", 2).apply(topology).servers["a"].devices[0].count == 4
    assert more_memory(topology, "l4", 23 * GIB).apply(topology).device_types["l4"].memory_bytes == 23 * GIB
    assert wider_link("b", "a", 2.0).apply(topology).links[0].bandwidth_bytes_per_s == 2e9
    assert longer_deadline(topology, "classify", 120.4).apply(topology).services["classify"].slo_ms == 121.0
    with pytest.raises(InputError, match="expected a device type that the server has"):
        more_devices("a", "t4").apply(topology)
    assert replace(topology, digest="") == replace(make.edge().topology, digest="")
