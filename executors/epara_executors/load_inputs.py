"""Inputs made from a model's own description: random tensors of its shapes, text of a wanted length."""

from __future__ import annotations

from typing import Any

import numpy as np

from epara_executors.infer_client import ModelSpec, TensorSpec
from epara_executors.tensors import NUMPY_OF, AnyArray
from epara_opt.errors import InputError, Violation

WORDS = ("edge", "camera", "street", "light", "model", "queue", "early", "later", "north", "south", "red", "green")
VARIABLE_IMAGE = 64  # pixels per side where a shape leaves them open
ALTERNATIVE_OF_TEXT = frozenset({"input_ids", "attention_mask", "messages"})


def random_inputs(spec: ModelSpec, rng: np.random.Generator, *, prompt_tokens: int = 16) -> dict[str, AnyArray]:
    """One request's inputs. A model that reads text gets text: about `prompt_tokens` words.

    A first dimension of -1 is the batch: 1. Others left open become `VARIABLE_IMAGE`, or `prompt_tokens` for integers.
    Raises InputError on a datatype that numpy cannot hold.
    """
    reads_text = any(t.datatype == "BYTES" for t in spec.inputs)
    return {
        t.name: _random(t, rng, prompt_tokens)
        for t in spec.inputs
        if not (reads_text and t.name in ALTERNATIVE_OF_TEXT)
    }


def _random(t: TensorSpec, rng: np.random.Generator, prompt_tokens: int) -> AnyArray:
    if t.datatype == "BYTES":
        shape = tuple(1 if n < 0 else n for n in t.shape) or (1,)
        array: AnyArray = np.empty(shape, dtype=np.object_)
        for index in np.ndindex(shape):
            array[index] = " ".join(rng.choice(WORDS, size=max(1, prompt_tokens))).encode()
        return array
    dtype: np.dtype[Any] | None = NUMPY_OF.get(t.datatype)
    if dtype is None:
        raise InputError(
            Violation(path=f"inputs.{t.name}.datatype", law="expected a type numpy can hold", value=t.datatype)
        )
    open_size = prompt_tokens if dtype.kind in "iu" and dtype.itemsize > 1 else VARIABLE_IMAGE
    shape = tuple((1 if i == 0 else open_size) if n < 0 else n for i, n in enumerate(t.shape))
    if dtype.kind == "f":
        return rng.random(shape).astype(dtype)
    if dtype.kind == "b":
        return np.ones(shape, dtype=dtype)
    if dtype.itemsize == 1:
        return rng.integers(0, 128, size=shape).astype(dtype)
    if "mask" in t.name:
        return np.ones(shape, dtype=dtype)
    return rng.integers(1, 100, size=shape).astype(dtype)
