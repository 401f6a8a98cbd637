"""Many requests, one pass: join rows, run, split. Every task that answers in one pass shares this.

Requests whose other dimensions differ (images of another size where the model takes any) run in passes of their
own within the batch; token sequences of different lengths are padded by the task's `collate` under a mask, so that
padding changes no row's result.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from epara_executors.runners.arrays import Array
from epara_executors.runners.contract import Answer, Form, Request, RequestError, check
from epara_executors.runners.loading import parameter_bytes

Tensors = dict[str, torch.Tensor]


class OnePassRunner(ABC):
    """A model whose batch is one forward pass."""

    forms: tuple[Form, ...]
    outputs: Form

    def __init__(self, model: torch.nn.Module, device: torch.device) -> None:
        self.model = model.to(device)
        self.device = device
        self.announce: Callable[[Mapping[str, Array]], None] | None = None  # tells other ranks of each pass

    @property
    def parameter_bytes(self) -> int:
        return parameter_bytes(self.model)

    def move_to(self, device: torch.device) -> None:
        self.model = self.model.to(device)
        self.device = device

    @abstractmethod
    def example(self, rows: int) -> Request:
        """A request of typical size."""

    @abstractmethod
    def forward(self, inputs: Tensors) -> Tensors:
        """Run joined inputs, (rows, ...), to outputs, (rows, ...)."""

    def prepare(self, request: Request) -> Mapping[str, Array]:
        """The request's arrays as the model takes them. Raises RequestError for content no shape reveals."""
        return request.inputs

    def num_tokens(self, prepared: Mapping[str, Array]) -> int:
        """Tokens that the model reads of what `prepare` made; 0 where it reads none."""
        return 0

    def collate(self, members: Sequence[Mapping[str, Array]]) -> list[tuple[list[int], Mapping[str, Array]]]:
        """Which members run in one pass, and their joined arrays. Here: those of equal shape but for the rows."""
        together: dict[tuple[Any, ...], list[int]] = {}
        for i, arrays in enumerate(members):
            shape = tuple((name, arrays[name].shape[1:]) for name in sorted(arrays))
            together.setdefault(shape, []).append(i)
        return [
            (indexes, {name: np.concatenate([members[i][name] for i in indexes]) for name in members[indexes[0]]})
            for indexes in together.values()
        ]

    def run(self, requests: Sequence[Request]) -> list[Answer]:
        """One answer per request, in order."""
        answers: dict[int, Answer] = {}
        valid: list[tuple[int, int, Mapping[str, Array]]] = []  # index, rows, arrays
        for i, request in enumerate(requests):
            try:
                rows = check(request, self.forms)
                valid.append((i, rows, self.prepare(request)))
            except RequestError as error:
                answers[i] = Answer(request.id, code="INVALID_ARGUMENT", message=str(error))
        read = {i: self.num_tokens(arrays) for i, _, arrays in valid}
        for indexes, joined in self.collate([arrays for _, _, arrays in valid]) if valid else []:
            members = [valid[k] for k in indexes]
            try:
                made = self.run_joined(joined)
            except Exception as error:  # whatever the model raises is the answer of those who were in the pass
                for i, _, _ in members:
                    message = f"{type(error).__name__}: {error}"
                    answers[i] = Answer(requests[i].id, code="INTERNAL", message=message)
                continue
            start = 0
            for i, rows, _ in members:
                wanted = requests[i].outputs or tuple(made)
                part = {name: made[name][start : start + rows] for name in wanted if name in made}
                usage = {"prompt_tokens": read[i]} if read[i] else {}
                answers[i] = Answer(requests[i].id, outputs=part, usage=usage)
                start += rows
        return [answers[i] for i in range(len(requests))]

    def run_joined(self, joined: Mapping[str, Array]) -> dict[str, Array]:
        """One pass over joined arrays; what every rank of a tensor-parallel group runs alike."""
        if self.announce is not None:
            self.announce(joined)
        with torch.inference_mode():
            inputs = {name: torch.from_numpy(writable(array)).to(self.device) for name, array in joined.items()}
            made = self.forward(inputs)
            return {name: tensor.cpu().numpy() for name, tensor in made.items()}


def writable(array: Array) -> Array:
    """Frames are read-only buffers, and torch wants to own what it may write; joined arrays are fresh already."""
    return array if array.flags.writeable else np.array(array)
