"""A chain's response, rate and memory, computed by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from epara_opt.domain.chain import evaluate_chain
from epara_opt.domain.parallel import ParallelConfig
from epara_opt.domain.performance import evaluate
from epara_opt.domain.profile import ProfileCatalogue
from epara_opt.domain.routes import Path
from epara_opt.domain.service import RequestShape
from epara_opt.domain.slices import slice_of
from epara_opt.units import GIB

HERE = Path(hops=(), rtt_ms=0.0, bandwidth_bytes_per_s=math.inf)
THERE = Path(hops=(("a", "b"),), rtt_ms=2.0, bandwidth_bytes_per_s=1e6)
BACK = Path(hops=(("b", "a"),), rtt_ms=2.0, bandwidth_bytes_per_s=1e6)


def test_a_batch_passes_all_stages_and_hops_and_may_wait_for_one_before_it(make) -> None:
    catalogue = ProfileCatalogue.from_rows(make.big_rows())
    slices = [slice_of(catalogue, "big", "l4", 1, k) for k in (4, 2)]
    found = evaluate_chain(make.big(), slices, ParallelConfig(1, 2), [THERE, BACK])
    assert found.whole.response_ms == pytest.approx(2 * (40 + 20 + 2 + 1))
    assert found.whole.work_per_s == pytest.approx(1000 / 40)
    assert found.memory_bytes == (4 * GIB, 2 * GIB)
    assert found.hop_bytes == (1000.0, 0.0)
    assert found.whole.load_s == pytest.approx(12.0)


def test_a_narrow_hop_sets_the_rate(make) -> None:
    catalogue = ProfileCatalogue.from_rows(make.big_rows())
    slices = [slice_of(catalogue, "big", "l4", 1, k) for k in (4, 2)]
    narrow = replace(THERE, bandwidth_bytes_per_s=1e4)
    found = evaluate_chain(make.big(), slices, ParallelConfig(1, 2), [narrow, BACK])
    assert found.whole.work_per_s == pytest.approx(1000 / 100)


def test_tokens_go_round_all_hops_each_step(make) -> None:
    request = RequestShape(output_bytes=0.0, prompt_tokens=100, output_tokens=10)
    model = replace(make.big().model, task=make.chat("c").model.task, activation_bytes=10.0)
    service = replace(make.chat("big", slo_ms=5000.0, request=request), model=model)
    catalogue = ProfileCatalogue.from_rows(
        [
            make.row("big", layers=3, prefill_ms=30.0, prompt_tokens=100),
            *(make.row("big", layers=3, decode_step_ms=5.0 + b, batch=b, memory_bytes=b * GIB) for b in (1, 2, 4)),
        ]
    )
    part = slice_of(catalogue, "big", "l4", 1, 3)
    found = evaluate_chain(service, [part, part], ParallelConfig(1, 2, 2), [THERE, BACK])
    # Prefill: 2 x 30, 1 ms + 1 kB there, 1 ms back. A step of two: 2 x 7, 1 ms + 20 bytes there, 1 ms back.
    prefill_ms, step_ms = 60 + 1 + 1 + 1, 14 + 1 + 0.02 + 1
    e2e_ms = 2 * prefill_ms + 10 * step_ms
    assert found.whole.batch_ms == pytest.approx(e2e_ms)
    assert found.whole.response_ms == pytest.approx(prefill_ms + e2e_ms)
    assert found.whole.tpot_ms == pytest.approx((e2e_ms - prefill_ms) / 10)
    assert found.whole.work_per_s == pytest.approx(1000 * 2 * 2 / e2e_ms)
    assert found.memory_bytes == (4 * GIB, 4 * GIB)  # caches of both batches in flight
    assert found.hop_bytes == (1100.0, 0.0)


def test_with_even_stages_and_no_hops_a_chain_is_a_pipeline_in_one_server(make) -> None:
    service = make.chat("chat", slo_ms=5000.0)
    rows = [
        make.row("chat", layers=3, prefill_ms=30.0, prompt_tokens=100),
        *(make.row("chat", layers=3, decode_step_ms=5.0, batch=b) for b in (1, 2)),
        make.row("chat", pp=2, prefill_ms=60.0, prompt_tokens=100),
        make.row("chat", pp=2, decode_step_ms=10.0),
    ]
    catalogue = ProfileCatalogue.from_rows(rows)
    part = slice_of(catalogue, "chat", "l4", 1, 3)
    chain = evaluate_chain(service, [part, part], ParallelConfig(1, 2), [HERE, HERE]).whole
    assert chain == evaluate(service, catalogue.shapes("chat", "l4")[1, 2], ParallelConfig(1, 2))


def test_a_slow_stage_holds_up_all_batches_in_flight(make) -> None:
    service = make.chat("chat", slo_ms=5000.0)
    rows = [
        row
        for k, ms in ((1, 10.0), (5, 50.0))
        for row in (
            make.row("chat", layers=k, prefill_ms=ms, prompt_tokens=100),
            *(make.row("chat", layers=k, decode_step_ms=ms, batch=b) for b in (1, 2)),
        )
    ]
    catalogue = ProfileCatalogue.from_rows(rows)
    slices = [slice_of(catalogue, "chat", "l4", 1, k) for k in (5, 1)]
    found = evaluate_chain(service, slices, ParallelConfig(1, 2), [HERE, HERE]).whole
    assert found.batch_ms == pytest.approx(2 * (50 + 10 * 50))
    assert found.work_per_s == pytest.approx(1000 / (50 + 10 * 50))
