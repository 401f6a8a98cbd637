"""Which runner serves a task, and in which (tp, pp) shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from epara_executors import pipeline, sharding
from epara_executors.runners.batches import OnePassRunner
from epara_executors.runners.contract import UnsupportedShape
from epara_executors.runners.decoder import DecoderPart, cache_unsupported
from epara_executors.runners.embedding import EmbeddingRunner
from epara_executors.runners.exported import TASK as TENSOR
from epara_executors.runners.exported import ExportedRunner
from epara_executors.runners.images import ClassificationRunner, DetectionRunner, SegmentationRunner
from epara_executors.runners.loading import read_config
from epara_executors.runners.speech import SpeechRunner
from epara_executors.worker.ranks import Ranks

GENERATION = "text-generation"

_ONE_PASS: Mapping[str, Callable[..., OnePassRunner]] = {
    "image-segmentation": SegmentationRunner,
    "image-classification": ClassificationRunner,
    "object-detection": DetectionRunner,
    "feature-extraction": EmbeddingRunner,
    "automatic-speech-recognition": SpeechRunner,
    TENSOR: ExportedRunner,
}
TASKS = (GENERATION, *_ONE_PASS)


def unsupported(task: str, config: PreTrainedConfig, tp: int, pp: int) -> str:
    """Why this task cannot run this model over tp x pp processes; empty if it can."""
    if task not in TASKS:
        return f"expected a task of {', '.join(TASKS)}, got {task}"
    if tp < 1 or pp < 1:
        return f"expected tp >= 1 and pp >= 1, got {tp} and {pp}"
    if task == GENERATION and (why := cache_unsupported(config)):
        return why
    if tp > 1:
        if task == "automatic-speech-recognition":
            return f"{task} runs on one device only"
        if why := sharding.unsupported(config, tp):
            return why
    if pp > 1:
        if task != GENERATION:
            return f"pipeline stages are served for {GENERATION} only, not for {task}"
        if why := pipeline.unsupported(config, pp):
            return why
    return ""


def supported_shapes(task: str, config: PreTrainedConfig, max_devices: int = 8) -> list[tuple[int, int]]:
    """Every (tp, pp) within `max_devices`, powers of two for tp, that a worker can load; profilers ask this."""
    tps = [t for t in (1, 2, 4, 8, 16) if t <= max_devices]
    shapes = [(tp, pp) for tp in tps for pp in range(1, max_devices // tp + 1)]
    return [(tp, pp) for tp, pp in shapes if not unsupported(task, config, tp, pp)]


def refuse_unsupported(task: str, source: str, model_root: Path, tp: int, pp: int) -> PreTrainedConfig:
    """The model's config. Raises UnsupportedShape when tp x pp cannot be served."""
    config = read_config(source, model_root)
    if why := unsupported(task, config, tp, pp):
        raise UnsupportedShape(f"model {source} as {task} with tp={tp} pp={pp}: {why}")
    return config


def open_one_pass(
    task: str, source: str, model_root: Path, device: torch.device, ranks: Ranks, *, prompt_tokens: int = 0
) -> OnePassRunner:
    """A runner of one of the one-pass tasks, sharded if the group is. Raises LoadError."""
    if task == TENSOR:  # no config of transformers describes it
        if ranks.world > 1:
            raise UnsupportedShape(f"model {source}: exported programs run on one device only")
    else:
        refuse_unsupported(task, source, model_root, ranks.tp, ranks.pp)
    extra: dict[str, Any] = {"prompt_tokens": prompt_tokens} if task == "feature-extraction" else {}
    runner = _ONE_PASS[task](source, model_root, torch.device("cpu"), **extra)
    if ranks.tp > 1:
        sharding.shard(runner.model, ranks.tp_rank, ranks.tp, ranks.tp_group)
    runner.move_to(device)
    return runner


def open_decoder(source: str, model_root: Path, device: torch.device, ranks: Ranks) -> DecoderPart:
    """This rank's part of a causal LM. Raises LoadError."""
    refuse_unsupported(GENERATION, source, model_root, ranks.tp, ranks.pp)
    return DecoderPart(source, model_root, device, ranks)
