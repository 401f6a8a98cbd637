"""Message limits, compression and pinned cores: what an operator sets, and what then holds."""

import os
import socket
import threading

import grpc
import numpy as np
import pytest
from epara_executors.agent.main import AgentOptions
from epara_executors.channel import ChannelSettings
from epara_executors.infer_client import InferClient, InferError
from epara_executors.worker.fork_server import environment_of
from epara_executors.worker.launch import Launcher, LaunchError

from epara_opt.errors import InputError


class CountingProxy:
    """Passes the bytes of one connection both ways, and counts them."""

    def __init__(self, to):
        host, _, port = to.rpartition(":")
        self._to = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.sent = self.came_back = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        with self._listener:
            client, _ = self._listener.accept()
        with client, socket.create_connection(self._to) as server:
            back = threading.Thread(target=self._pass, args=(server, client, "came_back"))
            back.start()
            self._pass(client, server, "sent")
            back.join()

    def _pass(self, source, target, name):
        try:
            while data := source.recv(65536):
                setattr(self, name, getattr(self, name) + len(data))
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return  # the other side has left

    def close(self):
        self._thread.join()


def ask_through(edge, server, x, settings):
    proxy = CountingProxy(edge.address(server))
    with InferClient(proxy.address, settings=settings) as client:
        answer = client.infer("echo", {"x": x}).outputs["y"]
    proxy.close()
    np.testing.assert_array_equal(answer, x)
    return proxy


def test_what_either_end_compresses_is_small_on_the_wire_and_the_same_at_the_other_end(echo_edge):
    x = np.zeros((4, 20_000), np.float32)
    for server, compression in (("plain", "none"), ("packed", "gzip")):
        echo_edge.start(server, "127.0.0.1:0", "--compression", compression)
        echo_edge.apply(server, echo_edge.group(server, echo_edge.tenant(source="echo?width=20000")))
    plain = ask_through(echo_edge, "plain", x, ChannelSettings())
    packed = ask_through(echo_edge, "packed", x, ChannelSettings(compression="deflate"))
    assert plain.sent > x.nbytes
    assert plain.came_back > x.nbytes
    assert packed.sent < x.nbytes / 10
    assert packed.came_back < x.nbytes / 10


def test_a_message_over_the_limit_of_either_end_is_refused_and_smaller_ones_go_on(echo_edge):
    echo_edge.start("a", "127.0.0.1:0", "--max-message-mib", "1")
    echo_edge.apply("a", echo_edge.group("a", echo_edge.tenant(source="echo?width=100000", batch=8)))
    large, small = np.ones((3, 100_000), np.float32), np.ones((2, 100_000), np.float32)
    with InferClient(echo_edge.address("a")) as client:
        with pytest.raises(InferError, match="larger than max") as refused:
            client.infer("echo", {"x": large})
        assert refused.value.status is grpc.StatusCode.RESOURCE_EXHAUSTED
        np.testing.assert_array_equal(client.infer("echo", {"x": small}).outputs["y"], small)
    with (
        InferClient(echo_edge.address("a"), settings=ChannelSettings(max_message_mib=1)) as client,
        pytest.raises(InferError, match="larger than max"),
    ):
        client.infer("echo", {"x": large})


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({"max_message_mib": 0}, r"max_message_mib: expected 1 \.\. 2047, got 0"),
        ({"max_message_mib": 4096}, r"max_message_mib: expected 1 \.\. 2047, got 4096"),
        ({"compression": "zip"}, "compression: expected one of none, deflate, gzip, got zip"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, over, words):
    with pytest.raises(InputError, match=words):
        AgentOptions(server="a", listen="127.0.0.1:0", state_dir=tmp_path, model_root=tmp_path, **over)


def group(**over):
    return {"group": "g", "device_kind": "cpu", "devices": [0], "tp": 1, "pp": 1, **over}


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="affinity is Linux's")
def test_the_worker_of_a_pinned_cpu_device_runs_on_its_own_cores_alone(launcher, tmp_path, monkeypatch):
    allowed = sorted(os.sched_getaffinity(0))
    unstarted = Launcher(tmp_path, pin_cpus=True)
    with pytest.raises(LaunchError, match=rf"cpu device {len(allowed)}: expected {len(allowed) + 1} cores to pin 1"):
        unstarted.launch(group(devices=[len(allowed)]), "unused")
    monkeypatch.setattr(launcher, "_cores", allowed)  # everyone's, with the setting: another would import torch again
    last = len(allowed) - 1
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(1)
        listener.settimeout(60)
        handle = launcher.launch(group(devices=[last]), str(tmp_path / "s"))
        connection, _ = listener.accept()  # rank 0 connects before it loads, and after it was pinned
        assert os.sched_getaffinity(handle.pid) == {allowed[last]}
        connection.close()
        assert handle.wait(20) is not None


def test_a_part_of_an_accelerator_has_its_share_of_threads_and_stands_alone():
    assert environment_of({"mps_percentage": 50})["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "50"
    assert "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE" not in environment_of({"mps_percentage": 0})
    with pytest.raises(LaunchError, match="expected one device per group where devices are parts"):
        Launcher(os.devnull).launch(group(device_kind="gpu", devices=[0, 1], tp=2, parts=2), "unused")
