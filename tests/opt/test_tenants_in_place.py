"""Tenants that come to and leave running groups: stages, transactions and taking back, against executors in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random

import pytest

from epara_opt.busy import BusyTime
from epara_opt.control.apply import apply
from epara_opt.control.fake_planner import small_edge
from epara_opt.control.fakes import FakeFleet
from epara_opt.control.ports import Fence
from epara_opt.control.regroup import regrouped
from epara_opt.control.reroute import complete
from epara_opt.control.routing import RouteBook
from epara_opt.control.running import addresses, reconcile
from epara_opt.control.transaction import PartlyApplied
from epara_opt.control.transition import Stage, stages
from epara_opt.domain.profile import ProfileCatalogue, ProfileRow
from epara_opt.domain.service import Demand
from epara_opt.errors import ExecutorRefused, ExecutorUnreachable, FleetError
from epara_opt.plan import ActionKind, Plan, Replica
from epara_opt.problem import build_problem
from epara_opt.units import GIB

_SMALL, _ = small_edge()
_LABEL = _SMALL.services["label"]
MEMORY_GIB = {"label": 1, "spot": 1, "read": 2}  # and 3 GiB per device
TOPOLOGY = replace(
    _SMALL,
    device_types={"gpu": replace(_SMALL.device_types["gpu"], memory_bytes=3 * GIB)},
    services={n: replace(_LABEL, name=n, model=replace(_LABEL.model, source=f"models/{n}")) for n in MEMORY_GIB},
    demand=(),
)
CATALOGUE = ProfileCatalogue.from_rows(
    ProfileRow(
        model=f"models/{name}",
        device_type="gpu",
        tp=tp,
        batch=1,
        latency_ms=10.0 / tp,
        memory_bytes=gib * GIB // tp,
        load_s=3.0,
        source="by hand",
    )
    for name, gib in MEMORY_GIB.items()
    for tp in (1, 2)
)
PROBLEM = build_problem(
    TOPOLOGY,
    CATALOGUE,
    demand=[Demand(service=s, origin=o, offered=10.0) for s in MEMORY_GIB for o in ("a", "b", "c")],
)
G, H = "c/gpu/0/1", "b/gpu/0/1"


def planned(generation: int, groups: Mapping[str, Sequence[str]], *, tp: int = 1) -> Plan:
    """A plan of these groups (id: services); the id says server and devices."""
    replicas: list[Replica] = []
    for group, services in groups.items():
        server, _, devices, _ = group.split("/")
        replicas.extend(
            Replica(
                id=f"{service}@{group}",
                service=service,
                group=group,
                server=server,
                device_type="gpu",
                devices=tuple(map(int, devices.split("+"))),
                tp=tp,
                pp=1,
                batch=1,
                frames=1,
                share=1.0 / len(services),
                capacity=50.0,
                response_ms=20.0 * len(services),
                memory_bytes=MEMORY_GIB[service] * GIB // tp,
                load_s=0.0,
            )
            for service in services
        )
    book = RouteBook(replicas, TOPOLOGY, CATALOGUE, busy=BusyTime(max_utilization=1.0))
    book.fill(PROBLEM.offered)
    return complete(PROBLEM, book, generation=generation, solver="by hand")


def running(plan: Plan | None) -> FakeFleet:
    fleet = FakeFleet(TOPOLOGY, CATALOGUE)
    if plan is not None:
        bring(fleet, plan, None)
        fleet.calls.clear()
    return fleet


def bring(fleet: FakeFleet, plan: Plan, before: Plan | None) -> None:
    fence = Fence(epoch=1, generation=plan.generation)
    apply(plan, before, TOPOLOGY, CATALOGUE, fleet, fence, max_parallel=1)


def attempt(fleet: FakeFleet, plan: Plan, before: Plan | None) -> tuple[FleetError | None, Mapping[str, str]]:
    """What was raised, and leftovers."""
    fence = Fence(epoch=1, generation=plan.generation)
    try:
        return None, apply(plan, before, TOPOLOGY, CATALOGUE, fleet, fence, max_parallel=1).leftovers
    except FleetError as e:
        return e, {}


def loaded(fleet: FakeFleet) -> set[str]:
    return {t.replica for e in fleet.executors.values() if e.up for ts in e.loaded.values() for t in ts.values()}


def live(fleet: FakeFleet) -> set[str]:
    return {i for e in fleet.executors.values() for i in e.live()}


def ids(plan: Plan) -> set[str]:
    return {r.id for r in plan.replicas}


def told(made: Sequence[Stage]) -> list[tuple[ActionKind, tuple[str, ...]]]:
    return [(s.kind, tuple(g for gs in s.groups.values() for g in gs)) for s in made]


def test_a_tenant_that_fits_is_prepared_in_its_group_and_one_that_leaves_goes_with_the_commit() -> None:
    one, two = planned(1, {G: ["label"]}), planned(2, {G: ["label", "spot"]})
    assert told(stages(one, two, TOPOLOGY, CATALOGUE)) == [(ActionKind.PREPARE, (G,)), (ActionKind.COMMIT, ())]
    assert told(stages(two, one, TOPOLOGY, CATALOGUE)) == [(ActionKind.COMMIT, ())]
    fleet = running(one)
    bring(fleet, two, one)
    assert loaded(fleet) == live(fleet) == ids(two)
    bring(fleet, replace(one, generation=3), two)
    assert loaded(fleet) == live(fleet) == ids(one)
    assert [c for c in fleet.calls if c[0] == "retire"] == []
    assert fleet.broken_laws == []


def test_on_a_full_device_who_leaves_makes_room_for_who_comes_while_the_third_serves_on() -> None:
    one, two = planned(1, {G: ["label", "spot"], H: ["spot"]}), planned(2, {G: ["label", "read"], H: ["spot"]})
    way = stages(one, two, TOPOLOGY, CATALOGUE)
    assert told(way) == [(ActionKind.COMMIT, ()), (ActionKind.PREPARE, (G,)), (ActionKind.COMMIT, ())]
    assert ids(way[0].target) == {f"label@{G}", f"spot@{H}"}
    assert {x.replica for x in way[0].target.routes if x.service == "spot"} == {f"spot@{H}"}
    fleet = running(one)
    bring(fleet, two, one)
    assert loaded(fleet) == live(fleet) == ids(two)


CHANGES = {
    "comes": (planned(1, {G: ["label"], H: ["label"]}), planned(2, {G: ["label", "spot"], H: ["label", "spot"]})),
    "leaves": (planned(1, {G: ["label", "spot"], H: ["spot"]}), planned(2, {G: ["label"], H: ["spot"]})),
    "replaced": (
        planned(1, {G: ["label", "spot"], H: ["label", "spot"]}),
        planned(2, {G: ["label", "read"], H: ["read", "spot"]}),
    ),
    "in and beside": (
        planned(1, {G: ["label"], H: ["spot"]}),
        planned(2, {G: ["label", "spot"], "a/gpu/1/2": ["read"]}),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("fault", [ExecutorRefused, ExecutorUnreachable])
def test_after_a_failure_at_any_call_exactly_one_plan_is_live_and_nobody_else_is_loaded(
    change: str, fault: type[ExecutorRefused | ExecutorUnreachable]
) -> None:
    before, after = CHANGES[change]
    calls = running(before)
    bring(calls, after, before)
    for k in range(len(calls.calls)):
        fleet = running(before)
        fleet.fail_at(k, lambda server: fault(server, "scripted"))
        error, _ = attempt(fleet, after, before)
        assert not isinstance(error, PartlyApplied), k
        if error is not None:
            assert live(fleet) == loaded(fleet) == ids(before), k
        else:
            assert ids(after) <= live(fleet), k
        assert fleet.broken_laws == [], k


def test_an_addition_that_cannot_be_taken_back_leaves_its_server_to_be_told_again() -> None:
    before, after = CHANGES["comes"]
    fleet = running(before)
    fleet.fail_at(3, lambda s: ExecutorRefused(s, "out of memory"))
    fleet.fail_at(4, lambda s: ExecutorUnreachable(s, "deadline"))
    with pytest.raises(PartlyApplied) as caught:
        bring(fleet, after, before)
    assert caught.value.in_force == before
    assert set(caught.value.left) == {"b"}


def test_what_a_planner_that_died_had_prepared_is_found_and_its_server_told_again() -> None:
    before, after = CHANGES["comes"]
    fleet = running(before)

    class Died(BaseException):
        pass

    def die(server: str) -> FleetError | None:
        raise Died

    fleet.fail_at(3, die)
    with pytest.raises(Died):
        bring(fleet, after, before)
    found = reconcile(before, fleet.observe(addresses(TOPOLOGY), with_plan=True), TOPOLOGY)
    assert found.stale == {"b"}
    assert found.strays == {}
    assert found.plan is not None
    again = replace(found.plan, generation=3)
    stale = frozenset(found.stale)
    apply(again, found.plan, TOPOLOGY, CATALOGUE, fleet, Fence(epoch=2, generation=3), stale=stale, max_parallel=1)
    assert loaded(fleet) == ids(before)


def random_groups(rng: Random, before: Plan | None, generation: int) -> dict[str, list[str]]:
    """Some company for every device that fits; a group keeps its id if somebody stays, as planners have it."""
    kept = {(r.server, r.devices): r.group for r in before.replicas} if before else {}
    stood = {(r.group, r.service) for r in before.replicas} if before else set[tuple[str, str]]()
    groups: dict[str, list[str]] = {}
    for server, count in (("a", 2), ("b", 1), ("c", 1)):
        for device in range(count):
            services = [s for s in sorted(MEMORY_GIB) if rng.random() < 0.5]
            while sum(MEMORY_GIB[s] for s in services) > 3:
                services.remove(rng.choice(services))
            group = kept.get((server, (device,)), "")
            if not any((group, s) in stood for s in services):
                group = f"{server}/gpu/{device}/{generation}"
            if services:
                groups[group] = services
    return groups


@pytest.mark.parametrize("seed", range(10))
def test_random_histories_of_tenants_need_no_luck_and_failures_leave_one_plan(seed: int) -> None:
    rng = Random(seed)
    fleet = running(None)
    before: Plan | None = None
    for generation in range(1, 30):
        plan = planned(generation, random_groups(rng, before, generation))
        faulty = rng.random() < 0.5
        if faulty:
            fault = rng.choice([ExecutorRefused, ExecutorUnreachable])
            fleet.fail_at(rng.randrange(12), lambda server, fault=fault: fault(server, "scripted"))
        error, leftovers = attempt(fleet, plan, before)
        assert error is None or (faulty and not isinstance(error, PartlyApplied))
        if error is None:
            before = plan
        fleet._faults.clear()  # pyright: ignore[reportPrivateUsage]
        if leftovers and before is not None:  # the next cycle tells those servers again
            fence = Fence(epoch=1, generation=generation)
            again = replace(before, generation=generation)
            apply(again, before, TOPOLOGY, CATALOGUE, fleet, fence, stale=frozenset(leftovers), max_parallel=1)
            for server in leftovers:
                strays = set(fleet.executors[server].loaded) - {r.group for r in before.replicas}
                fleet.retire(TOPOLOGY.servers[server].address or "", tuple(strays), fence, deadline_s=1.0)
        if before is not None:
            assert live(fleet) == loaded(fleet) == ids(before)
        assert fleet.broken_laws == []


def test_one_device_groups_keep_their_ids_and_loads_when_planned_anew() -> None:
    one, two = planned(1, {G: ["label"]}), planned(2, {G: ["label", "spot"]})
    assert regrouped(two, one, PROBLEM) is two


def test_a_group_of_several_ranks_gets_a_new_id_for_newcomers_and_keeps_it_for_leavers() -> None:
    pair = "a/gpu/0+1/1"
    one, two = planned(1, {pair: ["label"]}, tp=2), planned(2, {pair: ["label", "spot"]}, tp=2)
    problem = build_problem(TOPOLOGY, CATALOGUE, demand=PROBLEM.demand, in_force=one)
    anew = regrouped(two, one, problem)
    assert {r.group for r in anew.replicas} == {"a/gpu/0+1/2"}
    assert {r.load_s for r in anew.replicas} == {3.0}
    assert anew.objective < two.objective
    assert regrouped(replace(one, generation=3), two, problem).replicas == one.replicas


def test_a_group_that_changes_its_shape_gets_a_new_id() -> None:
    one, two = planned(1, {"a/gpu/0+1/1": ["label"]}, tp=2), planned(2, {"a/gpu/0/1": ["label"]})
    two = replace(two, replicas=tuple(replace(r, group="a/gpu/0+1/1") for r in two.replicas))
    problem = build_problem(TOPOLOGY, CATALOGUE, demand=PROBLEM.demand, in_force=one)
    assert {r.group for r in regrouped(two, one, problem).replicas} == {"a/gpu/0/2"}
