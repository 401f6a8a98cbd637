"""Single- or multi-device is derived from profiles, and the reason says which numbers decided."""

from __future__ import annotations

import pytest

from epara_opt.domain.category import Scale, categorize
from epara_opt.errors import InputError
from epara_opt.units import GIB


def categorized(make, service, *rows):
    edge = make.edge(services=[service], rows=rows, demand=[])
    return categorize(service, edge.topology, edge.catalogue)


def test_a_service_that_one_device_holds_in_time_is_single_device(make) -> None:
    category = categorized(make, make.latency("m"), make.row("m", latency_ms=10.0))
    assert category.scale is Scale.SINGLE_DEVICE
    assert "one l4 holds it" in category.reason
    assert category.operators == ("BS", "MT")


@pytest.mark.parametrize(("memory_gib", "scale"), [(22, Scale.SINGLE_DEVICE), (23, Scale.MULTI_DEVICE)])
def test_memory_decides_to_the_byte(make, memory_gib: int, scale: Scale) -> None:
    row = make.row("m", latency_ms=10.0, memory_bytes=memory_gib * GIB)
    assert categorized(make, make.latency("m"), row).scale is scale


@pytest.mark.parametrize(("latency_ms", "scale"), [(50.0, Scale.SINGLE_DEVICE), (50.1, Scale.MULTI_DEVICE)])
def test_the_deadline_decides(make, latency_ms: float, scale: Scale) -> None:
    category = categorized(make, make.latency("m", slo_ms=100.0), make.row("m", latency_ms=latency_ms))
    assert category.scale is scale


@pytest.mark.parametrize(("latency_ms", "scale"), [(100.0, Scale.SINGLE_DEVICE), (125.0, Scale.MULTI_DEVICE)])
def test_a_stream_must_reach_its_frame_rate_on_one_device(make, latency_ms: float, scale: Scale) -> None:
    service = make.stream("m", fps=10.0, frame_deadline_ms=500.0)
    category = categorized(make, service, make.row("m", latency_ms=latency_ms))
    assert category.scale is scale
    assert category.operators[-2:] == ("MF", "DP")


def test_token_pace_decides_too(make) -> None:
    rows = (make.row("m", prefill_ms=40.0, prompt_tokens=100), make.row("m", decode_step_ms=60.0))
    service = make.chat("m", slo_ms=None, ttft_ms=500.0, tpot_ms=50.0)
    assert categorized(make, service, *rows).scale is Scale.MULTI_DEVICE


def test_without_a_single_device_profile_it_is_multi_device(make) -> None:
    category = categorized(make, make.latency("m"), make.row("m", tp=2, latency_ms=10.0))
    assert category.scale is Scale.MULTI_DEVICE
    assert category.reason == "l4: no single-device profile"
    assert "MP" in category.operators


@pytest.mark.parametrize("declared", [True, False])
def test_a_declared_scale_must_be_the_derived_one(make, declared: bool) -> None:
    service = make.latency("m", declared_multi_device=declared)
    if declared:
        with pytest.raises(InputError, match=r"services\.m\.scale: expected single-device .*got multi-device"):
            categorized(make, service, make.row("m", latency_ms=10.0))
    else:
        assert categorized(make, service, make.row("m", latency_ms=10.0)).scale is Scale.SINGLE_DEVICE
