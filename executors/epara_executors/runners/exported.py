"""Any network as a torch.export program: tensors in, tensors out, rows along the first dimension.

The folder holds the program, `model.pt2`, and `tensors.json`, which names its arguments and results in their order:

    {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 256]}], "outputs": [...]}

What is declared is held against the program: a service whose clients are told one shape while the network wants
another never comes up.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.fx.graph import CodeGen

from epara_executors.runners.archive import open_program
from epara_executors.runners.arrays import DTYPES, Array
from epara_executors.runners.batches import OnePassRunner, Tensors
from epara_executors.runners.contract import LoadError, Request, TensorSpec

TASK = "tensor"
PROGRAM_FILE = "model.pt2"
TENSORS_FILE = "tensors.json"

_OPEN_SIZE = 16  # of a dimension that is open beside the rows, in examples
_SAME = 1e-2  # of the largest value: how far rows may differ between batch sizes, wide enough for half precision


class ExportedRunner(OnePassRunner):
    def __init__(self, source: str, model_root: Path, device: torch.device) -> None:
        folder = model_root / source
        if not folder.is_dir():
            raise LoadError(f"model {source}: no folder {folder} with {PROGRAM_FILE} and {TENSORS_FILE}")
        inputs, self.outputs = read_tensors(folder / TENSORS_FILE)
        self.forms = (inputs,)
        self._names = [spec.name for spec in inputs]
        self._program = open_program(folder / PROGRAM_FILE)
        try:
            self._max_rows = fit(self._program, inputs, self.outputs)
            super().__init__(bare(self._program), device)
            self._probe()
        except LoadError as error:
            raise LoadError(f"model {source}: {error}") from error

    def move_to(self, device: torch.device) -> None:
        """Programs carry devices in their operators as well as in their weights."""
        if device != self.device:
            from torch.export.passes import move_to_device_pass

            self.model = bare(move_to_device_pass(self._program, device))
            self.device = device

    def forward(self, inputs: Tensors) -> Tensors:
        rows = inputs[self._names[0]].shape[0]
        if rows > self._max_rows:
            raise ValueError(f"expected a batch of at most {self._max_rows} rows, as it was exported, got {rows}")
        made = self.model.forward(*(inputs[name] for name in self._names))
        return {spec.name: tensor for spec, tensor in zip(self.outputs, made, strict=True)}

    def example(self, rows: int) -> Request:
        rng = np.random.default_rng(0)
        return Request("example", {spec.name: _example(spec, rows, rng) for spec in self.forms[0]})

    def _probe(self) -> None:
        """Batching is a promise that rows do not see each other; no shape shows it, two rows alone and together do."""
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        both = self.example(min(2, self._max_rows))
        together = self.run_joined(both.inputs)
        for row in range(min(2, self._max_rows)):
            alone = self.run_joined({name: array[row : row + 1] for name, array in both.inputs.items()})
            for name, buffer in self.model.named_buffers():
                if not torch.equal(buffer, buffers[name]):
                    raise LoadError(f"expected a program without state, this one writes to its buffer {name}")
            for spec in self.outputs:
                _require_same(spec.name, alone[spec.name][0], together[spec.name][row])


def bare(program: ExportedProgram) -> torch.nn.Module:
    """The program as a module whose `forward` takes and gives flat tensors.

    Torch's own would compare structures and shapes at every call, which takes several times as long as a small
    network; here requests were checked against what `fit` found.
    """
    module = program.module()
    for node in module.graph.find_nodes(op="call_module", target="_guards_fn"):
        module.graph.erase_node(node)
    module.graph.set_codegen(CodeGen())
    module.recompile()
    return module.requires_grad_(False)


def _require_same(name: str, alone: Array, together: Array) -> None:
    """One row's result by itself and in a batch. Integers may turn on a rounding, so only reals are compared."""
    if alone.dtype.kind != "f" or alone.size == 0:
        return
    if alone.shape != together.shape:
        raise LoadError(
            f"{name}: expected one shape for a row, got {alone.shape} alone and {together.shape} in a batch"
        )
    margin = _SAME * float(np.abs(together).max())
    if not np.allclose(alone, together, rtol=_SAME, atol=margin, equal_nan=True):
        raise LoadError(
            f"{name}: expected rows that do not depend on the others of their batch; alone and in a batch they differ "
            f"by {float(np.abs(alone - together).max()):.2g}"
        )


def read_tensors(file: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Declared inputs and outputs. Raises LoadError with file, key, law and value."""
    if not file.is_file():
        raise LoadError(
            f"{file}: expected the names, datatypes and shapes of the program's tensors, found no such file"
        )
    try:
        given: Any = json.loads(file.read_text())
    except ValueError as error:
        raise LoadError(f"{file}: expected JSON: {error}") from error
    if not isinstance(given, dict) or set(cast("dict[str, Any]", given)) != {"inputs", "outputs"}:
        raise LoadError(f"{file}: expected inputs and outputs and nothing else")
    sides: list[tuple[TensorSpec, ...]] = []
    for side in ("inputs", "outputs"):
        listed: Any = given[side]
        if not isinstance(listed, list) or not listed:
            raise LoadError(f"{file}: {side}: expected a list of at least one tensor")
        items = cast("list[Any]", listed)
        sides.append(tuple(_spec(f"{file}: {side}[{i}]", item) for i, item in enumerate(items)))
        names = [spec.name for spec in sides[-1]]
        if len(set(names)) < len(names):
            raise LoadError(f"{file}: {side}: expected distinct names, got {', '.join(names)}")
    return sides[0], sides[1]


def _spec(path: str, item: Any) -> TensorSpec:
    match item:
        case {"name": str(name), "datatype": str(datatype), "shape": [*sizes]} if len(item) == 3 and name:
            pass
        case _:
            raise LoadError(f"{path}: expected name, datatype and shape, got {item}")
    if datatype not in DTYPES:
        raise LoadError(f"{path}.datatype: expected one of {', '.join(DTYPES)}, got {datatype}")
    shape = tuple(n for n in sizes if isinstance(n, int) and not isinstance(n, bool))
    if len(shape) < len(sizes) or any(n < 1 and n != -1 for n in shape) or shape[:1] != (-1,):
        raise LoadError(f"{path}.shape: expected -1 for the rows, then sizes >= 1 or -1, got {sizes}")
    return TensorSpec(name, datatype, shape)


def fit(program: ExportedProgram, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> int:
    """The most rows that the program takes. Raises LoadError where it is not what is declared, or takes no batches."""
    signature = program.graph_signature
    if signature.buffers_to_mutate or signature.user_inputs_to_mutate:
        raise LoadError("expected a program without state, this one writes to its buffers or inputs")
    if (spec := program.call_spec.in_spec) is not None and spec.children()[1].num_leaves:
        raise LoadError("expected positional arguments only, the program takes some by keyword")
    held = {node.name: node.meta.get("val") for node in program.graph.nodes}
    given = [held.get(str(name)) for name in signature.user_inputs]
    made = [held.get(str(name)) for name in signature.user_outputs]
    rows = {_match(spec, tensor) for spec, tensor in _paired("inputs", inputs, given)}
    made_rows = {spec.name: _match(spec, tensor) for spec, tensor in _paired("outputs", outputs, made)}
    for name, first in made_rows.items():
        if first not in rows:
            raise LoadError(
                f"{name}: expected as many rows as the inputs have ({_listed(rows)}), the program makes {first}"
            )
    most = math.inf
    for symbol, bounds in program.range_constraints.items():
        if str(symbol) in rows:
            if bounds.lower > 1:
                raise LoadError(f"rows: expected a program that takes 1, it was exported for {bounds.lower} and more")
            most = min(most, float(bounds.upper))
    return int(min(most, 2**31))


def _paired(side: str, specs: Sequence[TensorSpec], held: Sequence[Any]) -> list[tuple[TensorSpec, torch.Tensor]]:
    if len(specs) != len(held):
        raise LoadError(f"{side}: expected {len(held)}, as the program has, got {len(specs)} in {TENSORS_FILE}")
    for spec, tensor in zip(specs, held, strict=True):
        if not isinstance(tensor, torch.Tensor):
            raise LoadError(f"{spec.name}: expected a tensor, the program has {tensor!r} in its place")
    return list(zip(specs, held, strict=True))


def _match(spec: TensorSpec, tensor: torch.Tensor) -> str:
    """The program's symbol for the rows. Raises LoadError where the declaration differs."""
    dtype = torch.from_numpy(np.empty(0, DTYPES[spec.datatype])).dtype
    if tensor.dtype != dtype:
        raise LoadError(f"{spec.name}: expected datatype {_datatype(tensor.dtype)} of the program, got {spec.datatype}")
    sizes = [str(n) for n in tensor.shape]  # numbers, or symbols where any size fits
    fits = len(sizes) == len(spec.shape) and all(
        not size.isdecimal() if want == -1 else size == str(want) or not size.isdecimal()
        for want, size in zip(spec.shape[1:], sizes[1:], strict=False)
    )
    if not fits:
        shown = ", ".join(sizes)
        raise LoadError(
            f"{spec.name}: expected the program's shape [{shown}], got {list(spec.shape)} in {TENSORS_FILE}"
        )
    if not sizes[0].isidentifier():
        raise LoadError(
            f"{spec.name}: expected a first dimension that any number of rows fits, the program has {sizes[0]}; export "
            "it with dynamic_shapes naming a torch.export.Dim for dimension 0"
        )
    return sizes[0]


def _datatype(dtype: torch.dtype) -> str:
    known = {torch.from_numpy(np.empty(0, d)).dtype: name for name, d in DTYPES.items()}
    return known.get(dtype, str(dtype))


def _listed(rows: set[str]) -> str:
    return ", ".join(sorted(rows))


def _example(spec: TensorSpec, rows: int, rng: np.random.Generator) -> Array:
    """Noise for numbers; zeros for integers, which may be indexes into anything."""
    shape = (rows, *(_OPEN_SIZE if n == -1 else n for n in spec.shape[1:]))
    dtype = DTYPES[spec.datatype]
    return rng.standard_normal(shape).astype(dtype) if dtype.kind == "f" else np.zeros(shape, dtype)
