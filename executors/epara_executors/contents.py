"""Raw contents of Open Inference Protocol tensors: sizes, elements of BYTES, numbers. Row-major, little-endian.

BYTES elements are each prefixed by a 4-byte little-endian length. Knows no numpy, which would be a quarter of an idle
agent's memory; `tensors.py` makes arrays of these.
"""

from __future__ import annotations

import math
import struct
import sys
from array import array
from collections.abc import Iterable, Sequence

ITEM_BYTES: dict[str, int] = {
    "BOOL": 1,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "FP16": 2,
    "FP32": 4,
    "FP64": 8,
    "BF16": 2,
}
_ARRAY_CODES = {
    "BOOL": "B",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "FP32": "f",
    "FP64": "d",
}
_LENGTH = struct.Struct("<I")


def num_elements(shape: Sequence[int]) -> int:
    return math.prod(shape)


def pack_numbers(values: Iterable[float], datatype: str) -> bytes:
    """Raw contents of numbers or truth values. Raises OverflowError for one outside the datatype."""
    packed = array(_ARRAY_CODES[datatype], values)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack_numbers(data: bytes, datatype: str) -> list[float]:
    """The inverse of `pack_numbers`. Raises ValueError where the data is no whole number of elements."""
    packed = array(_ARRAY_CODES[datatype])
    packed.frombytes(data)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tolist()


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
