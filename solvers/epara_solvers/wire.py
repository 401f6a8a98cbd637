"""Frames between a planner and its solver process: arrays as npz, the rest as JSON inside it. No pickle.

A frame is eight bytes of length (big-endian), then an uncompressed npz whose entry "meta" is UTF-8 JSON.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from epara_opt.formulation.program import MilpProgram, MilpResult, SearchStop

Arrays = dict[str, npt.NDArray[Any]]

_LENGTH = struct.Struct(">Q")
_PROGRAM_ARRAYS = (
    "objective",
    "col_lower",
    "col_upper",
    "is_integer",
    "row_start",
    "col_index",
    "coefficient",
    "row_lower",
    "row_upper",
)


def write_frame(
    stream: BinaryIO, meta: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]] | None = None
) -> None:
    """Write one frame and flush. Raises OSError when the other side is gone."""
    text = np.frombuffer(json.dumps(dict(meta)).encode(), dtype=np.uint8)
    buffer = io.BytesIO()
    entries: dict[str, Any] = {"meta": text, **(arrays or {})}
    np.savez(buffer, **entries)
    payload = buffer.getbuffer()
    stream.write(_LENGTH.pack(len(payload)))
    stream.write(payload)
    stream.flush()


def read_frame(stream: BinaryIO) -> tuple[dict[str, Any], Arrays] | None:
    """Read one frame; None at the end of the stream, also in the middle of a frame."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (size,) = _LENGTH.unpack(head)
    payload = stream.read(size)
    if len(payload) < size:
        return None
    with np.load(io.BytesIO(payload), allow_pickle=False) as loaded:
        arrays = {name: loaded[name] for name in loaded.files}
    meta = cast("dict[str, Any]", json.loads(arrays.pop("meta").tobytes().decode()))
    return meta, arrays


def program_to_arrays(program: MilpProgram) -> Arrays:
    """Names stay at home: back ends know indexes only."""
    return {name: getattr(program, name) for name in _PROGRAM_ARRAYS}


def program_from_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> MilpProgram:
    fields: dict[str, Any] = {name: arrays[name] for name in _PROGRAM_ARRAYS}
    return MilpProgram(**fields)


def result_to_frame(result: MilpResult) -> tuple[dict[str, Any], Arrays]:
    meta = {
        "kind": "result",
        "stop": result.stop.value,
        "objective": result.objective,
        "dual_bound": result.dual_bound,
        "wall_s": result.wall_s,
        "detail": result.detail,
    }
    return meta, {} if result.x is None else {"x": result.x}


def result_from_frame(meta: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> MilpResult:
    return MilpResult(
        stop=SearchStop(meta["stop"]),
        x=arrays.get("x"),
        objective=meta["objective"],
        dual_bound=meta["dual_bound"],
        wall_s=meta["wall_s"],
        detail=meta["detail"],
    )
