"""From plan to what executors are told."""

from dataclasses import replace

import pytest

from epara_opt.control.deploy import commit_specs, group_specs
from epara_opt.control.fake_planner import FirstFitPlanner, small_edge
from epara_opt.domain.topology import Topology
from epara_opt.errors import InputError
from epara_opt.plan import Plan
from epara_opt.problem import build_problem

TOPOLOGY, CATALOGUE = small_edge()


@pytest.fixture
def plan() -> Plan:
    return FirstFitPlanner().plan(build_problem(TOPOLOGY, CATALOGUE), generation=1, time_limit_s=1.0)


def test_rates_and_capacities_are_in_frames_per_second_for_streams(plan: Plan) -> None:
    specs = commit_specs(plan, TOPOLOGY, CATALOGUE)
    (route,) = specs["c"].routes
    assert route.rate_per_s == pytest.approx(1.0 * 10.0)  # one stream of 10 fps
    (tenant,) = specs["c"].groups[0].tenants
    items = tenant.batch * tenant.frames
    assert tenant.work_per_s == pytest.approx(items * 1000.0 / {1: 20, 2: 34, 4: 60}[items])  # at full share
    assert (tenant.fps, tenant.deadline_ms) == (10.0, 250.0)


def test_routes_belong_to_their_origin_and_carry_the_host_s_address(plan: Plan) -> None:
    specs = commit_specs(plan, TOPOLOGY, CATALOGUE)
    (route,) = specs["b"].routes
    assert (route.server, route.address, route.rate_per_s) == ("a", "a.edge:7100", 20.0)
    assert route.network_ms == pytest.approx(4.0 + 1000 * 10_100 / 1e8)


def test_every_other_host_of_a_service_is_a_peer_with_its_network_time(plan: Plan) -> None:
    specs = commit_specs(plan, TOPOLOGY, CATALOGUE, servers=TOPOLOGY.servers)
    assert [(p.service, p.server) for p in specs["b"].peers] == [("label", "a"), ("seg", "c")]
    assert [(p.service, p.server) for p in specs["a"].peers] == [("seg", "c")]
    assert specs["a"].peers[0].network_ms == pytest.approx(10.0 + 1000 * 11_000 / 1e8)


def test_groups_are_those_of_the_server_only(plan: Plan) -> None:
    assert [g.group for g in group_specs(plan.replicas, TOPOLOGY, CATALOGUE, server="a")] == ["a/gpu/0/1"]
    assert group_specs(plan.replicas, TOPOLOGY, CATALOGUE, server="b") == ()


def test_the_plan_travels_with_the_commit(plan: Plan) -> None:
    assert Plan.from_json(commit_specs(plan, TOPOLOGY, CATALOGUE)["a"].plan_json) == plan


def test_a_server_without_address_is_named(plan: Plan) -> None:
    servers = {**TOPOLOGY.servers, "b": replace(TOPOLOGY.servers["b"], address=None)}
    topology: Topology = replace(TOPOLOGY, servers=servers)
    with pytest.raises(InputError, match=r"servers\.b\.address: expected host:port"):
        commit_specs(plan, topology, CATALOGUE)


def test_a_replica_without_profile_is_named(plan: Plan) -> None:
    odd = replace(plan, replicas=(replace(plan.replicas[0], tp=2, devices=(0, 1)),))
    with pytest.raises(InputError, match=r"label@a.*expected a profile of models/label on gpu, got none for tp2 pp1"):
        group_specs(odd.replicas, TOPOLOGY, CATALOGUE)


def test_a_route_says_how_many_frames_its_replica_batches(plan: Plan) -> None:
    replicas = {r.id: r for r in plan.replicas}
    for spec in commit_specs(plan, TOPOLOGY, CATALOGUE).values():
        assert all(r.frames == replicas[r.replica].frames for r in spec.routes)
    batched = replace(plan, replicas=tuple(replace(r, frames=2, batch=1) for r in plan.replicas))
    assert {r.frames for s in commit_specs(batched, TOPOLOGY, CATALOGUE).values() for r in s.routes} == {2}


def test_a_group_says_what_part_of_a_gpu_its_device_is(plan: Plan) -> None:
    halves = {name: replace(t, parts=2) for name, t in TOPOLOGY.device_types.items()}
    specs = commit_specs(plan, replace(TOPOLOGY, device_types=halves), CATALOGUE)
    assert {g.parts for s in specs.values() for g in s.groups} == {2}
    assert {g.parts for s in commit_specs(plan, TOPOLOGY, CATALOGUE).values() for g in s.groups} == {1}
