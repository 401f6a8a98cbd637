"""Batches that grow and shrink in place: no device is overfilled on the way, by executors in memory that count."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from epara_opt.busy import BusyTime
from epara_opt.control.apply import apply
from epara_opt.control.fake_planner import small_edge
from epara_opt.control.fakes import FakeFleet
from epara_opt.control.ports import Fence
from epara_opt.control.reroute import complete
from epara_opt.control.routing import RouteBook
from epara_opt.control.transaction import PartlyApplied
from epara_opt.control.transition import stages
from epara_opt.domain.profile import ProfileCatalogue, ProfileRow
from epara_opt.domain.service import Demand
from epara_opt.errors import ExecutorRefused, FleetError
from epara_opt.plan import ActionKind, Plan, Replica
from epara_opt.problem import build_problem
from epara_opt.units import GIB

_SMALL, _ = small_edge()
_LABEL = _SMALL.services["label"]
SERVICES = ("label", "read", "spot")
DEVICE_GIB = 6
BATCHES = {1: 1, 2: 2, 4: 4}  # batch: GiB of any service
TOPOLOGY = replace(
    _SMALL,
    device_types={"gpu": replace(_SMALL.device_types["gpu"], memory_bytes=DEVICE_GIB * GIB)},
    services={n: replace(_LABEL, name=n, model=replace(_LABEL.model, source=f"models/{n}")) for n in SERVICES},
    demand=(),
)
CATALOGUE = ProfileCatalogue.from_rows(
    ProfileRow(
        model=f"models/{name}",
        device_type="gpu",
        tp=1,
        batch=batch,
        latency_ms=8.0 + batch,
        memory_bytes=gib * GIB,
        load_s=3.0,
        source="by hand",
    )
    for name in SERVICES
    for batch, gib in BATCHES.items()
)
PROBLEM = build_problem(
    TOPOLOGY,
    CATALOGUE,
    demand=[Demand(service=s, origin=o, offered=10.0) for s in SERVICES for o in ("a", "b", "c")],
)
G, BESIDE = "c/gpu/0/1", "c/gpu/0/2"  # two groups on one device

Content = dict[str, dict[str, int]]  # group to service to batch


def planned(generation: int, groups: Content) -> Plan:
    replicas = [
        Replica(
            id=f"{service}@{group}",
            service=service,
            group=group,
            server=group.split("/")[0],
            device_type="gpu",
            devices=(int(group.split("/")[2]),),
            tp=1,
            pp=1,
            batch=batch,
            frames=1,
            share=1.0 / len(services),
            capacity=50.0,
            response_ms=20.0 * len(services),
            memory_bytes=BATCHES[batch] * GIB,
            load_s=0.0,
        )
        for group, services in groups.items()
        for service, batch in services.items()
    ]
    book = RouteBook(replicas, TOPOLOGY, CATALOGUE, busy=BusyTime(max_utilization=1.0))
    book.fill(PROBLEM.offered)
    return complete(PROBLEM, book, generation=generation, solver="by hand")


def bring(fleet: FakeFleet, plan: Plan, before: Plan | None) -> None:
    apply(plan, before, TOPOLOGY, CATALOGUE, fleet, Fence(epoch=1, generation=plan.generation), max_parallel=1)


def running(plan: Plan) -> FakeFleet:
    fleet = FakeFleet(TOPOLOGY, CATALOGUE)
    bring(fleet, plan, None)
    fleet.calls.clear()
    return fleet


def attempt(fleet: FakeFleet, plan: Plan, before: Plan) -> FleetError | None:
    try:
        bring(fleet, plan, before)
    except FleetError as e:
        return e
    return None


def batches(fleet: FakeFleet) -> dict[str, int]:
    """What is loaded, at which batch."""
    return {t.replica: t.batch for e in fleet.executors.values() for ts in e.loaded.values() for t in ts.values()}


def kinds(before: Plan, after: Plan) -> list[str]:
    return [s.kind.value for s in stages(before, after, TOPOLOGY, CATALOGUE)]


P, C, R = ActionKind.PREPARE.value, ActionKind.COMMIT.value, ActionKind.RETIRE.value


@pytest.mark.parametrize(
    ("before", "after", "way"),
    [
        pytest.param({G: {"label": 1}}, {G: {"label": 4}}, [P, C], id="there is room"),
        pytest.param(
            {G: {"label": 2}, BESIDE: {"spot": 4}}, {G: {"label": 4}}, [C, R, P, C], id="a group must leave first"
        ),
        pytest.param({G: {"label": 2, "spot": 4}}, {G: {"label": 4}}, [C, P, C], id="a tenant must leave first"),
        pytest.param(
            {G: {"label": 4}, BESIDE: {"spot": 2}},
            {G: {"label": 2}, BESIDE: {"spot": 4}},
            [P, C, P, C],
            id="another must shrink first",
        ),
        pytest.param(
            {G: {"label": 4}, BESIDE: {"spot": 2}},
            {G: {"label": 2}, BESIDE: {"spot": 2}, "c/gpu/0/3": {"read": 2}},
            [P, C, P, C],
            id="shrinks for who comes",
        ),
    ],
)
def test_a_batch_that_changes_is_staged_by_what_the_device_holds(
    before: Content, after: Content, way: list[str]
) -> None:
    one, two = planned(1, before), planned(2, after)
    assert kinds(one, two) == way
    fleet = running(one)
    bring(fleet, two, one)
    assert fleet.broken_laws == []
    assert batches(fleet) == {r.id: r.batch for r in two.replicas}


def content(rng: Random) -> Content:
    """At random, within every device's memory."""
    groups: Content = {}
    for place in ("a/gpu/0", "b/gpu/0", "c/gpu/0"):
        left = DEVICE_GIB
        for group in (f"{place}/1", f"{place}/2"):
            for service in rng.sample(SERVICES, rng.randint(0, 2)):
                fitting = [b for b, gib in BATCHES.items() if gib <= left]
                if fitting:
                    batch = rng.choice(fitting)
                    groups.setdefault(group, {})[service] = batch
                    left -= BATCHES[batch]
    return groups


@pytest.mark.parametrize("seed", range(60))
def test_between_any_two_plans_no_device_is_overfilled_and_a_failure_leaves_one_of_them(seed: int) -> None:
    rng = Random(seed)
    one, two = planned(1, content(rng)), planned(2, content(rng))
    fleet = running(one)
    bring(fleet, two, one)
    assert fleet.broken_laws == []
    assert batches(fleet) == {r.id: r.batch for r in two.replicas}
    for k in range(len(fleet.calls)):
        hurt = running(one)
        hurt.fail_at(k, lambda server: ExecutorRefused(server, "scripted"))
        error = attempt(hurt, two, one)
        assert not isinstance(error, PartlyApplied), k
        if error is not None:
            assert batches(hurt) == {r.id: r.batch for r in one.replicas}, k
        assert hurt.broken_laws == [], k


def test_what_the_edge_has_no_more_goes_first_and_frees_its_memory() -> None:
    """A service taken out of the file: its group is retired before anything comes in its place."""
    before = planned(1, {G: {"label": 4}, "a/gpu/0/1": {"read": 1}})
    fleet = running(before)
    fewer = replace(TOPOLOGY, services={n: s for n, s in TOPOLOGY.services.items() if n != "label"})
    after = planned(2, {BESIDE: {"spot": 4}, "a/gpu/0/1": {"read": 1}})  # 4 of 6 GiB where 4 are held
    kinds = [(s.kind, dict(s.groups)) for s in stages(before, after, fewer, CATALOGUE)]
    assert kinds[0][0] is ActionKind.COMMIT
    assert kinds[1] == (ActionKind.RETIRE, {"c": (G,)})
    assert kinds[2] == (ActionKind.PREPARE, {"c": (BESIDE,)})
    apply(after, before, fewer, CATALOGUE, fleet, Fence(epoch=1, generation=2), max_parallel=1)
    assert batches(fleet) == {f"spot@{BESIDE}": 4, "read@a/gpu/0/1": 1}
