"""Pipeline parallelism: a causal LM cut between decoder layers into consecutive stages.

A stage is the model itself with only its own layers: the first keeps the embedding, the last the final norm and
the head. Stages of Llama's shape (embedding, layers, norm) are known by their `base_model_pp_plan`. Layers are
spread evenly, the later stages taking the remainder's lesser part since the last one also owns the head; over several
servers the plan says which stage has which.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from transformers import PreTrainedConfig

_SHAPE = {"embed_tokens", "layers", "norm"}


def unsupported(config: PreTrainedConfig, pp: int) -> str:
    """Why this model cannot be cut into `pp` stages; empty if it can."""
    plan: dict[str, Any] = getattr(config, "base_model_pp_plan", None) or {}
    if set(plan) != _SHAPE:
        return f"no pipeline plan of embedding, layers and norm is known for {config.model_type}"
    num_layers = int(config.num_hidden_layers)
    if num_layers < pp:
        return f"num_hidden_layers = {num_layers} is less than pp = {pp}"
    return ""


def layers_of(stage: int, num_stages: int, num_layers: int) -> range:
    """Consecutive layers of a stage; sizes differ by at most one, earlier stages take more."""
    base, extra = divmod(num_layers, num_stages)
    start = stage * base + min(stage, extra)
    return range(start, start + base + (stage < extra))


def split_layers(model: Any, stage: int, num_stages: int, layers: tuple[int, int] | None = None) -> int:
    """Keep only this stage's layers, in place: [first, end), or its even share. Returns their number.

    Raises ValueError where the layers given are not the model's: none, too many, or not its last at the last stage.
    """
    num_layers = int(model.config.num_hidden_layers)
    if num_stages == 1:
        return num_layers
    kept = layers_of(stage, num_stages, num_layers) if layers is None else range(*layers)
    is_last = stage == num_stages - 1
    if not kept or kept.stop > num_layers or (kept.stop == num_layers) != is_last or (kept.start == 0) != (stage == 0):
        law = f"expected stage {stage} of {num_stages} to have its part of num_hidden_layers = {num_layers}"
        raise ValueError(f"layers: {law}, got [{kept.start}, {kept.stop}); does the topology's model.layers agree?")
    body: Any = model.model
    body.layers = torch.nn.ModuleList(body.layers[i] for i in kept)
    for index in range(len(kept)):
        cast("Any", body.layers[index]).self_attn.layer_idx = index  # its place in this stage's cache
    if stage:
        body.embed_tokens = torch.nn.Identity()
    if stage < num_stages - 1:
        body.norm = torch.nn.Identity()
        model.lm_head = torch.nn.Identity()
    return len(kept)
