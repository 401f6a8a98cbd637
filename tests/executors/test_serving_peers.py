"""The serving benchmark's peers: which are asked for, which are there, what is checked and ended. Starts none."""

from __future__ import annotations

import importlib
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "serving"
MODULES = ("rows", "calls", "client", "servers", "peer_servers")


@pytest.fixture(scope="module")
def serving() -> Iterator[Any]:
    """The benchmark's modules, which are scripts beside each other and no package."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    finally:
        sys.path.remove(str(FOLDER))
        for name in MODULES:
            sys.modules.pop(name, None)


def test_servers_take_turns_in_one_order_however_they_are_asked_for(serving: Any) -> None:
    everyone = ["floor", "epara", "litserve", "mlserver", "ray", "bentoml"]
    assert serving.peer_servers.names_of(",".join(reversed(everyone))) == everyone
    assert serving.peer_servers.names_of("ray,floor") == ["floor", "ray"]


@pytest.mark.parametrize("given", ["floor,triton", "", "floor,"])
def test_a_server_that_is_not_known_is_refused_with_those_that_are(serving: Any, given: str) -> None:
    expected = "--servers: expected of floor, epara, litserve, mlserver, ray, bentoml, got "
    with pytest.raises(ValueError, match=expected):
        serving.peer_servers.names_of(given)


def test_a_peer_is_absent_until_its_environment_is_whole(serving: Any, tmp_path: Path) -> None:
    (tmp_path / "ray" / "bin").mkdir(parents=True)
    (tmp_path / "ray" / "bin" / "python").touch()  # an installation that broke off looks like this
    expected = f"ray: absent; it is installed by: benchmarks/serving/peers/setup.sh {tmp_path} ray"
    assert serving.peer_servers.absence("ray", tmp_path) == expected
    (tmp_path / "ray" / "ready").touch()
    assert serving.peer_servers.absence("ray", tmp_path) is None


def test_every_peer_has_its_server_its_pins_and_a_protocol_that_the_client_speaks(serving: Any) -> None:
    for name, peer in serving.peer_servers.PEERS.items():
        assert (FOLDER / "peers" / f"{name}_server.py").is_file()
        pins = [line for line in (FOLDER / "peers" / f"{name}.txt").read_text().splitlines() if line[:1] != "#"]
        assert pins
        assert all("==" in pin for pin in pins)
        assert peer.calls in serving.calls.CALLS


def test_the_set_up_names_the_peers_it_knows() -> None:
    done = subprocess.run(
        ["bash", str(FOLDER / "peers" / "setup.sh"), "unused", "triton"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "PEER: expected one of litserve, mlserver, ray, bentoml, got 'triton'" in done.stderr
    assert not Path("unused").exists()


def test_the_client_tells_a_rounding_from_a_wrong_answer(serving: Any) -> None:
    calls = serving.calls.Calls(request=bytes, call=None, answer=lambda body: np.frombuffer(body, np.float32))
    expected = np.linspace(-1, 1, 256, dtype=np.float32)
    serving.client.require_answer(calls, (expected + np.float32(1e-6)).tobytes(), expected, 3)
    with pytest.raises(serving.client.Wrong, match="row 3: expected the network's answer within 1e-05, it is off by"):
        serving.client.require_answer(calls, expected[::-1].tobytes(), expected, 3)
    with pytest.raises(serving.client.Wrong, match="row 3: expected the network's answer within 1e-05, it is off by"):
        serving.client.require_answer(calls, np.full(256, np.nan, np.float32).tobytes(), expected, 3)
    with pytest.raises(serving.client.Wrong, match="row 3: expected 256 numbers, got 255"):
        serving.client.require_answer(calls, expected[1:].tobytes(), expected, 3)


def test_a_tree_is_a_process_and_all_below_it(serving: Any) -> None:
    parents = {1: 0, 10: 1, 11: 10, 12: 11, 13: 10, 20: 1, 21: 20}
    assert serving.servers.tree(10, parents) == {10, 11, 12, 13}
    assert serving.servers.tree(21, parents) == {21}


def test_a_server_rests_wakes_and_leaves_no_process_behind(serving: Any, tmp_path: Path) -> None:
    script = 'sleep 600 & echo "{\\"listening\\": \\"$!\\"}"; wait'  # its child outlives SIGTERM to the shell
    server = serving.servers.Server(["sh", "-c", script], tmp_path / "log", rests=True)
    child = os.pidfd_open(int(server.address))
    try:
        server.rest()
        assert os.WIFSTOPPED(os.waitpid(server.process.pid, os.WUNTRACED)[1])
        server.wake()
        assert os.WIFCONTINUED(os.waitpid(server.process.pid, os.WCONTINUED)[1])
        server.rest()
        server.stop()
        assert server.process.returncode is not None
        ended = select.poll()
        ended.register(child, select.POLLIN)
        assert ended.poll(10_000)
    finally:
        server.stop()
        os.close(child)


def test_what_a_call_costs_the_client_is_told_beside_the_figures(serving: Any) -> None:
    figures = {"index": 0, "model": "m", "throughput": 1.0, "p50_ms": 1.0, "p99_ms": 1.0, "cpu_ms": 1.0}
    rounds = [
        serving.rows.Round(server=server, clients=clients, client_cpu_ms=spent, **figures)
        for server, clients, spent in (("a", 1, 0.1), ("a", 1, 0.3), ("a", 1, 0.2), ("a", 8, 0.5), ("b", 1, 0.4))
    ]
    assert serving.rows.spent_by_clients(rounds) == [
        "client's CPU ms per call of a, by callers: 0.20 at 1, 0.50 at 8",
        "client's CPU ms per call of b, by callers: 0.40 at 1",
    ]
