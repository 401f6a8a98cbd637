"""The local protocol between an agent and the worker that is rank 0 of a device group.

A Unix socket carries frames. A frame is a 4-byte little-endian header length, a JSON header, then the raw bytes
of the tensors in the header's order (row-major, little-endian). No pickle: a worker reads only what is here.

Agent to worker                                        Worker to agent
  load    {tenants: [...], ...}                          loaded  {replica, memory_bytes, load_s, inputs, outputs}
                                                         ready   {}            every tenant loaded and warmed up
  infer   {id, replica, requests: [{id, ...}]} tensors   result  {id, batch_ms, results: [{id, ok|error}]} tensors
  cancel  {replica, id}                                  token   {replica, id, tokens, done}   generation only
  stop    {}                                             failed  {detail}      then the process exits

Every message is a header `{"type": ..., "tensors": [TensorHeader ...], ...}`; `tensors` may be absent.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

MAX_HEADER_BYTES = 64 * 2**20
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Tensor:
    """A named array in Open Inference Protocol terms. BYTES elements are each prefixed by a 4-byte length."""

    name: str
    datatype: str  # FP32, INT64, UINT8, BYTES, BOOL, ...
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True, slots=True)
class Frame:
    type: str
    fields: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tensors: Sequence[Tensor] = ()


def encode(frame: Frame) -> bytes:
    """The whole frame as bytes."""
    heads = [[t.name, t.datatype, list(t.shape), len(t.data)] for t in frame.tensors]
    header = json.dumps({**frame.fields, "type": frame.type, "tensors": heads}, separators=(",", ":")).encode()
    return b"".join((_LENGTH.pack(len(header)), header, *(t.data for t in frame.tensors)))


def header_length(prefix: bytes) -> int:
    """Length of the header that follows a 4-byte prefix. Raises ValueError when it cannot be one."""
    (length,) = _LENGTH.unpack(prefix)
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"frame header: expected <= {MAX_HEADER_BYTES} bytes, got {length}")
    return int(length)


def decode_header(header: bytes) -> tuple[str, dict[str, Any], list[tuple[str, str, tuple[int, ...], int]]]:
    """Type, fields, and (name, datatype, shape, num_bytes) of each tensor that follows."""
    fields = cast("dict[str, Any]", json.loads(header))
    heads = [(n, d, tuple(s), b) for n, d, s, b in fields.pop("tensors", [])]
    return fields.pop("type"), fields, heads
