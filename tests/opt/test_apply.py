"""Applying plans as transactions, against executors in memory that keep the laws."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from epara_opt.control.apply import Applied, apply
from epara_opt.control.deploy import fetch_specs
from epara_opt.control.fake_planner import FirstFitPlanner, small_edge
from epara_opt.control.fakes import FakeClock, FakeFleet
from epara_opt.control.ports import Fence, FetchSpec, GroupSpec
from epara_opt.control.transaction import PartlyApplied, Progress
from epara_opt.control.transition import stages
from epara_opt.domain.service import Demand
from epara_opt.errors import ExecutorRefused, ExecutorUnreachable, FleetError, InputError, ModelsOnTheWay, StaleFence
from epara_opt.plan import ActionKind, Plan
from epara_opt.problem import build_problem

TOPOLOGY, CATALOGUE = small_edge()


def planned(generation: int, *demand: tuple[str, str, float], in_force: Plan | None = None) -> Plan:
    offered = [Demand(service=s, origin=o, offered=r, is_streams=s == "seg") for s, o, r in demand]
    problem = build_problem(TOPOLOGY, CATALOGUE, demand=offered, in_force=in_force)
    return FirstFitPlanner().plan(problem, generation=generation, time_limit_s=1.0, in_force=in_force)


FIRST = planned(1, ("label", "a", 40.0), ("label", "b", 20.0), ("label", "c", 100.0))
BESIDE = planned(2, ("label", "a", 40.0), ("label", "b", 20.0), ("seg", "b", 1.0), in_force=FIRST)
INSTEAD = planned(2, ("seg", "c", 1.0), ("seg", "a", 9.0), ("label", "b", 30.0), in_force=FIRST)


def fence(generation: int, epoch: int = 1) -> Fence:
    return Fence(epoch=epoch, generation=generation)


def fleet_with(plan: Plan | None) -> FakeFleet:
    fleet = FakeFleet(TOPOLOGY, CATALOGUE)
    if plan is not None:
        apply(plan, None, TOPOLOGY, CATALOGUE, fleet, fence(plan.generation), max_parallel=1)
        fleet.calls.clear()
    return fleet


def serving(fleet: FakeFleet) -> dict[str, object]:
    """What every executor serves: live groups and routes, and what it holds loaded."""
    return {
        name: (e.committed.groups, e.committed.routes, e.committed.peers, {g: sorted(t) for g, t in e.loaded.items()})
        if e.committed
        else (sorted(e.loaded),)
        for name, e in fleet.executors.items()
    }


def replicas_live(fleet: FakeFleet) -> set[str]:
    return {i for e in fleet.executors.values() for i in e.live()}


@pytest.mark.parametrize("after", [BESIDE, INSTEAD], ids=["beside", "instead"])
def test_after_apply_exactly_the_plan_runs_and_no_law_was_broken(after: Plan) -> None:
    fleet = fleet_with(FIRST)
    result = apply(after, FIRST, TOPOLOGY, CATALOGUE, fleet, fence(2))
    assert result.changed
    assert not result.leftovers
    assert replicas_live(fleet) == {r.id for r in after.replicas}
    assert {g for e in fleet.executors.values() for g in e.loaded} == {r.group for r in after.replicas}
    assert fleet.broken_laws == []


def test_applying_the_plan_in_force_again_calls_nobody() -> None:
    fleet = fleet_with(FIRST)
    assert not apply(FIRST, FIRST, TOPOLOGY, CATALOGUE, fleet, fence(1)).changed
    assert fleet.calls == []


def test_the_cases_below_are_what_they_are_called() -> None:
    assert stages(FIRST, BESIDE, TOPOLOGY, CATALOGUE)[0].kind is ActionKind.PREPARE
    assert len(stages(FIRST, BESIDE, TOPOLOGY, CATALOGUE)) == 3
    assert len(stages(FIRST, INSTEAD, TOPOLOGY, CATALOGUE)) == 6


def attempt(fleet: FakeFleet, before: Plan | None, after: Plan) -> tuple[FleetError | None, Applied | None]:
    try:
        return None, apply(after, before, TOPOLOGY, CATALOGUE, fleet, fence(2), max_parallel=1)
    except FleetError as e:
        return e, None


def calls_of(before: Plan | None, after: Plan) -> int:
    fleet = fleet_with(before)
    apply(after, before, TOPOLOGY, CATALOGUE, fleet, fence(2), max_parallel=1)
    return len(fleet.calls)


CASES: list[tuple[Plan | None, Plan]] = [(None, replace(FIRST, generation=2)), (FIRST, BESIDE), (FIRST, INSTEAD)]
FAULTS: list[Callable[[str], FleetError]] = [
    lambda s: ExecutorRefused(s, "out of memory"),
    lambda s: ExecutorUnreachable(s, "deadline"),
]


@pytest.mark.parametrize("case", range(len(CASES)), ids=["first", "beside", "instead"])
def test_a_failure_at_any_call_leaves_the_old_plan_or_the_new_one_and_nothing_between(case: int) -> None:
    before, after = CASES[case]
    for k in range(calls_of(before, after)):
        for fault in FAULTS:
            fleet = fleet_with(before)
            untouched = replicas_live(fleet)
            fleet.fail_at(k, fault)
            error, result = attempt(fleet, before, after)
            if error is not None:
                assert not isinstance(error, PartlyApplied), k
                assert replicas_live(fleet) == untouched, k
                old_groups = {r.group for r in before.replicas} if before else set[str]()
                assert {g for e in fleet.executors.values() for g in e.loaded} == old_groups, k
            else:
                assert result is not None
                assert result.leftovers, k
                assert {r.id for r in after.replicas} <= replicas_live(fleet), k
            assert fleet.broken_laws == [], k


@pytest.mark.parametrize("case", range(len(CASES)), ids=["first", "beside", "instead"])
def test_a_server_that_dies_at_any_call_is_named_and_the_others_serve_one_plan(case: int) -> None:
    before, after = CASES[case]
    for k in range(calls_of(before, after)):
        fleet = fleet_with(before)
        died: list[str] = []

        def die(server: str, fleet: FakeFleet = fleet, died: list[str] = died) -> None:
            died.append(server)
            fleet.crash(server)

        fleet.fail_at(k, die)
        error, _ = attempt(fleet, before, after)
        goal = after if error is None else error.in_force if isinstance(error, PartlyApplied) else before
        assert error is None or died[0] in str(error)
        standing = {n for n, e in fleet.executors.items() if e.up}
        want = {r.id for r in goal.replicas if r.server in standing} if goal else set[str]()
        assert replicas_live(fleet) >= want, k
        assert fleet.broken_laws == [], k


def test_a_newer_planner_stops_this_one_and_keeps_what_it_did() -> None:
    fleet = fleet_with(FIRST)
    fleet.executors["b"].fence = (7, 1)
    with pytest.raises(StaleFence, match="epoch 7"):
        apply(BESIDE, FIRST, TOPOLOGY, CATALOGUE, fleet, fence(2), max_parallel=1)
    assert fleet.broken_laws == []


def test_an_executor_down_at_apply_is_named_and_nothing_changes() -> None:
    fleet = fleet_with(FIRST)
    before = serving(fleet)
    fleet.crash("b")
    with pytest.raises(ExecutorUnreachable, match="executor of b did not answer"):
        apply(BESIDE, FIRST, TOPOLOGY, CATALOGUE, fleet, fence(2))
    assert serving(fleet) == before


def test_a_plan_for_another_topology_is_refused_before_anybody_is_called() -> None:
    fleet = fleet_with(None)
    foreign = replace(
        FIRST, topology="elsewhere", replicas=(replace(FIRST.replicas[0], server="mars"), *FIRST.replicas[1:])
    )
    with pytest.raises(InputError) as e:
        apply(foreign, None, TOPOLOGY, CATALOGUE, fleet, fence(1))
    assert [v.path.split(".")[1] for v in e.value.violations] == ["topology", "replicas"]
    with pytest.raises(InputError, match="inputs_digest: expected 0123"):
        apply(FIRST, None, TOPOLOGY, CATALOGUE, fleet, fence(1), expected_digest="0123")
    assert fleet.calls == []


def test_a_device_that_does_not_exist_is_refused() -> None:
    odd = replace(FIRST, replicas=(replace(FIRST.replicas[0], devices=(5,)), *FIRST.replicas[1:]))
    with pytest.raises(InputError, match=r"devices: expected devices of \w, which has \d"):
        apply(odd, None, TOPOLOGY, CATALOGUE, fleet_with(None), fence(1))


def test_an_older_plan_is_stale() -> None:
    with pytest.raises(StaleFence, match="generation 1 is older than 2"):
        apply(FIRST, BESIDE, TOPOLOGY, CATALOGUE, fleet_with(None), fence(1))


def test_models_are_fetched_before_anything_else_and_while_they_come_nothing_is_touched() -> None:
    fleet = fleet_with(FIRST)
    before = serving(fleet)
    fleet.missing["b", "models/seg"] = 1
    with pytest.raises(ModelsOnTheWay, match="executor of b is still fetching: models/seg"):
        apply(BESIDE, FIRST, TOPOLOGY, CATALOGUE, fleet, fence(2), max_parallel=1)
    assert {c[0] for c in fleet.calls} == {"fetch"}
    assert serving(fleet) == before
    fleet.calls.clear()
    apply(BESIDE, FIRST, TOPOLOGY, CATALOGUE, fleet, fence(3), max_parallel=1)
    kinds = [c[0] for c in fleet.calls]
    assert "fetch" in kinds
    assert "fetch" not in kinds[kinds.index("prepare") :]
    assert replicas_live(fleet) == {r.id for r in BESIDE.replicas}


def test_only_models_that_come_to_a_server_are_fetched() -> None:
    fleet = fleet_with(FIRST)
    apply(BESIDE, FIRST, TOPOLOGY, CATALOGUE, fleet, fence(2), max_parallel=1)
    here = {(r.server, TOPOLOGY.services[r.service].model.source) for r in FIRST.replicas}
    asked = {(server, source) for kind, server, what in fleet.calls if kind == "fetch" for source in what}
    assert asked
    assert not asked & here


def test_time_for_fetching_is_not_taken_from_the_change() -> None:
    class Slow(FakeFleet):
        def fetch(
            self, address: str, models: tuple[FetchSpec, ...], fence: Fence, *, server: str, deadline_s: float
        ) -> None:
            super().fetch(address, models, fence, server=server, deadline_s=deadline_s)
            clock.advance(1000.0)
            given["fetch"] = deadline_s

        def prepare(self, address: str, groups: tuple[GroupSpec, ...], fence: Fence, *, deadline_s: float) -> None:
            super().prepare(address, groups, fence, deadline_s=deadline_s)
            given["prepare"] = deadline_s

    clock, given = FakeClock(), dict[str, float]()
    fleet = Slow(TOPOLOGY, CATALOGUE)
    done = apply(
        FIRST, None, TOPOLOGY, CATALOGUE, fleet, fence(1), deadline_s=5.0, fetch_deadline_s=5000.0, max_parallel=1,
        monotonic=clock.monotonic,
    )  # fmt: skip
    assert given["prepare"] == 5.0
    assert given["fetch"] > 5.0
    assert done.fetch_s >= 1000.0
    assert done.wall_s == 0.0


def test_holders_are_hosts_first_and_nearest_first_and_none_that_is_down() -> None:
    (spec,) = fetch_specs("c", [r for r in FIRST.replicas if r.service == "label"], FIRST.replicas, TOPOLOGY)
    hosts = {r.server for r in FIRST.replicas if r.service == "label"} - {"c"}
    assert spec.source == "models/label"
    names = [h.server for h in spec.holders]
    assert set(names) == {"a", "b"}
    assert set(names[: len(hosts)]) == hosts
    rtt = {n: path.rtt_ms for n in names if (path := TOPOLOGY.path("c", n))}
    assert sorted(names[: len(hosts)], key=lambda n: rtt[n]) == names[: len(hosts)]
    assert {h.address for h in spec.holders} == {TOPOLOGY.servers[n].address for n in names}
    (spec,) = fetch_specs("c", FIRST.replicas[:1], (), TOPOLOGY, down=frozenset({"a"}))
    assert [h.server for h in spec.holders] == ["b"]


def test_progress_tells_every_call_begun_and_done() -> None:
    seen: list[Progress] = []
    fleet = fleet_with(None)
    apply(FIRST, None, TOPOLOGY, CATALOGUE, fleet, fence(1), on_progress=seen.append, max_parallel=1)
    assert len(seen) == 2 * len(fleet.calls)
    assert [p.done for p in seen[:2]] == [False, True]
    assert {p.num_stages for p in seen} == {2}
