"""The local protocol between an agent and the worker that is rank 0 of a device group.

A Unix socket carries frames. A frame is a 4-byte little-endian header length, a JSON header, then the raw bytes
of the tensors in the header's order (row-major, little-endian; BYTES elements each prefixed by a 4-byte
length). No pickle: a worker reads only what is here. The agent listens, rank 0 connects. Every message is a header
`{"type": ..., "tensors": [[name, datatype, shape, num_bytes] ...], ...}`; `tensors` may be absent.

Agent to worker
  load    {group, device_kind, devices, tp, pp, tenants: [{replica, service, source, task, batch, frames,
           prompt_tokens, output_tokens, ... every field of TenantSpec}]}
          A later load lists all tenants anew: those not in it are dropped, those held are tuned, new ones are loaded,
          beside what serves in a group of one rank, between two turns in others. One load at a time.
  infer   {id, replica, requests: [{id, rows, params, outputs}], counts: [number of tensors of each request]} + tensors:
          `outputs` names those wanted (empty: all); for each request in order its input tensors. One batch; the
          worker runs batches of a group one at a
          time in arrival order. Generation (task text-generation): one request per infer, sent at once, params
          {max_tokens, stream, temperature, top_k, top_p, seed, presence_penalty, frequency_penalty,
          repetition_penalty, stop, stops}; the worker batches up to `batch` of them continuously.
  cancel  {replica, id}                  frees the place and memory of a generation at once; no result need follow
  tune    {replica, batch, frames}       a live tenant's batch limits change in place
  measure {replica, rows, repeats, width, start}   the profiler's, on a worker of its own: time synthetic batches, or
           for generation steps of `width` tokens per row from position `start`
  stop    {}                             finish what is in flight, then exit 0

Worker to agent
  loaded  {replica, memory_bytes, load_s, inputs: [[name, datatype, shape]], outputs: [[name, datatype, shape]]}
          one per tenant; -1 in a shape is variable, a leading -1 is the batch
  ready   {}                             every tenant loaded and warmed up, or refused
  refused {replica, detail}              of a later load, when others are held: this one could not be loaded
  token   {replica, id, index, token, text, done, finish_reason, usage}   id is the infer's; where params.stream
  result  {id, replica, batch_ms, requests: [{id, ok: true, tensors: n, usage, finish_reason}
           | {id, ok: false, code: "INVALID_ARGUMENT" | "INTERNAL", message}]} + output tensors concatenated in
          the same manner. Generation answers `text` (BYTES [1]) and `tokens` (INT64 [n]). usage: {prompt_tokens,
          completion_tokens} of what reads and writes tokens, finish_reason of generations; absent elsewhere.
  measured {median_ms}
  failed  {detail, unsupported}          of a load into an empty worker, or of anything else; then the process exits;
          unsupported: no runner serves this model in this shape

A worker whose socket is closed by the agent exits; so no worker outlives its agent. An unexpected end of the worker
fails what it had in flight; the agent retries that elsewhere if its deadline allows, and restarts the worker.
"""

from __future__ import annotations

import asyncio
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


async def read(reader: asyncio.StreamReader) -> Frame:
    """The next frame. Raises asyncio.IncompleteReadError when the other side has left."""
    name, fields, heads = decode_header(await reader.readexactly(header_length(await reader.readexactly(4))))
    tensors = [Tensor(n, d, s, await reader.readexactly(b)) for n, d, s, b in heads]
    return Frame(name, fields, tensors)
