"""Starting, leaving, crashing, coming back."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
from epara_executors.agent.main import AgentOptions
from epara_executors.infer_client import InferError
from epara_executors.local import LocalExecutor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from epara_opt.control.ports import Fence
from epara_opt.errors import FleetError, InputError, StaleFence


def children(executor):
    return psutil.Process(executor.pid).children(recursive=True)


def health_of(address):
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return stub.Check(health_pb2.HealthCheckRequest(), timeout=10).status


def test_the_agent_imports_no_torch_and_nothing_of_planning(tmp_path):
    code = (
        "import sys, epara_executors.agent.main, epara_executors.agent.data_plane, epara_executors.agent.control_plane,"
        "epara_executors.agent.torch_launcher;"
        "print([m for m in ('torch', 'transformers', 'pulp', 'ortools', 'networkx') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert said.stdout.strip() == "[]"


def test_an_address_in_use_ends_with_status_5_and_names_the_address(echo_edge):
    first = echo_edge.start("a")
    with pytest.raises(FleetError):
        echo_edge.start("b", first.address)
    log = (echo_edge.folder / "b.log").read_text()
    assert f"cannot listen on {first.address}" in log
    command = [sys.executable, "-m", "epara_executors.agent", "--server", "c", "--listen", first.address]
    command += ["--state-dir", str(echo_edge.folder / "c"), "--model-root", str(echo_edge.folder), "--worker", "echo"]
    assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 5


def test_a_message_limit_that_grpc_cannot_keep_is_refused(tmp_path):
    for given in (0, 2048):
        with pytest.raises(InputError, match=rf"max_message_mib: expected 1 \.\. 2047, got {given}"):
            AgentOptions(server="a", listen="h:0", state_dir=tmp_path, model_root=tmp_path, max_message_mib=given)


def test_a_state_directory_in_use_is_refused(echo_edge):
    echo_edge.start("a")
    with pytest.raises(FleetError):
        LocalExecutor(
            "a",
            state_dir=echo_edge.folder / "a",
            model_root=echo_edge.folder,
            log_file=echo_edge.folder / "second.log",
            arguments=("--worker", "echo"),
        )
    assert "expected no other executor in it" in (echo_edge.folder / "second.log").read_text()


def test_a_restart_restores_plan_and_fence_before_it_says_ready(echo_edge, ones):
    first = echo_edge.start("a")
    echo_edge.apply("a", echo_edge.group("a", echo_edge.tenant(source="echo?load_ms=300")), generation=7)
    first.kill()
    second = echo_edge.start("a", first.address)
    echo_edge.until(lambda: health_of(second.address) == health_pb2.HealthCheckResponse.SERVING)
    state = echo_edge.state("a")
    assert (state.generation, state.plan_json) == (7, '{"plan": 1}')
    echo_edge.client("a").infer("echo", {"x": ones})
    with pytest.raises(StaleFence):
        echo_edge.fleet.prepare(second.address, (), Fence(epoch=1, generation=6), deadline_s=5)


def test_a_plan_on_disk_that_cannot_be_read_is_set_aside(echo_edge):
    (echo_edge.folder / "a").mkdir()
    (echo_edge.folder / "a" / "committed.json").write_text("{half")
    echo_edge.start("a")
    assert echo_edge.state("a").generation == 0
    assert (echo_edge.folder / "a" / "committed.unreadable").read_text() == "{half"


def test_sigterm_finishes_what_is_in_flight_and_leaves_no_process(echo_edge, ones):
    executor = echo_edge.start("a")
    echo_edge.apply("a", echo_edge.group("a", echo_edge.tenant(source="echo?latency_ms=700")))
    workers = children(executor)
    assert workers
    answers = []
    client = echo_edge.client("a")
    asking = threading.Thread(target=lambda: answers.append(client.infer("echo", {"x": ones}).outputs["y"]))
    asking.start()
    echo_edge.until(lambda: echo_edge.state("a").replicas[0].queued == 1)
    assert executor.stop(timeout_s=30) == 0
    asking.join()
    np.testing.assert_array_equal(answers[0], ones)
    assert not any(w.is_running() for w in workers)


def test_who_comes_while_an_executor_leaves_is_told_so(echo_edge, ones):
    executor = echo_edge.start("a")
    echo_edge.apply("a", echo_edge.group("a", echo_edge.tenant(source="echo?latency_ms=2000")))
    client, answers, refusals = echo_edge.client("a"), [], []
    asking = threading.Thread(target=lambda: answers.append(client.infer("echo", {"x": ones})))
    asking.start()
    echo_edge.until(lambda: echo_edge.state("a").replicas[0].queued == 1)
    executor.process.send_signal(signal.SIGTERM)

    def refused():
        with pytest.raises(InferError) as caught:
            client.infer("echo", {"x": ones}, params={"timeout": 1})  # shed until it drains
        if caught.value.status is grpc.StatusCode.UNAVAILABLE:
            refusals.append(caught.value.message)
        return len(refusals) == 5

    echo_edge.until(refused)
    assert all("executor a is draining" in said for said in refusals)
    asking.join()
    assert len(answers) == 1
    assert executor.stop(timeout_s=30) == 0


def test_no_worker_outlives_an_agent_that_was_killed(echo_edge):
    executor = echo_edge.start("a")
    echo_edge.apply("a", echo_edge.group("a", echo_edge.tenant()))
    workers = children(executor)
    executor.kill()
    gone, alive = psutil.wait_procs(workers, timeout=20)
    assert alive == []
    assert gone


def test_a_crashed_worker_is_restarted_and_its_requests_end(echo_edge, ones):
    echo_edge.start("a")
    echo_edge.apply("a", echo_edge.group("a", echo_edge.tenant(source="echo?crash_above=10", deadline_ms=2000.0)))
    client = echo_edge.client("a")
    with pytest.raises(InferError) as caught:
        client.infer("echo", {"x": ones * 11})
    assert caught.value.status is grpc.StatusCode.UNAVAILABLE
    assert "ended with 70" in caught.value.message
    replica = echo_edge.state("a").replicas[0]
    assert replica.state in ("failed", "loading")
    echo_edge.until(lambda: echo_edge.state("a").replicas[0].state == "live")
    client.infer("echo", {"x": ones})


def test_a_killed_workers_requests_move_to_the_other_replica(echo_edge, ones):
    executor = echo_edge.start("a")
    slow = [echo_edge.tenant(group=g, source="echo?latency_ms=300", response_ms=700.0) for g in ("g0", "g1")]
    groups = [echo_edge.group("a", t, name=f"g{i}", device=i) for i, t in enumerate(slow)]
    echo_edge.apply("a", *groups)
    workers = children(executor)
    client = echo_edge.client("a")
    answers, errors = [], []

    def ask():
        try:
            answers.append(client.infer("echo", {"x": ones}))
        except InferError as e:
            errors.append(e)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for t in threads:
        t.start()
    echo_edge.until(lambda: sum(r.queued for r in echo_edge.state("a").replicas) == 6)
    os.kill(workers[0].pid, signal.SIGKILL)
    for t in threads:
        t.join()
    assert errors == []
    assert len(answers) == 6


def test_what_takes_longer_than_the_grace_is_cut_off_after_it_and_not_after_twice_as_long(echo_edge):
    executor = echo_edge.start("a", "127.0.0.1:0", "--drain-grace", "3")
    slow = echo_edge.tenant(source="echo?latency_ms=500", task="text-generation", deadline_ms=60_000.0)
    echo_edge.apply("a", echo_edge.group("a", slow))
    client, refusals = echo_edge.client("a"), []
    text = np.array([b"on and on"], dtype=np.object_)

    def ask():
        with pytest.raises(InferError) as caught:
            client.infer("echo", {"text": text}, params={"max_tokens": 100}, timeout_s=60.0)
        refusals.append(caught.value.status)

    asking = threading.Thread(target=ask)
    asking.start()
    echo_edge.until(lambda: echo_edge.state("a").replicas[0].queued == 1)
    began = time.monotonic()
    assert executor.stop(timeout_s=30) == 0
    assert 3.0 <= time.monotonic() - began < 5.5
    asking.join()
    assert len(refusals) == 1


def test_drain_takes_nothing_new_and_reports_what_is_left(echo_edge, ones):
    executor = echo_edge.start("a")
    echo_edge.apply("a", echo_edge.group("a", echo_edge.tenant()))
    assert echo_edge.fleet.drain(executor.address, exit_process=False, deadline_s=5) == 0
    with pytest.raises(InferError) as caught:
        echo_edge.client("a").infer("echo", {"x": ones})
    assert caught.value.status is grpc.StatusCode.UNAVAILABLE
    echo_edge.fleet.drain(executor.address, exit_process=True, deadline_s=5)
    assert executor.process.wait(timeout=20) == 0


def test_reflection_lists_and_describes_what_is_spoken(echo_edge):
    executor = echo_edge.start("a")
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="inference.GRPCInferenceService"),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="grpc.health.v1.Health"),
    ]
    with grpc.insecure_channel(executor.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        listed, ours, health = stub.ServerReflectionInfo(iter(requests), timeout=10)
    names = {s.name for s in listed.list_services_response.service}
    assert {"inference.GRPCInferenceService", "epara.v1.ExecutorControl", "grpc.health.v1.Health"} <= names
    assert b"ModelStreamInfer" in ours.file_descriptor_response.file_descriptor_proto[0]
    assert health.file_descriptor_response.file_descriptor_proto


def test_the_working_tree_names_no_long_socket_path(echo_edge):
    executor = echo_edge.start("a")
    echo_edge.apply("a", echo_edge.group("a", echo_edge.tenant()))
    (worker,) = children(executor)
    assert len(Path(worker.cmdline()[-1]).as_posix()) <= 107
