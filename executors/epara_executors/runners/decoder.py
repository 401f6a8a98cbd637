"""A decoder LLM, or this process's part of it, over slot caches.

A step names slots, tokens and positions and nothing else, so the same order runs on every rank: tensor-parallel
ranks run it side by side, pipeline stages one after the other on the activations of the stage before.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from epara_executors.pipeline import split_layers
from epara_executors.runners.contract import LoadError
from epara_executors.runners.loading import read_config, read_model
from epara_executors.runners.slots import SlotCache
from epara_executors.sharding import shard
from epara_executors.worker.frames import Frame
from epara_executors.worker.ranks import Ranks
from epara_executors.worker.scheduler import Work


@dataclass(frozen=True, slots=True)
class Step:
    """Feed tokens to consecutive slots of one group. Rows of one token may be of different lengths."""

    group: int
    slot: int  # of the first row
    tokens: tuple[tuple[int, ...], ...]  # (rows, width)
    starts: tuple[int, ...]  # (rows,) position of each row's first token
    moves: tuple[tuple[int, int], ...] = ()  # slots to copy first

    @staticmethod
    def of(work: Work) -> Step:
        if work.is_prompt:
            (sequence,) = work.sequences
            return Step(work.group, work.slot, (sequence.prompt,), (0,), work.moves)
        tokens = tuple((s.tokens[-1],) for s in work.sequences)
        return Step(work.group, work.slot, tokens, tuple(s.length - 1 for s in work.sequences), work.moves)

    def frame(self, replica: str) -> Frame:
        fields = {"group": self.group, "slot": self.slot, "tokens": self.tokens, "starts": self.starts}
        return Frame("step", {**fields, "moves": self.moves, "replica": replica})

    @staticmethod
    def from_fields(fields: Mapping[str, Any]) -> Step:
        return Step(
            int(fields["group"]),
            int(fields["slot"]),
            tuple(tuple(row) for row in fields["tokens"]),
            tuple(fields["starts"]),
            tuple((int(a), int(b)) for a, b in fields["moves"]),
        )


class DecoderPart:
    """The layers and heads of a causal LM that this rank owns, and their slot caches (one per slot group)."""

    def __init__(self, source: str, model_root: Path, device: torch.device, ranks: Ranks, *, capacity: int) -> None:
        self.config = read_config(source, model_root)
        if why := slots_unsupported(self.config):
            raise LoadError(f"model {source}: {why}")
        self.ranks = ranks
        self.device = device
        self.model: Any = read_model(AutoModelForCausalLM, source, model_root, self.config)
        # Weights are mapped from the file, so layers that are dropped before anything reads them take no memory.
        self.num_layers = split_layers(self.model, ranks.stage, ranks.pp, ranks.layers)
        if ranks.tp > 1:
            shard(self.model, ranks.tp_rank, ranks.tp, ranks.tp_group)
        self.model.to(device)
        self.dtype: torch.dtype = next(self.model.parameters()).dtype
        self.hidden_size = int(self.config.hidden_size)
        self.vocab_size = int(self.config.vocab_size)
        # Logits of a whole prompt would be large, and all but the last row's are thrown away.
        can_keep = "logits_to_keep" in inspect.signature(self.model.forward).parameters
        self._only_last = {"logits_to_keep": 1} if can_keep else {}
        self._capacity = capacity
        self._caches: list[SlotCache] = []

    def resize(self, num_slots: int, num_groups: int) -> None:
        """Make room for this many slots per group; room once made is kept."""
        for cache in self._caches:
            if num_slots > cache.slot_layers[0].num_slots:
                cache.resize(num_slots)
        while len(self._caches) < num_groups:
            self._caches.append(SlotCache(self.num_layers, num_slots, self._capacity, self.device))

    @torch.inference_mode()
    def run(self, step: Step, hidden: torch.Tensor | None = None) -> torch.Tensor:
        """Run this rank's layers.

        Parameters
        ----------
        hidden
            Activations of the stage before, (rows, width, d); None on the first stage.

        Returns
        -------
        Logits of each row's last token, (rows, vocabulary), on the last stage; else activations.
        """
        cache = self._caches[step.group]
        for source, target in step.moves:
            cache.move(source, target)
        positions, mask = cache.aim(step.slot, step.starts, len(step.tokens[0]))
        if hidden is None:
            given: dict[str, Any] = {"input_ids": torch.tensor(step.tokens, dtype=torch.long, device=self.device)}
        else:
            given = {"inputs_embeds": hidden}
        given |= {"attention_mask": mask, "position_ids": positions, "past_key_values": cache, "use_cache": True}
        if self.ranks.pp == 1:  # no stage to cut: any causal LM of transformers will do
            return cast("torch.Tensor", self.model(**given, **self._only_last).logits[:, -1]).float()
        made = self.model.model(**given).last_hidden_state
        if not self.ranks.is_last_stage:
            return cast("torch.Tensor", made)
        return cast("torch.Tensor", self.model.lm_head(made[:, -1])).float()

    def follow(self, step: Step) -> None:
        """What a rank other than 0 does for a step: take activations if it must, run, pass on what comes out."""
        shape = (len(step.tokens), len(step.tokens[0]), self.hidden_size)
        hidden = self.ranks.receive_activations(shape, self.dtype, self.device) if self.ranks.stage else None
        made = self.run(step, hidden)
        if not self.ranks.is_last_stage:
            self.ranks.send_activations(made)
        elif self.ranks.stage and self.ranks.tp_rank == 0:
            self.ranks.send_logits(made)


def slots_unsupported(config: PreTrainedConfig) -> str:
    """Why a slot cache cannot serve this model; empty if it can."""
    kinds: Sequence[str] = getattr(config, "layer_types", None) or ()
    other = sorted({k for k in kinds if k != "full_attention"})
    if other:
        return f"expected decoder layers of full attention only, got {', '.join(other)}"
    window = getattr(config, "sliding_window", None)
    uses_window = bool(getattr(config, "use_sliding_window", True))
    if window and uses_window and not kinds and int(window) < int(getattr(config, "max_position_embeddings", 0)):
        return f"expected full attention, got a sliding window of {window} tokens"
    if getattr(config, "is_encoder_decoder", False):
        return "expected a decoder-only model, got an encoder-decoder"
    names: Sequence[str] = getattr(config, "architectures", None) or ()
    if names and not any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names):
        return f"expected a causal language model, got {', '.join(names)}"
    return ""
