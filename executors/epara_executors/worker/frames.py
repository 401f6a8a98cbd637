"""The local protocol between an agent and the worker that is rank 0 of a device group.

A Unix socket carries frames. A frame is two little-endian lengths (4 bytes: of the header, 8 bytes: of the tensors
together), a header in MessagePack, then the raw bytes of the tensors in the header's order (row-major, little-endian;
BYTES elements each prefixed by a 4-byte length). No pickle: a worker reads only what is here. The agent listens, rank
0 connects. A header is `[type, {fields}, [[name, datatype, shape, num_bytes] ...]]`.

Agent to worker
  load    {group, device_kind, devices, tp, pp, tenants: [{replica, service, source, task, batch, frames,
           prompt_tokens, output_tokens, ... every field of TenantSpec}]}
          A later load lists all tenants anew: those not in it are dropped, those held are tuned, new ones are loaded,
          beside what serves in a group of one rank, between two turns in others. One load at a time.
  infer   {id, replica, requests: [{id, rows, params, outputs}], counts: [number of tensors of each request]} + tensors:
          `outputs` names those wanted (empty: all); for each request in order its input tensors. One batch; the
          worker runs batches of a group one at a
          time in arrival order. Generation (task text-generation): one request per infer, sent at once, params
          {max_tokens, stream, temperature, top_k, top_p, seed, stop, stops}; the worker batches continuously over
          `batch` slots.
  cancel  {replica, id}                  frees the slot of a generation at once; no result need follow
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

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

MAX_HEADER_BYTES = 64 * 2**20
_PREFIX = struct.Struct("<IQ")
_to_header = msgspec.msgpack.Encoder().encode
_of_header = msgspec.msgpack.Decoder(tuple[str, dict[str, Any], list[tuple[str, str, tuple[int, ...], int]]]).decode


@dataclass(slots=True)
class Tensor:
    """A named array in Open Inference Protocol terms. BYTES elements are each prefixed by a 4-byte length."""

    name: str
    datatype: str  # FP32, INT64, UINT8, BYTES, BOOL, ...
    shape: tuple[int, ...]
    data: bytes


@dataclass(slots=True)
class Frame:
    type: str
    fields: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tensors: Sequence[Tensor] = ()


def encode(frame: Frame) -> bytes:
    """The whole frame as bytes."""
    sizes = [len(t.data) for t in frame.tensors]
    heads = [(t.name, t.datatype, t.shape, n) for t, n in zip(frame.tensors, sizes, strict=True)]
    header = _to_header((frame.type, frame.fields, heads))
    return b"".join((_PREFIX.pack(len(header), sum(sizes)), header, *(t.data for t in frame.tensors)))


class Splitter:
    """Cuts a stream of bytes, fed as it comes, into frames."""

    def __init__(self) -> None:
        self._rest = bytearray()  # the beginning of the next frame
        self._needed = _PREFIX.size  # bytes until the next frame, or its lengths, are whole

    @property
    def missing(self) -> int:
        """Bytes until more can be said: a good size for the next read, where it is large."""
        return self._needed - len(self._rest)

    @property
    def is_between(self) -> bool:
        """Whether the stream stands between two frames."""
        return not self._rest

    def feed(self, data: bytes) -> list[Frame]:
        """Frames that are complete now. Raises ValueError for what cannot be one; then the stream is lost."""
        if self._rest:
            self._rest += data
            if len(self._rest) < self._needed:
                return []
            data = bytes(self._rest)
            self._rest.clear()
        frames: list[Frame] = []
        at, end = 0, len(data)
        while at < end:
            begin = at + _PREFIX.size
            if begin > end:
                self._needed = _PREFIX.size
                break
            header_bytes, tensor_bytes = _PREFIX.unpack_from(data, at)
            if header_bytes > MAX_HEADER_BYTES:
                raise ValueError(f"frame header: expected <= {MAX_HEADER_BYTES} bytes, got {header_bytes}")
            after = begin + header_bytes + tensor_bytes
            if after > end:
                self._needed = after - at
                break
            frames.append(_decode(data, begin, begin + header_bytes, after))
            at = after
        else:
            self._needed = _PREFIX.size
        if at < end:
            self._rest += data[at:] if at else data
        return frames


def _decode(data: bytes, begin: int, at: int, end: int) -> Frame:
    """The frame whose header is data[begin:at] and whose tensors are data[at:end]."""
    name, fields, heads = _of_header(memoryview(data)[begin:at])
    tensors: list[Tensor] = []
    for tensor, datatype, shape, num_bytes in heads:
        tensors.append(Tensor(tensor, datatype, shape, data[at : at + num_bytes]))
        at += num_bytes
    if at != end:
        raise ValueError(f"frame {name}: expected tensors of {end} bytes in all, got {at}")
    return Frame(name, fields, tensors)
