"""Frame tensors as numpy arrays and back. Knows no torch, trusts no length: what does not add up is refused."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from epara_executors.worker.frames import Tensor

Array = npt.NDArray[Any]

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
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
_DATATYPES = {dtype: name for name, dtype in DTYPES.items()}


def to_array(tensor: Tensor) -> Array:
    """The tensor's content; BYTES become an object array of bytes.

    Raises
    ------
    ValueError
        When the datatype is unknown or the data does not fill the shape.
    """
    if any(n < 0 for n in tensor.shape):
        raise ValueError(f"{tensor.name}: expected a shape without negative numbers, got {list(tensor.shape)}")
    num_elements = math.prod(tensor.shape)
    if tensor.datatype == "BYTES":
        return _bytes_array(tensor, num_elements)
    dtype = DTYPES.get(tensor.datatype)
    if dtype is None:
        raise ValueError(
            f"{tensor.name}: expected a datatype of {', '.join([*DTYPES, 'BYTES'])}, got {tensor.datatype}"
        )
    if len(tensor.data) != num_elements * dtype.itemsize:
        raise ValueError(
            f"{tensor.name}: expected {num_elements * dtype.itemsize} bytes for {tensor.datatype} "
            f"{list(tensor.shape)}, got {len(tensor.data)}"
        )
    return np.frombuffer(tensor.data, dtype=dtype).reshape(tensor.shape)


def from_array(name: str, array: Array) -> Tensor:
    """An array as a frame tensor; object arrays hold bytes or text."""
    if array.dtype == object:
        items = [x.encode() if isinstance(x, str) else bytes(x) for x in array.ravel()]
        data = b"".join(struct.pack("<I", len(x)) + x for x in items)
        return Tensor(name, "BYTES", tuple(array.shape), data)
    little = array.dtype.newbyteorder("<") if array.dtype.byteorder == ">" else array.dtype
    datatype = _DATATYPES[np.dtype(little)]
    return Tensor(name, datatype, tuple(array.shape), np.ascontiguousarray(array, dtype=little).tobytes())


def text_array(texts: Iterable[str | bytes]) -> Array:
    """A one-dimensional BYTES array."""
    items: Sequence[str | bytes] = list(texts)
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


def datatype_of(array: Array) -> str:
    return "BYTES" if array.dtype == object else _DATATYPES[np.dtype(array.dtype)]


def _bytes_array(tensor: Tensor, num_elements: int) -> Array:
    array = np.empty(num_elements, dtype=object)
    at = 0
    for i in range(num_elements):
        end = at + 4
        if end > len(tensor.data):
            raise ValueError(f"{tensor.name}: expected {num_elements} BYTES elements, got {i}")
        (length,) = struct.unpack_from("<I", tensor.data, at)
        at = end + length
        if at > len(tensor.data):
            raise ValueError(f"{tensor.name}: element {i} runs past the end of the data")
        array[i] = tensor.data[end:at]
    if at != len(tensor.data):
        raise ValueError(f"{tensor.name}: expected {num_elements} BYTES elements, got more data")
    return array.reshape(tensor.shape)
