"""A decoder LLM, or this process's part of it, over a paged cache.

A step names blocks, tokens and positions and nothing else, so the same order runs on every rank: tensor-parallel
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
from epara_executors.runners.paged import PagedCache
from epara_executors.sharding import shard
from epara_executors.worker.frames import Frame
from epara_executors.worker.ranks import Ranks
from epara_executors.worker.scheduler import Work


@dataclass(frozen=True, slots=True)
class Step:
    """Feed tokens to sequences: whole prompts, or one token to each."""

    tokens: tuple[tuple[int, ...], ...]  # (rows, their own number of tokens)
    starts: tuple[int, ...]  # (rows,) position of each row's first token
    tables: tuple[tuple[int, ...], ...]  # (rows, their own number of blocks) of the cache

    @staticmethod
    def of(work: Work) -> Step:
        tables = tuple(tuple(s.blocks) for s in work.sequences)
        if work.is_prompt:  # what was generated already comes with a prompt that is taken in again
            return Step(tuple((*s.prompt, *s.tokens) for s in work.sequences), (0,) * len(tables), tables)
        tokens = tuple((s.tokens[-1],) for s in work.sequences)
        return Step(tokens, tuple(s.length - 1 for s in work.sequences), tables)

    @property
    def is_prompt(self) -> bool:
        return max(self.starts) == 0

    @property
    def shape(self) -> tuple[int, int]:
        """Of the pass: prompts one after the other in a single row, or a row for each token."""
        return (1, sum(map(len, self.tokens))) if self.is_prompt else (len(self.tokens), 1)

    def of_rows(self, rows: Sequence[int]) -> Step:
        return Step(
            tuple(self.tokens[r] for r in rows),
            tuple(self.starts[r] for r in rows),
            tuple(self.tables[r] for r in rows),
        )

    def frame(self, replica: str) -> Frame:
        fields = {"tokens": self.tokens, "starts": self.starts, "tables": self.tables}
        return Frame("step", {**fields, "replica": replica})

    @staticmethod
    def from_fields(fields: Mapping[str, Any]) -> Step:
        return Step(
            tuple(tuple(row) for row in fields["tokens"]),
            tuple(fields["starts"]),
            tuple(tuple(row) for row in fields["tables"]),
        )


class DecoderPart:
    """The layers and heads of a causal LM that this rank owns, and their cache."""

    def __init__(self, source: str, model_root: Path, device: torch.device, ranks: Ranks) -> None:
        self.config = read_config(source, model_root)
        if why := cache_unsupported(self.config):
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
        self._keeps_logits = "logits_to_keep" in inspect.signature(self.model.forward).parameters
        self.cache: PagedCache | None = None

    def resize(self, num_blocks: int) -> None:
        """A cache of this many blocks; blocks that stay keep their content."""
        if self.cache is None:
            self.cache = PagedCache(self.num_layers, num_blocks, self.device)
        elif num_blocks != self.cache.num_blocks:
            self.cache.resize(num_blocks)

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
        if self.cache is None:
            raise ValueError("decoder: expected a cache before the first step")
        parts = [] if step.is_prompt else self.cache.rows_at_once([start + 1 for start in step.starts])
        if len(parts) < 2:
            return self._pass(self.cache, step, hidden)
        made = [self._pass(self.cache, step.of_rows(p), None if hidden is None else hidden[p]) for p in parts]
        order = sorted((row, at) for at, row in enumerate(row for part in parts for row in part))
        return torch.cat(made)[[at for _, at in order]]

    def _pass(self, cache: PagedCache, step: Step, hidden: torch.Tensor | None) -> torch.Tensor:
        lengths = [len(row) for row in step.tokens]
        if step.is_prompt:
            positions, seen = cache.aim_prompts(step.tables, lengths)
            mask = None if seen is None else self._additive(seen)
            ends = torch.tensor(lengths, device=self.device).cumsum(0) - 1
        else:
            positions, mask = cache.aim_steps(step.tables, step.starts)
            ends = torch.zeros(1, dtype=torch.long, device=self.device)
        if hidden is None:
            tokens = torch.tensor([t for row in step.tokens for t in row], dtype=torch.long, device=self.device)
            given: dict[str, Any] = {"input_ids": tokens.view(step.shape)}
        else:
            given = {"inputs_embeds": hidden}
        given |= {"attention_mask": mask, "position_ids": positions, "past_key_values": cache, "use_cache": True}
        if self.ranks.pp == 1:  # no stage to cut: any causal LM of transformers will do
            if self._keeps_logits:
                logits = self.model(**given, logits_to_keep=ends).logits
            else:
                logits = self.model(**given).logits[:, ends]
            return cast("torch.Tensor", logits.reshape(len(lengths), -1)).float()
        made = self.model.model(**given).last_hidden_state
        if not self.ranks.is_last_stage:
            return cast("torch.Tensor", made)
        return cast("torch.Tensor", self.model.lm_head(made[:, ends].reshape(len(lengths), -1))).float()

    def _additive(self, seen: torch.Tensor) -> torch.Tensor:
        """A mask that every kind of attention takes: added to the scores."""
        return torch.zeros_like(seen, dtype=self.dtype).masked_fill_(~seen, torch.finfo(self.dtype).min)

    def follow(self, step: Step) -> None:
        """What a rank other than 0 does for a step: take activations if it must, run, pass on what comes out."""
        shape = (*step.shape, self.hidden_size)
        hidden = self.ranks.receive_activations(shape, self.dtype, self.device) if self.ranks.stage else None
        made = self.run(step, hidden)
        if not self.ranks.is_last_stage:
            self.ranks.send_activations(made)
        elif self.ranks.stage and self.ranks.tp_rank == 0:
            self.ranks.send_logits(made)


def cache_unsupported(config: PreTrainedConfig) -> str:
    """Why a paged cache of full attention cannot serve this model; empty if it can."""
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
