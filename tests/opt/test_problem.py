"""What could be placed, what it would earn, and what was left out as dominated."""

from __future__ import annotations

from dataclasses import replace

import pytest

from epara_opt.domain.parallel import ParallelConfig
from epara_opt.errors import InputError
from epara_opt.placement import Flow, PlacedGroup, Placement, assemble
from epara_opt.plan import Plan, Stop
from epara_opt.problem import (
    MIN_EARNING,
    PlacementProblem,
    PlanningRules,
    Resident,
    build_problem,
    fills_batch,
    reduced,
)
from epara_opt.units import GIB


def resident(**fields) -> Resident:
    given = {"group": "a/l4/0/1", "server": "a", "device_type": "l4", "devices": (0,), "tp": 1, "pp": 1}
    return Resident(**{**given, "services": frozenset({"classify"}), **fields})


def test_an_edge_keeps_what_the_network_leaves_of_the_deadline(make) -> None:
    problem = make.edge(rtt_ms=30.0).problem()
    assert {(e.server, e.slack_ms) for e in problem.edges} == {("a", 100.0), ("b", 70.0)}


@pytest.mark.parametrize(("rtt_ms", "servers"), [(100.0, {"a", "b"}), (100.1, {"a"})])
def test_a_route_longer_than_the_deadline_is_no_edge(make, rtt_ms: float, servers: set[str]) -> None:
    assert {e.server for e in make.edge(rtt_ms=rtt_ms).problem().edges} == servers


def test_transfers_count_against_the_deadline(make) -> None:
    shape = make.latency("classify").request
    service = make.latency("classify", request=replace(shape, input_bytes=1.5e6, output_bytes=5e5))
    problem = make.edge(services=[service], bandwidth_bytes_per_s=1e8).problem()
    assert next(e.network_ms for e in problem.edges if e.server == "b") == 10.0 + 20.0


def test_only_batches_that_nothing_beats_are_kept(make) -> None:
    rows = [
        make.row("classify", batch=1, latency_ms=10.0),  # 100/s, fastest
        make.row("classify", batch=2, latency_ms=21.0),  # 95/s, slower: dominated where both are in time
        make.row("classify", batch=4, latency_ms=30.0),  # 133/s
    ]
    problem = make.edge(rows=rows).problem()
    assert [c.tenants[0].config.batch for c in problem.contents["l4"]] == [4]


def test_a_slower_faster_trade_keeps_both(make) -> None:
    rows = [make.row("classify", batch=1, latency_ms=10.0), make.row("classify", batch=2, latency_ms=15.0)]
    demand = [make.offer("classify", "a", 10.0), make.offer("classify", "b", 10.0)]
    problem = make.edge(rows=rows, demand=demand, rtt_ms=75.0).problem()  # batch 2 only for those near
    assert {c.tenants[0].config.batch for c in problem.contents["l4"]} == {1, 2}


def two_services(make, **changes):
    services = [make.latency("classify"), make.latency("detect")]
    rows = [make.row("classify", latency_ms=10.0), make.row("detect", latency_ms=15.0)]
    demand = [make.offer("classify", "a", 10.0), make.offer("detect", "a", 10.0)]
    return make.edge(**{"services": services, "rows": rows, "demand": demand, **changes})


def test_tenants_wait_for_each_other(make) -> None:
    problem = two_services(make).problem()
    shared = next(c for c in problem.contents["l4"] if len(c.tenants) == 2)
    assert [t.response_ms for t in shared.tenants] == [20.0 + 2 * 15.0, 30.0 + 2 * 10.0]


def test_services_that_do_not_fit_together_share_no_group(make) -> None:
    rows = [
        make.row("classify", latency_ms=10.0, memory_bytes=12 * GIB),
        make.row("detect", latency_ms=15.0, memory_bytes=11 * GIB),
    ]
    contents = two_services(make, rows=rows).problem().contents["l4"]
    assert {c.services for c in contents} == {frozenset({"classify"}), frozenset({"detect"})}


def test_a_group_left_by_a_tenant_answers_sooner(make) -> None:
    problem = two_services(make).problem()
    shared = next(c for c in problem.contents["l4"] if len(c.tenants) == 2)
    alone = reduced(problem, shared, frozenset({"classify"}))
    assert [(t.service, t.response_ms) for t in alone.tenants] == [("classify", 20.0)]


def test_too_many_contents_lower_the_number_of_tenants_and_say_so(make) -> None:
    problem = two_services(make, rules=PlanningRules(max_contents=2)).problem()
    assert max(len(c.tenants) for c in problem.contents["l4"]) == 1
    assert "groups hold at most 1 service(s)" in problem.notes[0]


def test_the_largest_part_of_time_scales_the_rate(make) -> None:
    problem = make.edge(rules=PlanningRules(max_utilization=0.8)).problem()
    assert problem.contents["l4"][0].tenants[0].work_per_s == pytest.approx(80.0)


@pytest.mark.parametrize(
    ("batch", "offered", "fills"), [(1, 0.2, True), (2, 1.0, False), (2, 1.5, True), (4, 3.0, False)]
)
def test_a_batch_of_frames_needs_as_many_streams(make, batch: int, offered: float, fills: bool) -> None:
    assert fills_batch(make.stream("lanes"), ParallelConfig(batch=batch), offered) is fills
    assert fills_batch(make.latency("classify"), ParallelConfig(batch=batch), offered)


def test_one_stream_is_batched_over_frames_not_over_streams(make) -> None:
    rows = [make.row("lanes", batch=b, latency_ms=ms) for b, ms in ((1, 90.0), (2, 95.0))]
    service = make.stream("lanes", frame_deadline_ms=500.0)
    demand = [make.offer("lanes", "a", 1.0, streams=True)]
    problem = make.edge(services=[service], rows=rows, demand=demand).problem()
    useful = [c.tenants[0].config for c in problem.contents["l4"] if problem.useful_at(c, "a")]
    assert {(c.batch, c.frames) for c in useful} == {(1, 2)}


def test_cold_start_earns_in_full_and_later_loading_costs_its_time(make) -> None:
    cold = make.edge().problem()
    warm = replace(cold, residents=(resident(),))
    tenant = cold.contents["l4"][0].tenants[0]  # loads 6 s of a 30 s cycle
    assert cold.earning_share(tenant, None) == 1.0
    assert warm.earning_share(tenant, None) == pytest.approx(0.98)
    assert warm.earning_share(tenant, warm.residents[0]) == 1.0


def test_a_model_that_loads_for_longer_than_the_horizon_still_earns_a_little(make) -> None:
    rows = [make.row("classify", latency_ms=10.0, load_s=900.0)]
    problem = replace(make.edge(rows=rows).problem(), residents=(resident(),))
    assert problem.earning_share(problem.contents["l4"][0].tenants[0], None) == MIN_EARNING


def test_servers_that_are_down_host_nothing_and_offer_nothing(make) -> None:
    demand = [make.offer("classify", "a", 1.0), make.offer("classify", "b", 1.0)]
    problem = make.edge(demand=demand).problem(down=frozenset({"a"}))
    assert [(d.origin, d.offered) for d in problem.demand] == [("b", 1.0)]
    assert {e.server for e in problem.edges} == {"b"}


def test_every_reason_is_given_why_a_service_fits_nowhere(make) -> None:
    rows = [make.row("classify", latency_ms=10.0, memory_bytes=30 * GIB)]
    assert make.edge(rows=rows).problem().misfits["classify"] == ("no_memory: needs 30.00 GiB per l4, which has 22.00",)
    assert make.edge(rows=[]).problem().misfits["classify"] == ("no_profile: classify was never measured on l4",)
    slow = [make.row("classify", latency_ms=80.0)]
    assert make.edge(rows=slow).problem().misfits["classify"] == (
        "no_route_in_time: l4 answers in 160 ms at best, deadline 100 ms",
    )


def test_empty_demand_is_a_problem_with_nothing_in_it(make) -> None:
    problem = make.edge(demand=[]).problem()
    assert (problem.demand, problem.edges) == ((), ())


def test_forecasts_for_unknown_services_or_origins_are_refused(make) -> None:
    unknown = [make.offer("classify", "z", 1.0), make.offer("zebra", "a", 1.0)]
    with pytest.raises(InputError) as caught:
        make.edge().problem(demand=unknown)
    assert len(caught.value.violations) == 2


def test_the_digest_follows_inputs_and_not_the_plan_in_force(make) -> None:
    problem = make.edge().problem()
    assert replace(problem, residents=(resident(),)).digest == problem.digest
    assert make.edge(demand=[make.offer("classify", "a", 151.0)]).problem().digest != problem.digest
    assert make.edge(rules=PlanningRules(horizon_s=31.0)).problem().digest != problem.digest


def test_an_edge_made_in_code_has_a_digest_of_its_content(make) -> None:
    edges = [make.edge(rtt_ms=ms) for ms in (10.0, 11.0)]
    digests = {
        build_problem(replace(e.topology, digest=""), e.catalogue, rules=e.rules).digest for e in (*edges, edges[0])
    }
    assert len(digests) == 2


def plan_in_force(problem: PlacementProblem) -> Plan:
    """classify on both l4 of a and on the one of b."""
    content = problem.contents["l4"][0]
    edges = {e.server: e for e in problem.edges}
    placement = Placement(
        groups=tuple(PlacedGroup(server=s, content=content) for s in ("a", "a", "b")),
        flows=tuple(Flow(edge=edges[s], group=i, rate=50.0) for i, s in enumerate(("a", "a", "b"))),
    )
    return assemble(
        problem,
        placement,
        generation=1,
        solver="hand",
        stop=Stop.HEURISTIC,
        dual_bound=None,
        wall_s=0.0,
        unserved=(),
    )


def test_groups_in_force_are_residents_where_their_servers_and_devices_still_stand(make) -> None:
    plan = plan_in_force(make.edge().problem())
    standing = make.edge().problem(in_force=plan).residents
    assert [(r.group, r.devices) for r in standing] == [("a/l4/0/1", (0,)), ("a/l4/1/1", (1,)), ("b/l4/0/1", (0,))]
    down = make.edge().problem(in_force=plan, down=frozenset({"a"})).residents
    assert [r.group for r in down] == ["b/l4/0/1"]
    shrunk = make.edge(l4_at_a=1).problem(in_force=plan).residents
    assert [r.group for r in shrunk] == ["a/l4/0/1", "b/l4/0/1"]


@pytest.mark.parametrize(
    ("rule", "value", "law"),
    [
        ("max_utilization", 0.0, r"in \(0, 1\]"),
        ("on_time_target", 0.85, r"in \[0.9, 0.99\]"),
        ("on_time_target", 0.999, r"in \[0.9, 0.99\]"),
        ("max_tenants", 0, ">= 1"),
        ("horizon_s", 0.0, "a finite number > 0"),
        ("max_moves", -1, ">= 0"),
    ],
)
def test_rules_are_checked_at_birth(rule: str, value: float, law: str) -> None:
    with pytest.raises(InputError, match=f"rules.{rule}: expected {law}, got {value}"):
        PlanningRules(**{rule: value})


def test_room_beside_what_runs_is_not_known_for_chains() -> None:
    with pytest.raises(InputError, match=r"rules\.make_before_break: expected false with across_servers"):
        PlanningRules(make_before_break=True, across_servers=True)


def test_every_edge_is_found_by_its_names_and_nothing_else_is(make) -> None:
    services = [make.latency("classify"), make.latency("detect", slo_ms=5.0)]  # b is too far for detect
    rows = [make.row("classify", latency_ms=10.0), make.row("detect", latency_ms=1.0)]
    demand = [make.offer(s, o, 5.0) for s in ("detect", "classify") for o in ("b", "a")]
    problem = make.edge(services=services, rows=rows, demand=demand).problem()
    names = {(e.service, e.origin, e.server) for e in problem.edges}
    assert len(names) == 6
    for service in ("classify", "detect", "zebra"):
        for origin in ("a", "b", "z"):
            for server in ("a", "b", "z"):
                found = problem.table.find(service, origin, server)
                assert (found >= 0) == ((service, origin, server) in names)
                if found >= 0:
                    e = problem.table.edge(found)
                    assert (e.service, e.origin, e.server) == (service, origin, server)
    assert [e.server for e in problem.table.of_demand(1)] == ["a"]
    assert [(e.service, e.server) for e in problem.table.of_demand(2)] == [("classify", "a"), ("classify", "b")]


def test_without_demand_or_reach_a_problem_is_empty_and_valid(make) -> None:
    edge = make.edge()
    for problem in (edge.problem(demand=()), edge.problem(down=frozenset({"a", "b"}))):
        assert (len(problem.table), problem.edges, problem.table.find("classify", "a", "a")) == (0, (), -1)
    lonely = make.edge(l4_at_a=0, rtt_ms=101.0).problem()  # its only devices are beyond every deadline
    assert (len(lonely.table), lonely.contents["l4"], lonely.table.of_demand(0)) == (0, (), [])
