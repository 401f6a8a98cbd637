"""Real worker processes, spoken to as an agent does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from epara_executors.runners.arrays import text_array
from epara_executors.worker.frames import Frame
from epara_executors.worker.launch import Launcher, LaunchError
from epara_executors.worker.wire import Closed, pack, unpack

LLM = {"source": "tiny-llama", "task": "text-generation", "prompt_tokens": 16, "output_tokens": 16}
VIT = {"source": "tiny-vit", "task": "image-classification"}
BERT = {"source": "tiny-bert", "task": "feature-extraction"}


def pixels(rows: int = 1, side: int = 112) -> dict[str, np.ndarray]:
    return {"pixel_values": np.full((rows, 3, side, side), 0.5, np.float32)}


def text(words: str) -> dict[str, np.ndarray]:
    return {"text": text_array([words])}


def until(true: Callable[[], bool], deadline_s: float = 20.0) -> bool:
    """Poll; False if it did not come true in time."""
    end = time.monotonic() + deadline_s
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def test_the_agents_side_imports_no_torch() -> None:
    code = "import sys, epara_executors.worker.launch, epara_executors.profiler; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_tenants_say_what_they_take_and_give_and_share_the_worker(worker_of: Any) -> None:
    worker = worker_of()
    loaded = worker.load(worker.tenant(**LLM), worker.tenant(**VIT), worker.tenant(**BERT))
    assert loaded["tiny-vit@g"].fields["inputs"] == [["pixel_values", "FP32", [-1, 3, 112, 112]]]
    assert loaded["tiny-vit@g"].fields["outputs"] == [["logits", "FP32", [-1, 100]]]
    assert loaded["tiny-bert@g"].fields["outputs"] == [["embedding", "FP32", [-1, 192]]]
    assert loaded["tiny-llama@g"].fields["outputs"] == [["text", "BYTES", [1]], ["tokens", "INT64", [-1]]]
    for frame in loaded.values():
        assert frame.fields["memory_bytes"] > 1e6
        assert frame.fields["load_s"] > 0

    worker.send("g", "tiny-llama", text("hello"), max_tokens=40)
    worker.send("v", "tiny-vit", pixels(), pixels(2))
    worker.send("b", "tiny-bert", text("hello"))
    answers = {f.fields["id"]: (f, arrays) for f, arrays in (worker.result() for _ in range(3))}
    assert list(answers)[-1] == "g"  # batches take their turns between a generation's steps
    assert [a["logits"].shape for a in answers["v"][1]] == [(1, 100), (2, 100)]
    assert answers["g"][1][0]["tokens"].shape == (40,)
    assert answers["v"][0].fields["batch_ms"] > 0

    worker.wire.write(Frame("stop"))
    assert worker.handle.wait(20) == 0


def test_one_wrong_request_leaves_the_rest_of_its_batch_alone(worker_of: Any) -> None:
    worker = worker_of()
    worker.load(worker.tenant(**VIT))
    worker.send("v", "tiny-vit", pixels(), pixels(side=8), pixels())
    frame, _ = worker.result()
    heads = frame.fields["requests"]
    assert [h["ok"] for h in heads] == [True, False, True]
    assert heads[1]["code"] == "INVALID_ARGUMENT"
    assert "pixel_values: expected shape [-1, 3, 112, 112], got [1, 3, 8, 8]" in heads[1]["message"]
    worker.send("x", "nobody", pixels())
    assert worker.result()[0].fields["requests"][0]["code"] == "INTERNAL"


def test_generation_streams_cancels_and_takes_more_requests_than_slots(worker_of: Any) -> None:
    worker = worker_of()
    worker.load(worker.tenant(**LLM, batch=2))
    worker.send("s", "tiny-llama", text("stream"), max_tokens=8, stream=True)
    pieces: list[Frame] = []
    while (frame := worker.wire.read()).type == "token":
        pieces.append(frame)
    assert [p.fields["index"] for p in pieces] == list(range(8))
    assert [p.fields["done"] for p in pieces] == [False] * 7 + [True]
    assert pieces[-1].fields["finish_reason"] == frame.fields["requests"][0]["finish_reason"] == "length"

    worker.send("long", "tiny-llama", text("never ends"), max_tokens=1900)
    for i in range(4):
        worker.send(f"q{i}", "tiny-llama", text("short"), max_tokens=3)
    worker.wire.write(Frame("cancel", {"replica": "tiny-llama@g", "id": "long"}))
    assert [worker.result()[0].fields["id"] for _ in range(4)] == [f"q{i}" for i in range(4)]

    worker.send("bad", "tiny-llama", text("x"), max_tokens=-1)
    assert worker.result()[0].fields["requests"][0]["code"] == "INVALID_ARGUMENT"


def test_stop_finishes_what_is_in_flight(worker_of: Any) -> None:
    worker = worker_of()
    worker.load(worker.tenant(**LLM))
    worker.send("g", "tiny-llama", text("last words"), max_tokens=30)
    worker.wire.write(Frame("stop"))
    assert worker.result()[1][0]["tokens"].shape == (30,)
    assert worker.handle.wait(20) == 0
    assert not worker.handle.alive()


def test_a_second_load_adds_tunes_and_drops_tenants(worker_of: Any) -> None:
    worker = worker_of()
    worker.load(worker.tenant(**LLM), worker.tenant(**VIT))
    changed = worker.load(worker.tenant(**{**LLM, "batch": 8}), worker.tenant(**BERT))
    assert set(changed) == {"tiny-llama@g", "tiny-bert@g"}
    worker.send("v", "tiny-vit", pixels())
    assert worker.result()[0].fields["requests"][0]["code"] == "INTERNAL"
    worker.wire.write(Frame("tune", {"replica": "tiny-llama@g", "batch": 3, "frames": 1}))
    for i in range(8):
        worker.send(f"g{i}", "tiny-llama", text("hi"), max_tokens=4)
    tokens = [worker.result()[1][0]["tokens"].tolist() for _ in range(8)]
    assert all(t == tokens[0] for t in tokens)


@pytest.mark.parametrize(
    ("tenant", "message"),
    [
        ({"source": "nowhere/at-all", "task": "image-classification"}, "model nowhere/at-all: no folder"),
        ({"source": "tiny-vit", "task": "juggling"}, "expected a task of text-generation"),
        ({"source": "tiny-bert", "task": "text-generation"}, "expected a causal language model, got BertModel"),
    ],
)
def test_what_cannot_be_loaded_fails_with_its_reason_and_ends(
    worker_of: Any, tenant: dict[str, str], message: str
) -> None:
    worker = worker_of()
    answers = worker.load(worker.tenant(**tenant))
    assert message in answers["failed"].fields["detail"]
    assert worker.handle.wait(20) == 1


def test_a_worker_whose_agent_leaves_ends_in_the_middle_of_its_work(worker_of: Any) -> None:
    worker = worker_of()
    worker.load(worker.tenant(**LLM))
    worker.send("g", "tiny-llama", text("never ends"), max_tokens=1900)
    worker.connection.close()
    assert worker.handle.wait(20) == 3


def test_a_killed_worker_is_noticed(worker_of: Any) -> None:
    worker = worker_of()
    worker.load(worker.tenant(**VIT))
    os.kill(worker.handle.pid, signal.SIGKILL)
    assert worker.handle.wait(20) == -signal.SIGKILL
    with pytest.raises(Closed):
        worker.wire.read()


@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_rank_dies_all_die(worker_of: Any, victim: int) -> None:
    worker = worker_of(tp=2)
    assert "tiny-bert@g" in worker.load(worker.tenant(**BERT))
    os.kill(worker.handle.pids[victim], signal.SIGKILL)
    assert worker.handle.wait(20) == -signal.SIGKILL
    assert until(lambda: not any(map(psutil.pid_exists, worker.handle.pids)))


def test_no_process_outlives_an_agent_that_was_killed(tmp_path: Path) -> None:
    """The agent is a process of its own here; its fork server and two ranks must go with it."""
    code = f"""
import socket, sys
from pathlib import Path
from epara_executors.worker.launch import Launcher
launcher = Launcher(Path({str(tmp_path)!r}))
launcher.start()
listener = socket.socket(socket.AF_UNIX)
listener.bind({str(tmp_path / "s")!r})
listener.listen()
group = {{"group": "g", "device_kind": "cpu", "devices": [0, 1], "tp": 2, "pp": 1}}
handle = launcher.launch(group, {str(tmp_path / "s")!r})
kept = listener.accept()
print(*handle.pids, flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as agent:
        if agent.stdout is None:
            raise ValueError("expected a pipe")
        pids = [int(p) for p in agent.stdout.readline().split()]
        family = [p.pid for p in psutil.Process(agent.pid).children(recursive=True)]
        assert set(pids) < set(family)
        agent.kill()
    assert until(lambda: not any(map(psutil.pid_exists, family)))


def test_a_group_that_does_not_add_up_is_refused(tmp_path: Path) -> None:
    group = {"group": "g", "device_kind": "cpu", "devices": [0], "tp": 2, "pp": 1}
    with pytest.raises(LaunchError, match=r"group g: expected tp \* pp = 2 devices, got \[0\]"):
        Launcher(tmp_path).launch(group, "")


def test_a_frame_in_one_piece_survives_and_a_torn_one_is_refused() -> None:
    frame = Frame("step", {"tokens": [[1, 2]], "moves": []})
    assert unpack(pack(frame)).fields == frame.fields
    with pytest.raises(ValueError, match=r"frame: expected one in \d+ bytes"):
        unpack(pack(frame) + b"x")
