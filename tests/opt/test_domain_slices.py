"""Slices between measured numbers of layers, and errors outside them."""

from __future__ import annotations

import pytest

from epara_opt.domain.profile import ProfileCatalogue
from epara_opt.domain.slices import slice_of, slice_shapes
from epara_opt.errors import InputError
from epara_opt.units import GIB


@pytest.fixture
def catalogue(make) -> ProfileCatalogue:
    rows = [make.row("big", layers=k, batch=b, latency_ms=10.0 * k * b, load_s=3.0 * k) for k in (2, 6) for b in (1, 4)]
    return ProfileCatalogue.from_rows([*rows, make.row("big", layers=6, batch=8, latency_ms=400.0)])


def test_between_measured_layers_every_curve_is_linear(catalogue: ProfileCatalogue) -> None:
    between = slice_of(catalogue, "big", "l4", 1, 3)
    assert between.latency_ms.at(1) == 30.0
    assert between.latency_ms.at(2) == 60.0
    assert between.interval_ms.at(4) == 120.0
    assert between.memory_bytes.at(1) == GIB // 2
    assert between.load_s == pytest.approx(9.0, abs=1.5)


def test_a_batch_measured_at_one_end_alone_is_not_known_between(catalogue: ProfileCatalogue) -> None:
    assert slice_of(catalogue, "big", "l4", 1, 6).latency_ms.covers(8)
    assert not slice_of(catalogue, "big", "l4", 1, 5).latency_ms.covers(8)


@pytest.mark.parametrize(("layers", "tp"), [(1, 1), (7, 1), (3, 2)])
def test_outside_what_was_measured_is_an_error(catalogue: ProfileCatalogue, layers: int, tp: int) -> None:
    with pytest.raises(InputError, match=rf"big on l4 tp{tp}: expected a slice inside the measured .*, got {layers}"):
        slice_of(catalogue, "big", "l4", tp, layers)


def test_shapes_are_those_measured(catalogue: ProfileCatalogue) -> None:
    assert slice_shapes(catalogue, "big", "l4") == (1,)
    assert slice_shapes(catalogue, "big", "t4") == ()
    assert catalogue.shapes("big", "l4") == {}
