"""The control cycle against executors in memory: failures anywhere, restarts of both sides."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from epara_opt.control.cycle import ControlCycle
from epara_opt.control.events import CycleEvent, EventKind
from epara_opt.control.fake_planner import FirstFitPlanner, small_edge
from epara_opt.control.fakes import FakeClock, FakeFleet, ScriptedPlanner
from epara_opt.control.ports import Planner
from epara_opt.control.settings import CycleSettings
from epara_opt.control.store import Store
from epara_opt.errors import ExecutorRefused, ExecutorUnreachable, FleetError, NoPlanError, StaleFence
from epara_opt.plan import Plan
from epara_opt.problem import PlacementProblem

TOPOLOGY, CATALOGUE = small_edge()
SETTINGS = CycleSettings(max_parallel=1)


class Edge:
    """One edge with its planner, in memory but for the store."""

    def __init__(self, path: Path, *, planner: Planner | None = None) -> None:
        self.clock = FakeClock()
        self.fleet = FakeFleet(TOPOLOGY, CATALOGUE, self.clock)
        self.path = path
        self.planner: Planner = planner or FirstFitPlanner()
        self.events: list[CycleEvent] = []
        self.generations: list[int] = []
        self.boot()

    def boot(self) -> None:
        """A planner starts, on whatever store and executors there are."""
        self.store = Store(self.path)
        self.cycle = ControlCycle(
            TOPOLOGY,
            CATALOGUE,
            self.planner,
            self.fleet,
            self.store,
            self.clock,
            settings=SETTINGS,
            on_event=self.events.append,
        )
        self.cycle.start()

    def reboot(self, *, lose_store: bool = False) -> None:
        self.store.close()
        if lose_store:
            for file in self.path.parent.glob(self.path.name + "*"):
                file.unlink()
        self.boot()

    def second(self, *, load: bool = True) -> None:
        """A second passes: work as declared enters at every server that is up, one observation is made."""
        self.clock.advance(1.0)
        if load:
            for d in TOPOLOGY.demand:
                streams = int(d.offered) if d.is_streams else 0
                count = int(d.offered * TOPOLOGY.services[d.service].events_per_work)
                self.fleet.offer(d.service, d.origin, count, streams=streams)
        self.cycle.observe()

    def step(self) -> str:
        outcome = self.cycle.step().outcome
        if self.cycle.in_force:
            self.generations.append(self.cycle.in_force.generation)
        return outcome

    def live(self) -> set[str]:
        return {i for e in self.fleet.executors.values() for i in e.live()}

    def served_services(self) -> set[str]:
        return {i.split("@")[0] for i in self.live()}

    def in_line(self) -> bool:
        """Whether what is live is what the planner believes to be in force."""
        plan = self.cycle.in_force
        up = {n for n, e in self.fleet.executors.items() if e.up}
        return self.live() == {r.id for r in plan.replicas if r.server in up} if plan else not self.live()


@pytest.fixture
def edge(tmp_path: Path) -> Edge:
    return Edge(tmp_path / "planner.db")


def test_a_first_cycle_brings_a_plan_into_force_and_records_it(edge: Edge) -> None:
    assert edge.step() == "applied"
    assert edge.served_services() == {"label", "seg"}
    (record,) = edge.store.history()
    assert (record.outcome, record.generation, record.num_loads) == ("applied", 1, 2)
    assert edge.store.in_force() == edge.cycle.in_force


def test_identical_input_gives_no_actions(edge: Edge) -> None:
    edge.step()
    calls = len(edge.fleet.calls)
    for _ in range(3):
        assert edge.step() == "kept"
    assert len(edge.fleet.calls) == calls


def test_steady_load_as_declared_does_not_flap(edge: Edge) -> None:
    edge.step()
    live = edge.live()
    for _ in range(5):
        for _ in range(30):
            edge.second()
        edge.step()
        assert edge.live() == live


def test_a_server_down_is_confirmed_by_two_observations_and_replanned_around(edge: Edge) -> None:
    edge.step()
    edge.fleet.crash("a")
    edge.second()
    assert edge.cycle.down == frozenset()
    edge.second()
    assert edge.cycle.down == frozenset({"a"})
    edge.step()
    assert edge.in_line()
    assert any(i.startswith("label@") for i in edge.live())  # b's clients are served again, elsewhere
    assert edge.fleet.broken_laws == []


def test_while_models_are_on_their_way_what_runs_serves_by_other_routes_and_a_later_cycle_goes_on(edge: Edge) -> None:
    edge.step()
    edge.fleet.crash("a")
    edge.second()
    edge.second()
    edge.fleet.missing = {("b", "models/label"): 1, ("c", "models/label"): 1}
    assert edge.step() == "fetching"
    assert edge.in_line()
    assert edge.cycle.in_force is not None
    assert {r.server for r in edge.cycle.in_force.replicas} == {"c"}  # what stands, and routes to nothing else
    assert {e.generation for e in edge.fleet.executors.values() if e.up} == {edge.cycle.in_force.generation}
    (told,) = (e for e in edge.events if e.kind is EventKind.FETCHING)
    assert told.message.endswith("is still fetching: models/label; a later cycle goes on")
    assert "models/label" in edge.store.history()[-1].error
    assert edge.step() == "applied"
    assert edge.in_line()
    assert any(i.startswith("label@") for i in edge.live())
    assert edge.fleet.broken_laws == []


def test_a_first_plan_waits_for_its_models_too(edge: Edge) -> None:
    edge.fleet.missing = {("a", "models/label"): 1}
    assert edge.step() == "fetching"
    assert edge.live() == set()
    assert edge.step() == "applied"
    assert edge.served_services() == {"label", "seg"}


def test_a_server_back_with_its_old_plan_is_brought_in_line(edge: Edge) -> None:
    edge.step()
    edge.fleet.crash("a")
    edge.second()
    edge.second()
    edge.step()
    edge.fleet.restart("a")
    edge.second()
    assert edge.cycle.down == frozenset()
    assert edge.step() in ("applied", "rerouted")
    assert edge.in_line()
    assert {e.generation for e in edge.fleet.executors.values()} == {edge.cycle.in_force.generation}  # type: ignore[union-attr]
    assert edge.fleet.broken_laws == []


def test_a_server_back_blank_gets_its_groups_again(edge: Edge) -> None:
    edge.step()
    edge.fleet.crash("c")
    edge.fleet.restart("c", blank=True)
    edge.second()
    edge.step()
    assert edge.served_services() == {"label", "seg"}
    assert edge.in_line()


def test_the_loop_replans_at_once_when_a_server_goes_down(edge: Edge) -> None:
    def world(now_s: float) -> bool:
        if now_s >= 5.0 and edge.fleet.executors["a"].up:
            edge.fleet.crash("a")
        return now_s > 20.0

    edge.clock.on_wait = world
    edge.cycle.run()
    reasons = [r.reason for r in edge.store.history()]
    assert reasons == ["start", "server down"]
    assert edge.store.history()[1].started_at - edge.store.history()[0].started_at < 10.0


class Replaceable:
    """A planner that another may take the place of between two cycles."""

    name = "replaceable"

    def __init__(self, behind: Planner) -> None:
        self.behind = behind

    def plan(
        self, problem: PlacementProblem, *, generation: int, time_limit_s: float, in_force: Plan | None = None
    ) -> Plan:
        return self.behind.plan(problem, generation=generation, time_limit_s=time_limit_s, in_force=in_force)


@pytest.mark.parametrize("failure", [NoPlanError("no incumbent"), OSError(28, "no incumbent: disk full")])
def test_a_planner_that_fails_keeps_the_plan_in_force_and_is_asked_again(tmp_path: Path, failure: Exception) -> None:
    planner = Replaceable(FirstFitPlanner())
    edge = Edge(tmp_path / "planner.db", planner=planner)
    edge.step()
    live = edge.live()
    planner.behind = ScriptedPlanner([failure])
    assert edge.step() == "failed"
    assert edge.live() == live
    assert "no incumbent" in edge.store.history()[-1].error


def test_a_newer_planner_stops_this_one(edge: Edge) -> None:
    edge.step()
    edge.fleet.executors["a"].fence = (9_999_999_999, 1)
    edge.fleet.crash("b")
    edge.fleet.restart("b", blank=True)
    edge.fleet.crash("c")
    edge.second()
    edge.second()
    with pytest.raises(StaleFence, match="epoch 9999999999"):
        edge.step()
    assert edge.events[-1].kind is EventKind.STOPPED


@pytest.mark.parametrize("lose_store", [False, True], ids=["store kept", "store lost"])
def test_a_planner_restart_continues_with_the_plan_in_force(edge: Edge, lose_store: bool) -> None:
    edge.step()
    before, live = edge.cycle.in_force, edge.live()
    edge.reboot(lose_store=lose_store)
    assert edge.cycle.in_force is not None
    assert before is not None
    assert edge.cycle.in_force.generation == before.generation
    calls = len(edge.fleet.calls)
    assert edge.step() == "kept"
    assert edge.live() == live
    assert len(edge.fleet.calls) == calls


def test_every_planner_start_takes_a_higher_epoch(edge: Edge) -> None:
    first = edge.cycle.epoch
    edge.step()
    edge.reboot()
    assert edge.cycle.epoch > first
    second = edge.cycle.epoch
    edge.reboot(lose_store=True)
    assert edge.cycle.epoch >= second  # executors have seen only the first, but time does not go back


class Died(BaseException):
    """The planner's process ends here."""


def faults() -> list[Callable[[Edge, str], FleetError | None]]:
    def refuse(edge: Edge, server: str) -> FleetError | None:
        return ExecutorRefused(server, "out of memory")

    def silence(edge: Edge, server: str) -> FleetError | None:
        return ExecutorUnreachable(server, "deadline")

    def crash(edge: Edge, server: str) -> FleetError | None:
        edge.fleet.crash(server)
        return None

    def die(edge: Edge, server: str) -> FleetError | None:
        raise Died

    return [refuse, silence, crash, die]


@pytest.mark.parametrize("fault", faults(), ids=lambda f: f.__name__)
def test_after_a_failure_at_any_call_the_next_cycles_bring_everything_in_line(
    tmp_path: Path, fault: Callable[[Edge, str], FleetError | None]
) -> None:
    for k in range(12):
        edge = Edge(tmp_path / f"{k}.db")
        edge.step()
        edge.fleet.crash("c")
        edge.second()
        edge.second()
        edge.fleet.fail_at(k, lambda server, edge=edge: fault(edge, server))
        try:
            edge.step()
            edge.fleet.restart("c")
            edge.second()
            edge.step()
        except Died:
            edge.reboot()
        for name, e in edge.fleet.executors.items():
            if not e.up:
                edge.fleet.restart(name)
        for _ in range(4):
            edge.second()
            edge.step()
        assert edge.in_line(), k
        assert edge.served_services() == {"label", "seg"}, k
        assert edge.fleet.broken_laws == [], k
        assert edge.generations == sorted(edge.generations), k
        edge.store.close()


@pytest.mark.parametrize("seed", range(12))
def test_random_crashes_failures_and_restarts_break_no_law_and_end_in_line(tmp_path: Path, seed: int) -> None:
    rng = Random(seed)
    edge = Edge(tmp_path / "planner.db")
    for _ in range(25):
        name = rng.choice(["a", "b", "c"])
        what = rng.randrange(6)
        if what == 0 and edge.fleet.executors[name].up:
            edge.fleet.crash(name)
        elif what == 1 and not edge.fleet.executors[name].up:
            edge.fleet.restart(name, blank=rng.random() < 0.3)
        elif what == 2:
            fault = rng.choice(faults())
            edge.fleet.fail_at(rng.randrange(6), lambda server, fault=fault: fault(edge, server))
        elif what == 3:
            edge.reboot(lose_store=rng.random() < 0.3)
        for _ in range(rng.randrange(1, 4)):
            edge.second(load=rng.random() < 0.8)
        try:
            edge.step()
        except Died:
            edge.reboot()
    edge.fleet._faults.clear()  # pyright: ignore[reportPrivateUsage]
    for name, e in edge.fleet.executors.items():
        if not e.up:
            edge.fleet.restart(name)
    for _ in range(6):
        edge.second()
        edge.step()
    assert edge.in_line()
    assert edge.fleet.broken_laws == []


def test_settings_refuse_what_makes_no_sense() -> None:
    with pytest.raises(Exception, match=r"cycle\.every_s: expected > 0, got 0"):
        replace(SETTINGS, every_s=0.0)
