"""Text embeddings: the mean of the last hidden states under the mask, of unit length.

That is what sentence-transformers computes for its mean-pooling models (all-MiniLM and most BERT descendants).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from transformers import AutoModel

from epara_executors.runners.arrays import Array
from epara_executors.runners.batches import OnePassRunner, Tensors
from epara_executors.runners.contract import Request, RequestError, TensorSpec
from epara_executors.runners.loading import read_config, read_model, read_tokenizer

_EXAMPLE_TOKENS = 32


class EmbeddingRunner(OnePassRunner):
    def __init__(self, source: str, model_root: Path, device: torch.device, prompt_tokens: int = 0) -> None:
        config = read_config(source, model_root)
        super().__init__(read_model(AutoModel, source, model_root, config), device)
        self._tokenizer = read_tokenizer(source, model_root)
        self._vocab_size = int(config.vocab_size)
        limit = int(getattr(config, "max_position_embeddings", 0)) or 2**31
        # RoBERTa's family keeps its first rows of the position table for padding.
        reserved = int(config.pad_token_id) + 1 if "roberta" in str(config.model_type) else 0
        self._max_tokens = min(limit - reserved, int(self._tokenizer.model_max_length))
        self._example_tokens = min(prompt_tokens or _EXAMPLE_TOKENS, self._max_tokens)
        self._pad_id = int(self._tokenizer.pad_token_id or 0)
        ids = TensorSpec("input_ids", "INT64", (-1, -1))
        mask = TensorSpec("attention_mask", "INT64", (-1, -1), optional=True)
        self.forms = ((TensorSpec("text", "BYTES", (-1,)),), (ids, mask))
        self.outputs = (TensorSpec("embedding", "FP32", (-1, int(config.hidden_size))),)

    def prepare(self, request: Request) -> Mapping[str, Array]:
        if "text" in request.inputs:
            return self._tokenized(request.inputs["text"])
        ids = request.inputs["input_ids"]
        mask = request.inputs.get("attention_mask", np.ones_like(ids))
        if mask.shape != ids.shape:
            raise RequestError(f"attention_mask: expected shape {list(ids.shape)}, got {list(mask.shape)}")
        if ids.shape[1] > self._max_tokens:
            raise RequestError(f"input_ids: expected at most {self._max_tokens} tokens, got {ids.shape[1]}")
        if ids.min() < 0 or ids.max() >= self._vocab_size:
            worst = int(ids.min()) if ids.min() < 0 else int(ids.max())
            raise RequestError(f"input_ids: expected values in [0, {self._vocab_size}), got {worst}")
        return {"input_ids": ids, "attention_mask": mask}

    def _tokenized(self, texts: Array) -> Mapping[str, Array]:
        try:
            decoded = [bytes(t).decode() if isinstance(t, bytes) else str(t) for t in texts]
        except UnicodeDecodeError as error:
            raise RequestError(f"text: expected UTF-8, got {error.object[error.start : error.start + 4]!r}") from error
        lists: list[list[int]] = self._tokenizer(decoded, truncation=True, max_length=self._max_tokens)["input_ids"]
        width = max(1, *(len(ids) for ids in lists))
        ids = np.full((len(lists), width), self._pad_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, tokens in enumerate(lists):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def num_tokens(self, prepared: Mapping[str, Array]) -> int:
        return int(prepared["attention_mask"].sum())

    def collate(self, members: Sequence[Mapping[str, Array]]) -> list[tuple[list[int], Mapping[str, Array]]]:
        width = max(m["input_ids"].shape[1] for m in members)

        def joined(name: str, fill: int) -> Array:
            parts = [np.pad(m[name], ((0, 0), (0, width - m[name].shape[1])), constant_values=fill) for m in members]
            return np.concatenate(parts)

        arrays = {"input_ids": joined("input_ids", self._pad_id), "attention_mask": joined("attention_mask", 0)}
        return [(list(range(len(members))), arrays)]

    def forward(self, inputs: Tensors) -> Tensors:
        mask = inputs["attention_mask"]
        made = self.model(input_ids=inputs["input_ids"], attention_mask=mask)
        hidden = cast("torch.Tensor", made.last_hidden_state).float()  # (rows, tokens, d)
        weight = mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1e-9)
        return {"embedding": torch.nn.functional.normalize(mean, dim=1)}

    def example(self, rows: int) -> Request:
        high = self._vocab_size
        ids = np.random.default_rng(0).integers(high // 2, high, size=(rows, self._example_tokens), dtype=np.int64)
        return Request("example", {"input_ids": ids})
