"""Pipeline stages over two real processes against one process: greedy tokens must agree exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from epara_executors.pipeline import layers_of, unsupported
from epara_executors.runners.arrays import text_array
from epara_executors.runners.loading import read_config
from epara_executors.worker.frames import Frame
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = ["hello", "the quick brown fox jumps", "a", "más vale tarde", "zz top", "x" * 40, "42"]


def expected(root: Path) -> dict[str, list[int]]:
    model = AutoModelForCausalLM.from_pretrained(root / "tiny-llama").eval()
    tokenizer = AutoTokenizer.from_pretrained(root / "tiny-llama")
    found: dict[str, list[int]] = {}
    for i, prompt in enumerate(PROMPTS):
        given = tokenizer(prompt, return_tensors="pt")
        made = model.generate(**given, max_new_tokens=8 + 3 * i, do_sample=False)
        found[str(i)] = made[0, given["input_ids"].shape[1] :].tolist()
    return found


@pytest.mark.parametrize(("tp", "pp"), [(1, 2), (2, 2)])
def test_stages_generate_what_the_whole_model_does(worker_of: Any, tiny_root: Path, tp: int, pp: int) -> None:
    worker = worker_of(tp=tp, pp=pp)
    worker.load(worker.tenant("tiny-llama", "text-generation", batch=2))
    for i, prompt in enumerate(PROMPTS):
        worker.send(str(i), "tiny-llama", {"text": text_array([prompt])}, max_tokens=8 + 3 * i)
    answers = {f.fields["id"]: a[0]["tokens"].tolist() for f, a in (worker.result() for _ in PROMPTS)}
    assert answers == expected(tiny_root)
    worker.wire.write(Frame("cancel", {"replica": "tiny-llama@g", "id": "nobody"}))
    worker.wire.write(Frame("stop"))
    assert worker.handle.wait(20) == 0


def stage(server: str, first: int, end: int, *devices: int) -> dict[str, Any]:
    layers = {"first_layer": first, "end_layer": end}
    return {"server": server, "address": "127.0.0.1:1", "device_kind": "cpu", "devices": list(devices), **layers}


def test_stages_that_meet_over_tcp_generate_what_the_whole_model_does(worker_of: Any, tiny_root: Path) -> None:
    """Layers as told, unlike numbers of ranks, two stages at one of two servers. Tokens agree exactly."""
    stages = [stage("a", 0, 1, 0), stage("b", 1, 3, 0, 1), stage("a", 3, 4, 1)]
    worker = worker_of(stages=stages)
    loaded = worker.load(worker.tenant("tiny-llama", "text-generation", batch=2))["tiny-llama@g"].fields
    assert len(loaded["stage_bytes"]) == len(stages)
    assert loaded["memory_bytes"] == loaded["stage_bytes"][0]
    for i, prompt in enumerate(PROMPTS):
        worker.send(str(i), "tiny-llama", {"text": text_array([prompt])}, max_tokens=8 + 3 * i)
    answers = {f.fields["id"]: a[0]["tokens"].tolist() for f, a in (worker.result() for _ in PROMPTS)}
    assert answers == expected(tiny_root)
    worker.wire.write(Frame("stop"))
    assert [h.wait(20) for h in (worker.handle, *worker.others)] == [0, 0]


def test_layers_that_are_not_the_models_are_refused_at_the_stage_that_has_them(worker_of: Any) -> None:
    worker = worker_of(stages=[stage("a", 0, 2, 0), stage("b", 2, 6, 0)])
    answers = worker.load(worker.tenant("tiny-llama", "text-generation"))
    law = "stage 1: layers: expected stage 1 of 2 to have its part of num_hidden_layers = 4, got [2, 6)"
    assert law in answers["failed"].fields["detail"]


def test_encoders_are_not_cut_and_say_so(worker_of: Any) -> None:
    worker = worker_of(pp=2)
    answers = worker.load(worker.tenant("tiny-vit", "image-classification"))
    assert "pipeline stages are served for text-generation only" in answers["failed"].fields["detail"]


@pytest.mark.parametrize(("num_stages", "num_layers"), [(1, 4), (2, 4), (2, 5), (3, 4), (5, 5)])
def test_stages_cover_every_layer_once_and_evenly(num_stages: int, num_layers: int) -> None:
    stages = [layers_of(s, num_stages, num_layers) for s in range(num_stages)]
    assert [i for stage in stages for i in stage] == list(range(num_layers))
    assert max(map(len, stages)) - min(map(len, stages)) <= 1


def test_more_stages_than_layers_are_refused(tiny_root: Path) -> None:
    assert unsupported(read_config("tiny-llama", tiny_root), 5) == "num_hidden_layers = 4 is less than pp = 5"
    assert "no pipeline plan" in unsupported(read_config("tiny-bert", tiny_root), 2)
