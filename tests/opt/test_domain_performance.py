"""The rules that turn a profile into response, rate and memory."""

from __future__ import annotations

import pytest

from epara_opt.domain.parallel import ParallelConfig
from epara_opt.domain.performance import Performance, configurations, evaluate
from epara_opt.domain.profile import ProfileCatalogue
from epara_opt.domain.service import Service
from epara_opt.errors import InputError


def measure(make, service: Service, config: ParallelConfig, *rows) -> Performance:
    profile = ProfileCatalogue.from_rows(rows).shapes(service.name, "l4")[config.tp, config.pp]
    return evaluate(service, profile, config)


def test_a_request_that_just_missed_a_batch_waits_for_it_and_its_own(make) -> None:
    p = measure(make, make.latency("m"), ParallelConfig(batch=4), make.row("m", batch=4, latency_ms=20.0))
    assert (p.response_ms, p.work_per_s, p.quantum_ms) == (40.0, 200.0, 20.0)


def test_a_pipeline_starts_a_batch_each_interval(make) -> None:
    p = measure(make, make.latency("m"), ParallelConfig(pp=2), make.row("m", pp=2, latency_ms=20.0))
    assert (p.response_ms, p.work_per_s) == (40.0, 100.0)


def test_a_measured_interval_wins_over_even_stages(make) -> None:
    rows = make.row("m", pp=2, latency_ms=20.0, interval_ms=16.0)
    assert measure(make, make.latency("m"), ParallelConfig(pp=2), rows).work_per_s == 62.5


def test_a_multi_frame_batch_waits_for_its_last_frame_and_counts_in_streams(make) -> None:
    rows = make.row("m", batch=4, latency_ms=20.0)
    p = measure(make, make.stream("m", fps=10.0), ParallelConfig(frames=4), rows)
    assert (p.response_ms, p.work_per_s) == (340.0, 20.0)


def test_generation_pays_prefill_of_all_slots_and_a_step_per_token(make) -> None:
    rows = (
        make.row("m", prefill_ms=40.0, prompt_tokens=100),
        make.row("m", batch=2, decode_step_ms=12.0),
    )
    p = measure(make, make.chat("m"), ParallelConfig(batch=2), *rows)
    assert p.batch_ms == 2 * 40 + 10 * 12
    assert p.response_ms == 40 + 200
    assert p.tpot_ms == (200 - 40) / 10
    assert p.work_per_s == 10.0
    assert p.num_pieces == 11


def test_first_token_objective_counts_wait_and_prefill_only(make) -> None:
    rows = (make.row("m", prefill_ms=40.0, prompt_tokens=100), make.row("m", decode_step_ms=12.0))
    service = make.chat("m", slo_ms=None, ttft_ms=200.0, tpot_ms=50.0)
    p = measure(make, service, ParallelConfig(), *rows)
    assert (p.response_ms, p.num_pieces) == (80.0, 1)


def test_company_adds_one_piece_of_the_others_per_piece_of_ours(make) -> None:
    p = measure(make, make.latency("m"), ParallelConfig(), make.row("m", latency_ms=10.0))
    assert p.response_in_company_ms(7.0) == 20.0 + 2 * 7.0
    assert p.tpot_in_company_ms(7.0) == 0.0


@pytest.mark.parametrize(("measured", "needed"), [(1000, 1000), (1001, 1001)])
def test_memory_is_what_was_measured_and_never_less(make, measured: int, needed: int) -> None:
    rows = make.row("m", latency_ms=10.0, memory_bytes=measured)
    assert measure(make, make.latency("m"), ParallelConfig(), rows).memory_bytes == needed


def test_interpolated_memory_is_rounded_up(make) -> None:
    rows = (
        make.row("m", batch=1, latency_ms=10.0, memory_bytes=1000),
        make.row("m", batch=4, latency_ms=20.0, memory_bytes=2000),
    )
    assert measure(make, make.latency("m"), ParallelConfig(batch=2), *rows).memory_bytes == 1334


def test_a_point_outside_the_profile_is_named_not_guessed(make) -> None:
    with pytest.raises(InputError, match=r"m on l4 tp1 pp1.batch: expected a point inside the measured 1 .. 1, got 2"):
        measure(make, make.latency("m"), ParallelConfig(batch=2), make.row("m", latency_ms=10.0))


def test_a_prompt_longer_than_any_measured_is_an_error(make) -> None:
    rows = (make.row("m", prefill_ms=4.0, prompt_tokens=64), make.row("m", decode_step_ms=1.0))
    with pytest.raises(InputError, match=r"prompt_tokens: expected a point inside the measured 64 .. 64, got 100"):
        measure(make, make.chat("m"), ParallelConfig(), *rows)


def test_only_streams_have_multi_frame_configurations(make) -> None:
    rows = [make.row("m", batch=b, latency_ms=10.0 + b) for b in (1, 2, 4)]
    profile = ProfileCatalogue.from_rows(rows).shapes("m", "l4")[1, 1]
    assert {c.frames for c in configurations(make.latency("m"), profile)} == {1}
    streams = {(c.batch, c.frames) for c in configurations(make.stream("m"), profile)}
    assert streams == {(1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (1, 4)}
