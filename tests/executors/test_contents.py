"""Raw contents without numpy are what numpy would make of them."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from epara_executors.contents import ITEM_BYTES, pack_numbers, unpack_numbers
from epara_executors.tensors import NUMPY_OF

TYPED = [d for d in NUMPY_OF if d != "FP16"]  # it travels as raw contents only


def test_every_datatype_has_the_size_that_numpy_gives_it() -> None:
    assert {d: t.itemsize for d, t in NUMPY_OF.items()} | {"BF16": 2} == ITEM_BYTES


@pytest.mark.parametrize("datatype", TYPED)
def test_numbers_are_packed_as_numpy_packs_them(datatype: str) -> None:
    values: list[float] = [True, False, True]
    if datatype != "BOOL":
        dtype = NUMPY_OF[datatype]
        limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
        values = [limits.min.item() if dtype.kind == "f" else int(limits.min), 0, 1, limits.max]
        values[-1] = limits.max.item() if dtype.kind == "f" else int(limits.max)
    packed = pack_numbers(values, datatype)
    assert packed == np.array(values, dtype=NUMPY_OF[datatype]).tobytes()
    assert unpack_numbers(packed, datatype) == values


@pytest.mark.parametrize(("datatype", "value"), [("INT8", 128), ("UINT8", -1), ("INT32", 2**31), ("UINT64", -1)])
def test_what_a_datatype_cannot_hold_is_refused(datatype: str, value: int) -> None:
    with pytest.raises(OverflowError):
        pack_numbers([value], datatype)


def test_data_that_is_no_whole_number_of_elements_is_refused() -> None:
    with pytest.raises(ValueError, match="length not a multiple"):
        unpack_numbers(b"abc", "FP32")


def test_an_agent_knows_neither_torch_nor_numpy() -> None:
    modules = ["agent.data_plane", "agent.control_plane", "agent.handler", "agent.logistics", "agent.metrics"]
    modules += [
        "agent.echo_launcher",
        "agent.file_plane",
        "agent.torch_launcher",
        "agent.state",
        "agent.main",
        "agent.chain",
        "agent.stages",
    ]
    code = f"import sys, {', '.join(f'epara_executors.{m}' for m in modules)}\n"
    code += "print([m for m in ('torch', 'numpy', 'transformers', 'networkx') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
