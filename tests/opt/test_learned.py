"""Profiles corrected by measurement: robust, bounded, slow to move, and taken over by the cycle."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from epara_opt.control.cycle import ControlCycle
from epara_opt.control.events import CycleEvent, EventKind
from epara_opt.control.fake_planner import FirstFitPlanner, small_edge
from epara_opt.control.fakes import FakeClock, FakeFleet
from epara_opt.control.learned import DEAD_BAND, GAIN, LIMITS, MIN_BATCHES, LearnedProfiles, scaled
from epara_opt.control.ports import BatchTime, ExecutorState, FleetState, ReplicaObservation
from epara_opt.control.reroute import rerouted
from epara_opt.control.routing import repredicted
from epara_opt.control.settings import CycleSettings
from epara_opt.control.store import Store
from epara_opt.errors import PlanRejected, StoreError
from epara_opt.plan import Plan
from epara_opt.problem import build_problem
from epara_opt.verify import verify

TOPOLOGY, CATALOGUE = small_edge()
KEY = ("models/label", "gpu", 1, 1)
PROFILED_MS = {1: 10.0, 2: 14.0, 4: 24.0}


@pytest.fixture(scope="module")
def plan() -> Plan:
    problem = build_problem(TOPOLOGY, CATALOGUE)
    return FirstFitPlanner().plan(problem, generation=1, time_limit_s=1.0)


def label_in(plan: Plan) -> tuple[str, str]:
    """(server, replica) of the first replica of `label`."""
    return next((r.server, r.id) for r in plan.replicas if r.service == "label")


def told(plan: Plan, times: dict[int, tuple[int, float]], *, incarnation: str = "a-1") -> FleetState:
    """The label replica's executor tells, by rows, (batches since its start, median ms)."""
    server, name = label_in(plan)
    replica = ReplicaObservation(
        replica=name,
        group="",
        service="label",
        state="live",
        queued=0,
        served=0,
        busy_s=0.0,
        mean_batch=0.0,
        batch_ms=0.0,
        batch_times=tuple(BatchTime(rows=n, num_batches=k, median_ms=ms) for n, (k, ms) in sorted(times.items())),
    )
    state = ExecutorState(
        server=server, incarnation=incarnation, epoch=1, generation=1, at=0.0, services=(), replicas=(replica,)
    )
    return FleetState(executors={server: state})


def factor_of(learned: LearnedProfiles) -> float:
    return learned.catalogue.shapes(*KEY[:2])[1, 1].latency_ms.at(1) / PROFILED_MS[1]


def learner() -> LearnedProfiles:
    return LearnedProfiles(TOPOLOGY, CATALOGUE)


def test_a_slow_device_moves_the_factor_part_of_the_way_at_every_batch_size(plan: Plan) -> None:
    learned = learner()
    (made,) = learned.learn(told(plan, {1: (40, 20.0), 4: (40, 48.0)}), plan)
    assert (made.key, made.observed, made.num_batches, made.before) == (KEY, 2.0, 80, 1.0)
    assert made.factor == 1.0 + GAIN
    profile = learned.catalogue.shapes(*KEY[:2])[1, 1]
    assert [profile.latency_ms.at(n) for n in (1, 2, 4)] == pytest.approx([made.factor * v for v in (10, 14, 24)])
    assert profile.interval_ms.at(4) == pytest.approx(made.factor * 24.0)
    assert "x 1.50 of the profile, before x 1.00; 80 batches took x 2.00" in str(made)


def test_it_converges_on_what_is_measured_and_then_rests(plan: Plan) -> None:
    learned = learner()
    for i in range(1, 20):
        learned.learn(told(plan, {1: (100 * i, 20.0)}), plan)
    assert factor_of(learned) == pytest.approx(2.0, rel=DEAD_BAND)
    catalogue = learned.catalogue
    assert learned.learn(told(plan, {1: (10_000, 20.5)}), plan) == ()
    assert learned.catalogue is catalogue


def test_too_few_batches_say_nothing_until_enough_have_come(plan: Plan) -> None:
    learned = learner()
    assert learned.learn(told(plan, {1: (MIN_BATCHES - 1, 20.0)}), plan) == ()
    assert learned.learn(told(plan, {1: (MIN_BATCHES - 1, 20.0)}), plan) == ()
    assert len(learned.learn(told(plan, {1: (MIN_BATCHES, 20.0)}), plan)) == 1


def test_what_was_used_once_is_not_used_again(plan: Plan) -> None:
    learned = learner()
    state = told(plan, {1: (100, 20.0)})
    assert len(learned.learn(state, plan)) == 1
    assert learned.learn(state, plan) == ()


def test_an_executor_that_restarted_counts_from_nothing(plan: Plan) -> None:
    learned = learner()
    learned.learn(told(plan, {1: (1000, 20.0)}), plan)
    assert len(learned.learn(told(plan, {1: (MIN_BATCHES, 30.0)}, incarnation="a-2"), plan)) == 1


def test_one_that_did_not_answer_for_a_while_tells_nothing_twice(plan: Plan) -> None:
    learned = learner()
    state = told(plan, {1: (1000, 20.0)})
    learned.learn(state, plan)
    learned.learn(FleetState(), plan)
    assert learned.learn(state, plan) == ()


def test_one_odd_batch_size_moves_nothing(plan: Plan) -> None:
    learned = learner()
    assert learned.learn(told(plan, {1: (100, 10.0), 2: (40, 900.0), 4: (100, 24.0)}), plan) == ()


@pytest.mark.parametrize(("ms", "limit"), [(10_000.0, LIMITS[1]), (0.001, LIMITS[0])])
def test_the_factor_stays_within_its_limits_whatever_is_measured(plan: Plan, ms: float, limit: float) -> None:
    learned = learner()
    for i in range(1, 30):
        learned.learn(told(plan, {1: (100 * i, ms)}), plan)
        assert LIMITS[0] <= factor_of(learned) <= LIMITS[1]
    assert factor_of(learned) == pytest.approx(limit, rel=DEAD_BAND)


def test_sizes_that_were_never_profiled_are_not_compared(plan: Plan) -> None:
    assert learner().learn(told(plan, {8: (1000, 1.0), 5: (1000, 1.0)}), plan) == ()


def test_nothing_is_learned_from_what_no_plan_in_force_describes(plan: Plan) -> None:
    state = told(plan, {1: (1000, 20.0)})
    assert learner().learn(state, None) == ()
    assert learner().learn(state, replace(plan, replicas=(), routes=())) == ()


def test_what_was_learned_survives_the_planner(plan: Plan) -> None:
    first, second = learner(), learner()
    state = told(plan, {1: (100, 20.0)})
    first.learn(state, plan)
    second.restore(first.to_json())
    assert second.catalogue.shapes(*KEY[:2]) == first.catalogue.shapes(*KEY[:2])
    assert second.learn(state, plan) == ()


def test_of_another_topology_nothing_is_taken(plan: Plan) -> None:
    first = LearnedProfiles(replace(TOPOLOGY, name="elsewhere"), CATALOGUE)
    first.learn(told(plan, {1: (100, 20.0)}), plan)
    second = learner()
    second.restore(first.to_json())
    assert factor_of(second) == 1.0


@pytest.mark.parametrize("factor", [0.0, 3.1, float("nan"), "x", None])
def test_a_state_that_this_version_did_not_write_is_refused_whole(factor: object) -> None:
    data = json.loads(learner().to_json())
    data["factors"] = [[*KEY, 2.0, 2.0], ["models/seg", "gpu", 1, 1, factor, 1.0]]
    learned = learner()
    with pytest.raises(StoreError, match="learned profiles"):
        learned.restore(json.dumps(data))
    assert factor_of(learned) == 1.0


def test_a_plan_predicted_anew_passes_the_checker_under_the_new_catalogue(plan: Plan) -> None:
    slower = scaled(CATALOGUE, {KEY: 1.3})
    again = repredicted(plan, TOPOLOGY, slower)
    before = next(r for r in plan.replicas if r.service == "label")
    after = next(r for r in again.replicas if r.service == "label")
    assert after.response_ms == pytest.approx(1.3 * before.response_ms)
    problem = build_problem(TOPOLOGY, slower, in_force=again)
    verify(rerouted(again, problem, generation=2), TOPOLOGY, slower, problem=problem)
    with pytest.raises(PlanRejected, match="response_ms"):
        verify(rerouted(plan, problem, generation=2), TOPOLOGY, slower, problem=problem)


def test_a_plan_whose_predictions_hold_is_left_as_it_is(plan: Plan) -> None:
    assert repredicted(plan, TOPOLOGY, CATALOGUE) is plan


class Edge:
    """A planner that learns, and executors in memory."""

    def __init__(self, path: Path, *, learn_profiles: bool = True) -> None:
        self.clock = FakeClock()
        self.fleet = FakeFleet(TOPOLOGY, CATALOGUE, self.clock)
        self.events: list[CycleEvent] = []
        self.store = Store(path)
        self.settings = CycleSettings(max_parallel=1, learn_profiles=learn_profiles)
        self.boot()

    def boot(self) -> None:
        self.cycle = ControlCycle(
            TOPOLOGY, CATALOGUE, FirstFitPlanner(), self.fleet, self.store, self.clock,
            settings=self.settings, on_event=self.events.append,
        )  # fmt: skip
        self.cycle.start()

    def run_batches(self, ratio: float) -> None:
        """Every replica of label runs batches, so many times as long as profiled."""
        assert self.cycle.in_force is not None
        for r in self.cycle.in_force.replicas:
            if r.service == "label":
                self.fleet.ran(r.id, rows=1, num_batches=100, ms=ratio * PROFILED_MS[1])

    def response_ms(self) -> float:
        plan = self.cycle.in_force
        assert plan is not None
        return max(r.response_ms / (2.0 * PROFILED_MS[r.batch]) for r in plan.replicas if r.service == "label")

    def notes(self) -> list[CycleEvent]:
        return [e for e in self.events if e.kind is EventKind.LEARNED]


def test_a_cycle_plans_with_what_it_learned_and_says_by_how_much(tmp_path: Path) -> None:
    edge = Edge(tmp_path / "planner.db")
    edge.cycle.step()
    edge.run_batches(1.4)
    record = edge.cycle.step()
    (note,) = edge.notes()
    assert (note.fields["model"], note.fields["factor"]) == ("models/label", pytest.approx(1.2))
    assert edge.response_ms() == pytest.approx(1.2)
    assert record.error == ""
    assert edge.fleet.broken_laws == []


def test_profiles_that_are_slow_but_good_enough_move_no_replica(tmp_path: Path) -> None:
    edge = Edge(tmp_path / "planner.db")
    edge.cycle.step()
    assert edge.cycle.in_force is not None
    groups = {r.group for r in edge.cycle.in_force.replicas}
    for _ in range(6):
        edge.run_batches(1.2)
        assert edge.cycle.step().num_loads == 0
    assert {r.group for r in edge.cycle.in_force.replicas} == groups


def test_a_planner_that_restarts_goes_on_with_what_was_learned(tmp_path: Path) -> None:
    edge = Edge(tmp_path / "planner.db")
    edge.cycle.step()
    edge.run_batches(1.4)
    edge.cycle.step()
    edge.boot()
    record = edge.cycle.step()
    assert (record.error, record.num_loads) == ("", 0)
    assert edge.response_ms() == pytest.approx(1.2)


def test_nothing_is_learned_unless_asked_for(tmp_path: Path) -> None:
    edge = Edge(tmp_path / "planner.db", learn_profiles=False)
    edge.cycle.step()
    edge.run_batches(2.0)
    edge.cycle.step()
    assert edge.notes() == []
    assert edge.response_ms() == pytest.approx(1.0)
