"""Open Inference Protocol tensors as numpy arrays. BF16 has no numpy type and travels as raw bytes (`contents.py`)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from epara_executors.contents import join_bytes, split_bytes
from epara_executors.worker.frames import Tensor

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
