"""Frames between planner and solver process."""

from __future__ import annotations

import io

import numpy as np
import pytest
from epara_solvers import wire

from epara_opt.formulation.program import MilpProgram, MilpResult, SearchStop


def test_a_program_survives_the_wire_but_for_its_names() -> None:
    sent = MilpProgram(
        objective=np.array([1.0, 2.0]),
        col_lower=np.zeros(2),
        col_upper=np.array([1.0, np.inf]),
        is_integer=np.array([True, False]),
        row_start=np.array([0, 2]),
        col_index=np.array([0, 1]),
        coefficient=np.array([0.5, 1e-9]),
        row_lower=np.array([-np.inf]),
        row_upper=np.array([3.0]),
        row_names=("devices[a,gpu]",),
    )
    stream = io.BytesIO()
    wire.write_frame(stream, {"kind": "solve", "gap": 1e-4}, wire.program_to_arrays(sent))
    stream.seek(0)
    frame = wire.read_frame(stream)
    assert frame is not None
    meta, arrays = frame
    assert meta == {"kind": "solve", "gap": 1e-4}
    received = wire.program_from_arrays(arrays)
    assert received.row_names == ()
    for name in ("objective", "col_upper", "is_integer", "coefficient", "row_lower"):
        assert np.array_equal(getattr(received, name), getattr(sent, name))


@pytest.mark.parametrize("x", [None, np.array([0.0, 1.0])])
def test_a_result_survives_the_wire(x: np.ndarray | None) -> None:
    sent = MilpResult(
        stop=SearchStop.TIME_LIMIT, x=x, objective=None if x is None else 1.0, dual_bound=2.5, wall_s=0.1, detail="ü"
    )
    received = wire.result_from_frame(*wire.result_to_frame(sent))
    assert (received.stop, received.objective, received.dual_bound, received.detail) == (
        sent.stop,
        sent.objective,
        sent.dual_bound,
        sent.detail,
    )
    assert (received.x is None) == (x is None)


def test_a_frame_cut_off_is_the_end() -> None:
    stream = io.BytesIO()
    wire.write_frame(stream, {"kind": "hello"})
    assert wire.read_frame(io.BytesIO(stream.getvalue()[:-3])) is None
    assert wire.read_frame(io.BytesIO(b"")) is None
