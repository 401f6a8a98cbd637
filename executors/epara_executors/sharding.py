"""Tensor parallelism: shard an existing transformers model from outside, one pair of linear layers at a time.

A column-wise layer keeps a slice of its outputs (attention heads, hidden units), the row-wise layer after it keeps
the matching slice of its inputs, and one all-reduce adds up the partial sums (Megatron-LM, Shoeybi et al. 2019; the
idea of doing so to a finished model is gpt-fast's). Which layer is which is the model's own plan where transformers
has one (`base_model_tp_plan`, `_tp_plan`), else the table below for encoders that have none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.distributed as dist
from transformers import PreTrainedConfig

COLUMN, ROW, GATHERED = "colwise", "rowwise", "colwise_gather_output"

_BERT_LIKE = {
    r"attention\.(self|attention)\.(query|key|value)": COLUMN,
    r"attention\.output\.dense": ROW,
    r"intermediate\.dense": COLUMN,
    r"(?<!attention\.)output\.dense": ROW,
}
_VIT_LIKE = {
    r"attention\.(q|k|v)_proj": COLUMN,
    r"attention\.o_proj": ROW,
    r"mlp\.fc1": COLUMN,
    r"mlp\.fc2": ROW,
}
_ENCODER_PLANS: Mapping[str, Mapping[str, str]] = {
    "bert": {rf"layer\.\d+\.{k}": v for k, v in _BERT_LIKE.items()},
    "yolos": {rf"layer\.\d+\.{k}": v for k, v in _BERT_LIKE.items()},
    "vit": {rf"layers\.\d+\.{k}": v for k, v in _VIT_LIKE.items()},
}


def plan_of(config: PreTrainedConfig) -> dict[str, str]:
    """Patterns of module names (matched at their end) and how each is sharded; empty where nobody knows."""
    if config.model_type in _ENCODER_PLANS:
        return dict(_ENCODER_PLANS[config.model_type])
    plan = cast("dict[str, str] | None", getattr(config, "base_model_tp_plan", None)) or {}
    patterns = {re.escape(k).replace(r"\*", r"\d+"): v for k, v in plan.items()}
    return {**patterns, "lm_head": GATHERED} if patterns else {}


def unsupported(config: PreTrainedConfig, tp: int) -> str:
    """Why this model cannot be sharded over `tp` ranks; empty if it can."""
    plan = plan_of(config)
    if not plan:
        return f"no tensor-parallel plan is known for {config.model_type}"
    odd = sorted(set(plan.values()) - {COLUMN, ROW, GATHERED})
    if odd:
        return f"the tensor-parallel plan of {config.model_type} needs {', '.join(odd)}"
    sizes = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
    for key in sizes:
        value = getattr(config, key, None)
        if value is not None and int(value) % tp:
            return f"{key} = {value} is not a multiple of tp = {tp}"
    return ""


class RowLinear(torch.nn.Module):
    """A linear layer that holds some of its input columns: partial sums, added up over the ranks, then the bias."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, group: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else torch.nn.Parameter(bias, requires_grad=False)
        self._group = group

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in / tp) to (..., out), equal on all ranks."""
        partial = torch.nn.functional.linear(x, self.weight)
        dist.all_reduce(partial, group=self._group)
        return partial if self.bias is None else partial + self.bias


class GatheredLinear(torch.nn.Module):
    """A linear layer that holds some of its output rows and collects the others'."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, group: Any, tp: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else torch.nn.Parameter(bias, requires_grad=False)
        self._group, self._tp = group, tp

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out), equal on all ranks."""
        mine = torch.nn.functional.linear(x, self.weight, self.bias).contiguous()
        parts = [torch.empty_like(mine) for _ in range(self._tp)]
        dist.all_gather(parts, mine, group=self._group)
        return torch.cat(parts, dim=-1)


def shard(model: torch.nn.Module, tp_rank: int, tp: int, group: Any) -> int:
    """Replace the planned linear layers by this rank's slices, in place. Returns how many were replaced.

    Raises
    ------
    ValueError
        When the plan names no layer of this model, or its pairs do not match.
    """
    config = cast("PreTrainedConfig", model.config)
    plan = [(re.compile(rf"(^|\.)({pattern})$"), kind) for pattern, kind in plan_of(config).items()]
    found: dict[str, int] = {COLUMN: 0, ROW: 0, GATHERED: 0}
    attentions: dict[str, torch.nn.Module] = {}
    for name, module in list(model.named_modules()):
        kind = next((k for pattern, k in plan if pattern.search(name)), None)
        if kind is None or not isinstance(module, torch.nn.Linear):
            continue
        if kind == GATHERED and module.out_features % tp:
            continue  # an odd vocabulary: every rank keeps the whole head
        parent_name, _, attribute = name.rpartition(".")
        parent = model.get_submodule(parent_name) if parent_name else model
        setattr(parent, attribute, _sliced(module, kind, tp_rank, tp, group))
        found[kind] += 1
        if kind == COLUMN:
            attentions[parent_name] = parent
    for parent in attentions.values():
        for key in ("num_attention_heads", "all_head_size"):
            value = getattr(parent, key, None)  # of attention modules that reshape by them
            if isinstance(value, int):
                setattr(parent, key, value // tp)
    if not found[COLUMN] or not found[ROW]:
        raise ValueError(f"{config.model_type}: expected layers named by the tensor-parallel plan, found {found}")
    return sum(found.values())


def _sliced(linear: torch.nn.Linear, kind: str, tp_rank: int, tp: int, group: Any) -> torch.nn.Module:
    bias_kept = cast("torch.nn.Parameter | None", linear.bias)
    weight, bias = linear.weight.data, None if bias_kept is None else bias_kept.data
    if kind == ROW:
        return RowLinear(weight.chunk(tp, dim=1)[tp_rank].clone(), None if bias is None else bias.clone(), group)
    rows = weight.chunk(tp, dim=0)[tp_rank].clone()
    part = None if bias is None else bias.chunk(tp, dim=0)[tp_rank].clone()
    if kind == GATHERED:
        return GatheredLinear(rows, part, group, tp)
    slim = torch.nn.Linear(rows.shape[1], rows.shape[0], bias=part is not None, device="meta")
    slim.weight = torch.nn.Parameter(rows, requires_grad=False)
    if part is not None:
        slim.bias = torch.nn.Parameter(part, requires_grad=False)
    return slim
