"""The control cycle and the load generator against real agent processes with echo workers."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from epara_executors.client import GrpcFleet
from epara_executors.infer_client import InferClient
from epara_executors.load import LoadGenerator, LoadRun
from epara_executors.load_spec import LoadSpec
from epara_executors.local import LocalExecutor

from epara_opt.control.clock import SystemClock
from epara_opt.control.cycle import ControlCycle
from epara_opt.control.events import CycleEvent, EventKind
from epara_opt.control.fake_planner import FirstFitPlanner, small_edge
from epara_opt.control.learned import GAIN, MIN_BATCHES
from epara_opt.control.settings import CycleSettings
from epara_opt.control.store import Store
from epara_opt.domain.topology import DeviceKind, Topology

SMALL, CATALOGUE = small_edge()


def start(server: str, path: Path, *, listen: str = "127.0.0.1:0") -> LocalExecutor:
    return LocalExecutor(
        server,
        state_dir=path / server,
        model_root=path,
        listen=listen,
        log_file=path / f"{server}.log",
        arguments=("--worker", "echo", "--devices", "cpu:2"),
    )


@pytest.fixture
def executors(tmp_path: Path) -> Iterator[dict[str, LocalExecutor]]:
    made = {name: start(name, tmp_path) for name in SMALL.servers}
    yield made
    for e in made.values():
        e.stop(timeout_s=5.0)


def at_their_addresses(executors: dict[str, LocalExecutor]) -> Topology:
    label = SMALL.services["label"]
    echo = replace(label, model=replace(label.model, source="echo?latency_ms=1", profile="models/label"))
    return replace(
        SMALL,
        device_types={"gpu": replace(SMALL.device_types["gpu"], kind=DeviceKind.CPU)},
        servers={n: replace(s, address=executors[n].address) for n, s in SMALL.servers.items()},
        services={**SMALL.services, "label": echo},
        demand=tuple(d for d in SMALL.demand if d.service == "label"),
    )


def until(done: Callable[[], bool], *, within_s: float = 30.0) -> bool:
    ends_at = time.monotonic() + within_s
    while time.monotonic() < ends_at:
        if done():
            return True
        time.sleep(0.1)
    return False


def test_a_killed_executor_is_planned_around_and_taken_up_again(
    executors: dict[str, LocalExecutor], tmp_path: Path
) -> None:
    topology = at_their_addresses(executors)
    fleet = GrpcFleet()
    settings = CycleSettings(confirm_down=1, apply_deadline_s=30.0)
    with Store(tmp_path / "planner.db") as store:
        cycle = ControlCycle(topology, CATALOGUE, FirstFitPlanner(), fleet, store, SystemClock(), settings=settings)
        cycle.start()
        record = cycle.step()
        assert (record.outcome, record.error) == ("applied", "")
        host = cycle.in_force.replicas[0].server if cycle.in_force else ""
        assert host == "a"

        def load(origin: str, *failover: str) -> LoadSpec:
            return LoadSpec(
                service="label",
                origin=origin,
                address=executors[origin].address,
                deadline_ms=5_000.0,
                rate_per_s=20.0,
                failover=tuple(executors[n].address for n in failover),
            )

        before = LoadRun(LoadGenerator([load("a"), load("b")], duration_s=1.0)).start().result(timeout_s=30.0)
        assert before.records
        assert {r.outcome for r in before.records} == {"on_time"}
        cycle.observe()

        executors["a"].process.kill()
        executors["a"].stop(timeout_s=5.0)
        assert until(lambda: bool(cycle.observe()) or "a" in cycle.down)
        assert cycle.step("server down").outcome == "applied"
        during = LoadRun(LoadGenerator([load("a", "b", "c")], duration_s=1.0)).start().result(timeout_s=30.0)
        assert during.records
        assert {r.outcome for r in during.records} == {"on_time"}

        executors["a"] = start("a", tmp_path, listen=executors["a"].address)
        assert until(lambda: bool(cycle.observe()) or not cycle.down)
        assert cycle.step("server up").error == ""
        after = LoadRun(LoadGenerator([load("a"), load("b")], duration_s=1.0)).start().result(timeout_s=30.0)
        assert {r.outcome for r in after.records} == {"on_time"}
    fleet.close()


def test_a_planner_learns_that_real_batches_take_twice_as_long_as_profiled(
    executors: dict[str, LocalExecutor], tmp_path: Path
) -> None:
    edge = at_their_addresses(executors)
    label = edge.services["label"]
    slow = replace(label, model=replace(label.model, source="echo?latency_ms=20"))  # the profile says 10
    topology = replace(edge, services={**edge.services, "label": slow})
    events: list[CycleEvent] = []
    settings = CycleSettings(apply_deadline_s=30.0, learn_profiles=True)
    with GrpcFleet() as fleet, Store(tmp_path / "planner.db") as store:
        cycle = ControlCycle(
            topology, CATALOGUE, FirstFitPlanner(), fleet, store, SystemClock(), settings=settings,
            on_event=events.append,
        )  # fmt: skip
        cycle.start()
        cycle.step()
        assert cycle.in_force is not None
        predicted_ms = cycle.in_force.replicas[0].response_ms
        with InferClient(executors["a"].address) as client:
            for _ in range(MIN_BATCHES):
                client.infer("label", {"x": np.ones((1, 4), np.float32)})
        assert cycle.step().error == ""
        (note,) = (e for e in events if e.kind is EventKind.LEARNED)
        assert note.fields["num_batches"] == MIN_BATCHES
        assert 2.0 <= note.fields["observed"] <= 3.0  # a busy machine is slower, never faster
        assert note.fields["factor"] == 1.0 + GAIN * (note.fields["observed"] - 1.0)
        assert cycle.in_force.replicas[0].response_ms >= 1.5 * predicted_ms
