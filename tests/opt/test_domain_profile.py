"""Measured rows become curves; what was not measured is an error."""

from __future__ import annotations

import pytest

from epara_opt.domain.profile import Curve, ProfileCatalogue
from epara_opt.errors import InputError


@pytest.mark.parametrize(("x", "y"), [(1, 10.0), (2, 20.0), (3, 30.0), (5, 50.0)])
def test_a_curve_is_linear_between_its_points(x: int, y: float) -> None:
    assert Curve("batch", (1, 5), (10.0, 50.0)).at(x) == y


@pytest.mark.parametrize("x", [0, 6])
def test_a_curve_ends_where_measuring_ended(x: int) -> None:
    with pytest.raises(InputError, match=f"expected a point inside the measured 1 .. 5, got {x}"):
        Curve("batch", (1, 5), (10.0, 50.0)).at(x)


def test_a_point_measured_twice_is_an_error(make) -> None:
    with pytest.raises(InputError, match=r"m on l4 tp1 pp1 at 1: expected each point once, got twice"):
        ProfileCatalogue.from_rows([make.row("m", latency_ms=1.0), make.row("m", latency_ms=2.0)])


@pytest.mark.parametrize(
    ("fields", "missing"),
    [({"prefill_ms": 5.0, "prompt_tokens": 10}, "decode_step_ms"), ({"decode_step_ms": 5.0}, "prefill_ms")],
)
def test_generation_needs_prefill_and_decode_rows(make, fields, missing: str) -> None:
    with pytest.raises(InputError, match=f"expected prefill and decode rows together, got no {missing} row"):
        ProfileCatalogue.from_rows([make.row("m", **fields)])


def test_latency_and_generation_rows_do_not_mix(make) -> None:
    rows = [
        make.row("m", latency_ms=1.0),
        make.row("m", prefill_ms=5.0, prompt_tokens=10),
        make.row("m", decode_step_ms=5.0),
    ]
    with pytest.raises(InputError, match="not both"):
        ProfileCatalogue.from_rows(rows)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "expected exactly one of latency_ms, prefill_ms, decode_step_ms, got 0"),
        ({"latency_ms": 1.0, "decode_step_ms": 1.0}, "expected exactly one of .*, got 2"),
        ({"latency_ms": 0.0}, "latency_ms: expected a finite number > 0, got 0.0"),
        ({"latency_ms": float("nan")}, "latency_ms: expected a finite number > 0, got nan"),
        ({"latency_ms": 1.0, "tp": 0}, "tp: expected >= 1, got 0"),
        ({"latency_ms": 1.0, "source": " "}, "source: expected where the number comes from"),
        ({"prefill_ms": 1.0}, "prompt_tokens: expected together with prefill_ms"),
        ({"latency_ms": 1.0, "load_s": -1.0}, "load_s: expected a finite number >= 0, got -1.0"),
    ],
)
def test_a_row_that_breaks_a_law_is_not_born(make, fields, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make.row("m", **fields)


def test_batches_are_measured_ones_and_powers_of_two_between(make) -> None:
    rows = [make.row("m", batch=b, latency_ms=10.0 + b) for b in (2, 12)]
    assert ProfileCatalogue.from_rows(rows).shapes("m", "l4")[1, 1].batch_points() == (2, 4, 8, 12)


def test_a_model_never_measured_has_no_shapes() -> None:
    assert ProfileCatalogue.from_rows([]).shapes("m", "l4") == {}
