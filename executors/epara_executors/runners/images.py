"""Images: segmentation, classification, detection. Input `pixel_values` as the model's own preprocessor makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from transformers import (
    AutoModelForImageClassification,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
    PreTrainedConfig,
)

from epara_executors.runners.batches import OnePassRunner, Tensors
from epara_executors.runners.contract import Request, TensorSpec
from epara_executors.runners.loading import image_size, read_config, read_model

_ANY_SIZE_EXAMPLE = 224  # pixels, where the model names no size


class _ImageRunner(OnePassRunner):
    auto_class: Any

    def __init__(self, source: str, model_root: Path, device: torch.device) -> None:
        config = read_config(source, model_root)
        super().__init__(read_model(self.auto_class, source, model_root, config), device)
        height, width = image_size(source, model_root, config)
        channels = int(getattr(config, "num_channels", 3))
        self._dtype = next(self.model.parameters()).dtype
        self._example_shape = (channels, height, width) if height > 0 else (channels, *2 * (_ANY_SIZE_EXAMPLE,))
        self.forms = ((TensorSpec("pixel_values", "FP32", (-1, channels, height, width)),),)
        self.describe(config, height, width)

    def describe(self, config: PreTrainedConfig, height: int, width: int) -> None:
        """Set `outputs`."""
        raise NotImplementedError

    def example(self, rows: int) -> Request:
        pixels = np.random.default_rng(0).standard_normal((rows, *self._example_shape), dtype=np.float32)
        return Request("example", {"pixel_values": pixels})


class SegmentationRunner(_ImageRunner):
    """`logits` at the model's resolution, `mask` (label per pixel) at the input's.

    The mask is the argmax of the logits upsampled bilinearly, as transformers' own post-processing does.
    """

    auto_class = AutoModelForSemanticSegmentation

    def describe(self, config: PreTrainedConfig, height: int, width: int) -> None:
        self._small = _num_labels(config) <= 256
        mask = "UINT8" if self._small else "INT64"
        self.outputs = (
            TensorSpec("logits", "FP32", (-1, _num_labels(config), -1, -1)),
            TensorSpec("mask", mask, (-1, height, width)),
        )

    def forward(self, inputs: Tensors) -> Tensors:
        pixels = inputs["pixel_values"]
        logits = cast("torch.Tensor", self.model(pixel_values=pixels.to(self._dtype)).logits).float()
        large = torch.nn.functional.interpolate(logits, size=pixels.shape[-2:], mode="bilinear", align_corners=False)
        mask = large.argmax(dim=1)
        return {"logits": logits, "mask": mask.to(torch.uint8) if self._small else mask}


class ClassificationRunner(_ImageRunner):
    """`logits` per label."""

    auto_class = AutoModelForImageClassification

    def describe(self, config: PreTrainedConfig, height: int, width: int) -> None:
        self.outputs = (TensorSpec("logits", "FP32", (-1, _num_labels(config))),)

    def forward(self, inputs: Tensors) -> Tensors:
        return {"logits": self.model(pixel_values=inputs["pixel_values"].to(self._dtype)).logits.float()}


class DetectionRunner(_ImageRunner):
    """`logits` and `pred_boxes` (centre x, centre y, width, height, each in [0, 1]) per query."""

    auto_class = AutoModelForObjectDetection

    def describe(self, config: PreTrainedConfig, height: int, width: int) -> None:
        self.outputs = (
            TensorSpec("logits", "FP32", (-1, -1, _num_labels(config) + 1)),
            TensorSpec("pred_boxes", "FP32", (-1, -1, 4)),
        )

    def forward(self, inputs: Tensors) -> Tensors:
        made = self.model(pixel_values=inputs["pixel_values"].to(self._dtype))
        return {"logits": made.logits.float(), "pred_boxes": made.pred_boxes.float()}


def _num_labels(config: PreTrainedConfig) -> int:
    return len(cast("dict[int, str]", config.id2label))
