"""Tensor parallelism over two real processes against one process.

Tolerance: 1e-3 absolute on outputs of order one; the all-reduce adds in another order. Greedy tokens must agree.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from epara_executors.runners.arrays import text_array
from epara_executors.runners.contract import UnsupportedShape
from epara_executors.runners.loading import read_config
from epara_executors.runners.registry import open_one_pass, refuse_unsupported
from epara_executors.sharding import shard, unsupported
from epara_executors.worker.ranks import alone
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, ResNetConfig

ENCODERS = [
    ("tiny-vit", "image-classification", "logits"),
    ("tiny-yolos", "object-detection", "pred_boxes"),
    ("tiny-bert", "feature-extraction", "embedding"),
]


def test_two_ranks_answer_as_one_process_does(worker_of: Any, tiny_root: Path) -> None:
    worker = worker_of(tp=2)
    llm = worker.tenant("tiny-llama", "text-generation", batch=3)
    loaded = worker.load(llm, *(worker.tenant(source, task) for source, task, _ in ENCODERS))
    model = AutoModelForCausalLM.from_pretrained(tiny_root / "tiny-llama").eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_root / "tiny-llama")
    prompts = ["hello", "the quick brown fox", "a", "más vale tarde"]
    for i, prompt in enumerate(prompts):
        worker.send(str(i), "tiny-llama", {"text": text_array([prompt])}, max_tokens=10 + 3 * i)
    answers = {f.fields["id"]: a[0]["tokens"].tolist() for f, a in (worker.result() for _ in prompts)}
    for i, prompt in enumerate(prompts):
        given = tokenizer(prompt, return_tensors="pt")
        direct = model.generate(**given, max_new_tokens=10 + 3 * i, do_sample=False)[0, given["input_ids"].shape[1] :]
        assert answers[str(i)] == direct.tolist()

    for source, task, name in ENCODERS:
        runner = open_one_pass(task, source, tiny_root, torch.device("cpu"), alone())
        requests = [runner.example(1), runner.example(2)]
        worker.send(source, source, *(dict(r.inputs) for r in requests))
        _, arrays = worker.result()
        for ours, direct in zip(arrays, runner.run(requests), strict=True):
            np.testing.assert_allclose(ours[name], direct.outputs[name], atol=1e-3)
        # Each rank holds about half of the layers and all of the embeddings.
        assert loaded[f"{source}@g"].fields["memory_bytes"] < 1.3 * runner.parameter_bytes + 2e6

    worker.send("bad", "tiny-vit", {"pixel_values": np.zeros((1, 3, 8, 8), np.float32)})
    assert worker.result()[0].fields["requests"][0]["code"] == "INVALID_ARGUMENT"
    worker.send("bad", "tiny-llama", {"text": text_array(["x"])}, max_tokens=99999)
    assert worker.result()[0].fields["requests"][0]["code"] == "INVALID_ARGUMENT"


def test_a_model_without_a_plan_fails_at_load_with_the_reason(worker_of: Any) -> None:
    worker = worker_of(tp=2)
    answers = worker.load(worker.tenant("tiny-segformer", "image-segmentation"))
    assert answers["failed"].fields["detail"] == (
        "model tiny-segformer as image-segmentation with tp=2 pp=1: no tensor-parallel plan is known for segformer"
    )
    assert answers["failed"].fields["unsupported"]
    assert worker.handle.wait(20) == 1


def test_heads_that_do_not_divide_are_refused(tiny_root: Path) -> None:
    config = read_config("tiny-llama", tiny_root)
    assert unsupported(config, 2) == ""
    assert unsupported(config, 4) == "num_attention_heads = 6 is not a multiple of tp = 4"
    with pytest.raises(UnsupportedShape, match="num_attention_heads = 6 is not a multiple of tp = 4"):
        refuse_unsupported("text-generation", "tiny-llama", tiny_root, 4, 1)


def test_slices_of_all_ranks_make_up_the_whole_model() -> None:
    """No process needed: the shards' slices, put together, are the original weights."""
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
    )
    torch.manual_seed(0)
    whole = LlamaForCausalLM(config)
    state = whole.state_dict()
    parts = []
    for rank in range(2):
        part = LlamaForCausalLM(config)
        part.load_state_dict(state)
        assert shard(part, rank, 2, None) == 8  # seven of the layer, and the head
        parts.append(part.state_dict())
    for name, dim in (
        ("model.layers.0.self_attn.q_proj.weight", 0),
        ("model.layers.0.self_attn.o_proj.weight", 1),
        ("model.layers.0.mlp.up_proj.weight", 0),
        ("model.layers.0.mlp.down_proj.weight", 1),
        ("lm_head.weight", 0),
    ):
        assert torch.equal(torch.cat([p[name] for p in parts], dim=dim), state[name])


def test_a_family_nobody_planned_for_is_said_so() -> None:
    assert unsupported(ResNetConfig(), 2) == "no tensor-parallel plan is known for resnet"
