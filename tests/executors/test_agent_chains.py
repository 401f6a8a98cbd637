"""A chain over two executors as its agents see it: real processes, echo workers in place of ranks."""

from __future__ import annotations

import asyncio
import socket
import threading
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio
import numpy as np
import psutil
import pytest
from epara_executors.agent.chain import listen_at
from epara_executors.agent.echo_launcher import EchoLauncher
from epara_executors.agent.stages import HeldStages
from epara_executors.infer_client import InferError
from epara_executors.rpc import epara_pb2 as pb
from epara_executors.rpc.convert import stage_to_pb
from epara_executors.rpc.epara_pb2_grpc import (
    ExecutorPeerServicer,
    ExecutorPeerStub,
    add_ExecutorPeerServicer_to_server,
)
from epara_solvers.planners.greedy import GreedyPlanner

from epara_opt.contents import PlanningRules
from epara_opt.control.clock import SystemClock
from epara_opt.control.cycle import ControlCycle
from epara_opt.control.ports import CommitSpec, Fence, GroupSpec, StageSpec
from epara_opt.control.settings import CycleSettings
from epara_opt.control.store import Store
from epara_opt.domain.profile import ProfileCatalogue, ProfileRow
from epara_opt.domain.service import Demand, Model, RequestShape, Sensitivity, Service, Task
from epara_opt.domain.topology import DeviceKind, DevicePool, DeviceType, Link, Server, ServerKind, Topology
from epara_opt.errors import ExecutorRefused

GROUP = "a/cpu/0/1"
REPLICA = f"echo@{GROUP}"


def parts(edge: Any, **tenant: Any) -> tuple[GroupSpec, GroupSpec]:
    """What a and b are told: layers 0 to 3 at a, 3 to 4 at b."""
    stages = tuple(
        StageSpec(server=s, address=edge.address(s), device_kind="cpu", devices=(0,), first_layer=first, end_layer=end)
        for s, first, end in (("a", 0, 3), ("b", 3, 4))
    )
    spec = edge.tenant(group=GROUP, **tenant)
    head = replace(edge.group("a", spec, name=GROUP), pp=2, stages=stages)
    return head, replace(head, server="b")


def bring(edge: Any, generation: int = 1, **tenant: Any) -> tuple[GroupSpec, GroupSpec]:
    """Prepare at b, at a, commit at both."""
    head, further = parts(edge, **tenant)
    fence = Fence(epoch=1, generation=generation)
    routes = (edge.route(head.tenants[0], "a"),)
    for spec in (further, head):
        edge.fleet.prepare(edge.address(spec.server), (spec,), fence, deadline_s=30)
    for spec in (further, head):
        told = CommitSpec(server=spec.server, groups=(spec,), routes=routes, peers=(), plan_json='{"plan": 1}')
        edge.fleet.commit(edge.address(spec.server), told, fence, deadline_s=10)
    return head, further


def state_at(edge: Any, server: str) -> Any:
    found = [r for r in edge.state(server).replicas if r.group == GROUP]
    return found[0] if found else None


def is_live(edge: Any) -> bool:
    return all((r := state_at(edge, s)) is not None and r.state == "live" for s in "ab")


def ranks(executor: Any) -> list[psutil.Process]:
    return psutil.Process(executor.pid).children(recursive=True)


@pytest.fixture
def edge(echo_edge: Any) -> Any:
    for server in "ab":
        echo_edge.start(server)
    return echo_edge


def test_a_chain_serves_at_any_executor_and_ends_everywhere(edge: Any, ones: np.ndarray) -> None:
    bring(edge)
    edge.until(lambda: is_live(edge))
    assert [(state_at(edge, s).stages, state_at(edge, s).num_stages) for s in "ab"] == [((0,), 2), ((1,), 2)]
    for server in "ab":  # entered at the stage's own server it goes to the head
        np.testing.assert_array_equal(edge.client(server).infer("echo", {"x": ones}).outputs["y"], ones)
    assert state_at(edge, "b").served == 0
    there = [p for s in "ab" for p in ranks(edge.executors[s])]
    assert len(there) == 2
    fence = Fence(epoch=1, generation=2)
    for server in "ab":
        with pytest.raises(ExecutorRefused, match="in use by generation 1"):
            edge.fleet.retire(edge.address(server), (GROUP,), fence, deadline_s=10)
    for server in "ab":
        nothing = CommitSpec(server=server, groups=(), routes=(), peers=())
        edge.fleet.commit(edge.address(server), nothing, fence, deadline_s=10)
    for server in "ab":
        edge.fleet.retire(edge.address(server), (GROUP,), fence, deadline_s=20)
        assert edge.state(server).replicas == ()
    assert psutil.wait_procs(there, timeout=10)[1] == []


def test_a_stage_that_dies_fails_what_is_in_flight_by_name_and_the_chain_comes_back(
    edge: Any, ones: np.ndarray
) -> None:
    bring(edge, source="echo?hang_above=10", deadline_ms=20_000.0)
    edge.until(lambda: is_live(edge))
    errors: list[InferError] = []

    def ask() -> None:
        with pytest.raises(InferError) as caught:
            edge.client("a").infer("echo", {"x": ones * 11}, timeout_s=20)
        errors.append(caught.value)

    asking = threading.Thread(target=ask)
    asking.start()
    edge.until(lambda: state_at(edge, "a").queued == 1)
    (stage,), (head,) = ranks(edge.executors["b"]), ranks(edge.executors["a"])
    stage.kill()
    asking.join()
    assert errors[0].status is grpc.StatusCode.UNAVAILABLE
    assert "stage 1 at b: ended with -9" in errors[0].message
    assert not head.is_running()  # nothing half alive
    edge.until(lambda: is_live(edge))
    assert (state_at(edge, "a").restarts, state_at(edge, "b").restarts) == (1, 1)
    edge.client("a").infer("echo", {"x": ones})


def test_stages_end_with_their_head_and_serve_it_again_when_it_is_back(edge: Any, ones: np.ndarray) -> None:
    """The head's agent is killed outright; it comes back with the plan on its disk, at the same address."""
    bring(edge)
    (stage,) = ranks(edge.executors["b"])
    first = edge.executors["a"]
    first.kill()
    assert psutil.wait_procs([stage], timeout=10)[1] == []
    edge.until(lambda: state_at(edge, "b").state == "waiting")
    assert state_at(edge, "b").detail == "its head's call ended"
    edge.start("a", first.address)
    edge.until(lambda: is_live(edge))
    edge.client("b").infer("echo", {"x": ones})


def test_a_stages_executor_that_leaves_lets_what_is_in_flight_end(edge: Any, ones: np.ndarray) -> None:
    bring(edge, source="echo?latency_ms=700")
    edge.until(lambda: is_live(edge))
    answers: list[np.ndarray] = []
    client = edge.client("a")
    asking = threading.Thread(target=lambda: answers.append(client.infer("echo", {"x": ones}).outputs["y"]))
    asking.start()
    edge.until(lambda: state_at(edge, "a").queued == 1)
    first = edge.executors["b"]
    assert first.stop(timeout_s=20) == 0
    asking.join()
    np.testing.assert_array_equal(answers[0], ones)
    edge.until(lambda: "stage 1 at b" in state_at(edge, "a").detail)
    with pytest.raises(InferError, match="no replica here is ready"):
        client.infer("echo", {"x": ones})


def test_a_head_whose_stages_are_not_prepared_is_refused_in_their_executors_words(edge: Any) -> None:
    head, further = parts(edge)
    fence = Fence(epoch=1, generation=1)
    law = r"stage 1 at b .*: expected prepared stages, got none"
    with pytest.raises(ExecutorRefused, match=law):
        edge.fleet.prepare(edge.address("a"), (head,), fence, deadline_s=30)
    assert [ranks(edge.executors[s]) for s in "ab"] == [[], []]
    assert edge.state("a").replicas == ()
    other = tuple(replace(s, end_layer=9) if i else s for i, s in enumerate(further.stages))
    edge.fleet.prepare(edge.address("b"), (replace(further, stages=other),), fence, deadline_s=5)
    with pytest.raises(ExecutorRefused, match="expected the stages that were prepared here, got others"):
        edge.fleet.prepare(edge.address("a"), (head,), fence, deadline_s=30)


def test_stages_that_do_not_add_up_are_refused(echo_edge: Any) -> None:
    echo_edge.start("a")
    echo_edge.start("b", "127.0.0.1:0", "--devices", "cpu:2")
    _, further = parts(echo_edge)
    for change, law in (
        ({"first_layer": 2}, r"stages\[1\]: expected one layer or more from 3 on, got \[2, 4\)"),
        ({"end_layer": 3}, r"stages\[1\]: expected one layer or more from 3 on, got \[3, 3\)"),
        ({"server": "c"}, r"stages: expected one at b, got none"),
        ({"address": ""}, r"stages\[1\]: expected devices and an address"),
        ({"devices": (7,)}, r"devices: expected cpu indexes < 2, got 7"),
    ):
        odd = replace(further, stages=(further.stages[0], replace(further.stages[1], **change)))
        with pytest.raises(ExecutorRefused, match=law):
            echo_edge.fleet.prepare(echo_edge.address("b"), (odd,), Fence(epoch=1, generation=1), deadline_s=5)


def test_the_meeting_point_must_be_an_address_of_the_heads_server(edge: Any) -> None:
    head, further = parts(edge)
    nowhere = "192.0.2.1:7101"  # of the range for documentation: nobody's
    stages = (replace(head.stages[0], address=nowhere), head.stages[1])
    fence = Fence(epoch=1, generation=1)
    edge.fleet.prepare(edge.address("b"), (replace(further, stages=stages),), fence, deadline_s=5)
    with pytest.raises(ExecutorRefused, match=r"expected the address of this server in the topology, 192\.0\.2\.1"):
        edge.fleet.prepare(edge.address("a"), (replace(head, stages=stages),), fence, deadline_s=20)


def test_a_head_that_falls_silent_is_taken_for_gone(edge: Any) -> None:
    """A network that swallows everything closes no connection: a call that says nothing more is ended."""
    head, further = parts(edge)

    class Plane(ExecutorPeerServicer):
        """The executor's, with less patience."""

        def __init__(self) -> None:
            self.held = HeldStages(further, launcher=EchoLauncher(), silence_s=1.0)

        async def RunStages(self, request_iterator: Any, context: Any) -> None:  # noqa: N802
            await self.held.serve(await context.read(), context)

    async def talk() -> list[pb.StageBeat]:
        server = grpc.aio.server()
        add: Any = add_ExecutorPeerServicer_to_server
        add(Plane(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        beats: list[pb.StageBeat] = []
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub: Any = ExecutorPeerStub(channel)
            call = stub.RunStages()
            await call.write(pb.HeadBeat(group=GROUP, stages=[stage_to_pb(s) for s in head.stages]))

            async def beat() -> None:
                while True:
                    await asyncio.sleep(0.2)
                    await call.write(pb.HeadBeat())

            beating = asyncio.create_task(beat())
            while not beats or not beats[-1].ended:
                beats.append(await call.read())
                if beats[-1].pids:
                    beating.cancel()  # the ranks are there: not a word from now on
        await server.stop(0)
        return beats

    *before, last = asyncio.run(talk())
    (pid,) = {pid for beat in before for pid in beat.pids}
    assert last.status == -9
    assert not psutil.pid_exists(pid)


def test_a_listener_of_a_chain_is_bound_to_one_address_only() -> None:
    with listen_at("127.0.0.1:7101") as listener:
        host, port = listener.getsockname()
        assert host == "127.0.0.1"
        assert port not in (0, 7101)
        with socket.create_connection((host, port), timeout=5):
            pass


# The control cycle over it


def edge_with_a_chain(edge: Any) -> tuple[Topology, ProfileCatalogue]:
    """`chat` has four layers, of which a device holds two."""
    gib = 2**30
    shape = RequestShape(input_bytes=1000.0, output_bytes=1000.0, prompt_tokens=8, output_tokens=4)
    chat = Service(
        name="chat",
        model=Model(
            source="echo?latency_ms=1",
            profile="chat",
            task=Task.TEXT_GENERATION,
            layers=4,
            activation_bytes=100.0,
        ),
        sensitivity=Sensitivity.LATENCY,
        slo_ms=5000.0,
        request=shape,
    )
    points = [{"prefill_ms": 2.0, "prompt_tokens": 8}, *({"decode_step_ms": 1.0, "batch": b} for b in (1, 2))]
    rows = [
        ProfileRow(
            model="chat", device_type="cpu", memory_bytes=n * gib, load_s=1.0, source="made up", layers=n, **point
        )
        for n in (1, 4)
        for point in points
    ]
    topology = Topology(
        name="chained",
        device_types={"cpu": DeviceType(name="cpu", memory_bytes=2 * gib, kind=DeviceKind.CPU)},
        servers={
            n: Server(
                name=n,
                kind=ServerKind.EDGE_SERVER,
                devices=(DevicePool(type="cpu", count=1),),
                address=edge.address(n),
            )
            for n in "ab"
        },
        links=(Link(between=("a", "b"), rtt_ms=0.2, bandwidth_bytes_per_s=1e8),),
        services={"chat": chat},
        demand=tuple(Demand(service="chat", origin=n, offered=1.0) for n in "ab"),
        digest="chained",
    )
    return topology, ProfileCatalogue.from_rows(rows)


def test_a_cycle_ends_a_chain_that_lost_an_executor_and_brings_it_again(edge: Any) -> None:
    topology, catalogue = edge_with_a_chain(edge)
    rules = PlanningRules(across_servers=True)
    settings = CycleSettings(confirm_down=1, apply_deadline_s=30.0, rules=rules)
    text = {"text": np.array([b"hello there"], dtype=np.object_)}
    with Store(edge.folder / "planner.db") as store:
        cycle = ControlCycle(topology, catalogue, GreedyPlanner(), edge.fleet, store, SystemClock(), settings=settings)
        cycle.start()
        assert (cycle.step().error, cycle.in_force is not None) == ("", True)
        (replica,) = cycle.in_force.replicas if cycle.in_force else ()
        head, further = replica.servers
        answer = edge.client(further).infer("chat", text, params={"max_tokens": 3}).outputs["text"]
        assert answer.tolist() == [b"hello there hello"]
        first = edge.executors[further]
        first.kill()
        edge.until(lambda: bool(cycle.observe()) or further in cycle.down)
        assert cycle.step("server down").error == ""
        assert edge.state(head).replicas == ()
        assert ranks(edge.executors[head]) == []
        edge.start(further, first.address)  # with the old plan on its disk: a stage that nobody leads
        edge.until(lambda: bool(cycle.observe()) or not cycle.down)
        assert cycle.step("server up").error == ""
        (again,) = cycle.in_force.replicas if cycle.in_force else ()
        assert set(again.servers) == {"a", "b"}
        for server in "ab":
            (held,) = edge.state(server).replicas
            assert held.replica == again.id
        edge.client(further).infer("chat", text, params={"max_tokens": 3})
