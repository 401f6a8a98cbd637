"""Open Inference Protocol tensors: datatypes, sizes, numpy arrays, raw bytes. Row-major, little-endian.

BYTES elements are each prefixed by a 4-byte little-endian length. BF16 has no numpy type and travels as raw bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .worker.frames import Tensor

AnyArray = NDArray[Any]

NUMPY_OF: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
_OF_NUMPY = {d: name for name, d in NUMPY_OF.items()}
ITEM_BYTES: dict[str, int] = {**{n: d.itemsize for n, d in NUMPY_OF.items()}, "BF16": 2}
_LENGTH = struct.Struct("<I")


def num_elements(shape: Sequence[int]) -> int:
    return math.prod(shape)


def to_array(tensor: Tensor) -> AnyArray:
    """The tensor as numpy; BYTES becomes an object array of bytes. Raises ValueError on a size that does not fit."""
    if tensor.datatype == "BYTES":
        items = split_bytes(tensor.data)
        array = np.empty(len(items), dtype=np.object_)
        array[:] = items
        return array.reshape(tensor.shape)
    if tensor.datatype not in NUMPY_OF:
        raise ValueError(f"{tensor.name}: datatype {tensor.datatype} has no numpy type")
    return np.frombuffer(tensor.data, NUMPY_OF[tensor.datatype]).reshape(tensor.shape)


def from_array(name: str, array: AnyArray) -> Tensor:
    """A tensor of an array. Objects and strings become BYTES. Raises ValueError on any other dtype."""
    if array.dtype.kind in "OSU":
        items = [x.encode() if isinstance(x, str) else bytes(x) for x in array.ravel().tolist()]
        return Tensor(name, "BYTES", array.shape, join_bytes(items))
    plain = array.dtype.newbyteorder("<") if array.dtype.byteorder == ">" else array.dtype
    datatype = _OF_NUMPY.get(plain)
    if datatype is None:
        raise ValueError(f"{name}: expected a dtype of the Open Inference Protocol, got {array.dtype}")
    return Tensor(name, datatype, array.shape, np.ascontiguousarray(array, plain).tobytes())


def join_bytes(items: Sequence[bytes]) -> bytes:
    """Elements of a BYTES tensor, each with its length."""
    return b"".join(part for item in items for part in (_LENGTH.pack(len(item)), item))


def split_bytes(data: bytes) -> list[bytes]:
    """The elements of a BYTES tensor. Raises ValueError where a length points past the end."""
    items: list[bytes] = []
    at = 0
    while at < len(data):
        if at + 4 > len(data):
            raise ValueError(f"BYTES: expected a 4-byte length at {at}, got {len(data) - at} bytes")
        (length,) = _LENGTH.unpack_from(data, at)
        at += 4
        if at + length > len(data):
            raise ValueError(f"BYTES: element at {at} claims {length} bytes, {len(data) - at} left")
        items.append(data[at : at + length])
        at += length
    return items
