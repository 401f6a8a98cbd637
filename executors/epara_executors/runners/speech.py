"""Speech to text for encoder-decoder models of the Whisper family: mel features in, tokens and text out.

The whole batch is decoded greedily by transformers' own `generate`; its length is the longest of the batch, so a
short utterance waits for the longest. Finished rows are padded and cut before they are answered.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSpeechSeq2Seq

from epara_executors.runners.arrays import Array, text_array
from epara_executors.runners.batches import OnePassRunner, Tensors
from epara_executors.runners.contract import Request, TensorSpec
from epara_executors.runners.loading import read_config, read_model, read_tokenizer


class SpeechRunner(OnePassRunner):
    def __init__(self, source: str, model_root: Path, device: torch.device) -> None:
        config = read_config(source, model_root)
        super().__init__(read_model(AutoModelForSpeechSeq2Seq, source, model_root, config), device)
        self._tokenizer = read_tokenizer(source, model_root)
        frames = 2 * int(config.max_source_positions)  # the encoder's second convolution halves them
        self._shape = (int(config.num_mel_bins), frames)
        self._dtype = next(self.model.parameters()).dtype
        self.forms = ((TensorSpec("input_features", "FP32", (-1, *self._shape)),),)
        self.outputs = (TensorSpec("tokens", "INT64", (-1, -1)), TensorSpec("text", "BYTES", (-1,)))

    def forward(self, inputs: Tensors) -> Tensors:
        model: Any = self.model
        features = inputs["input_features"].to(self._dtype)
        return {"tokens": model.generate(input_features=features, do_sample=False, num_beams=1)}

    def run_joined(self, joined: dict[str, Array]) -> dict[str, Array]:  # pyright: ignore[reportIncompatibleMethodOverride]
        made = super().run_joined(joined)
        texts: list[str] = self._tokenizer.batch_decode(made["tokens"], skip_special_tokens=True)
        return {**made, "text": text_array(texts)}

    def example(self, rows: int) -> Request:
        features = np.random.default_rng(0).standard_normal((rows, *self._shape), dtype=np.float32)
        return Request("example", {"input_features": features})
