"""Rows measured on real workers."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from epara_executors.profiler import ProfileError, Progress, profile_model
from epara_executors.worker.launch import Launcher

from epara_opt.domain.profile import ProfileCatalogue


def quick(source: str, task: str, launcher: Launcher, **over: Any) -> list[Any]:
    given = {
        "model_root": Path("unused-with-a-launcher"),
        "launcher": launcher,
        "clock": itertools.count(step=10.0).__next__,  # every budget is spent at once: one round per point
        "now": datetime(2026, 1, 2, tzinfo=UTC),
        **over,
    }
    return list(profile_model(source, task, "box", **given))


def test_a_one_pass_model_gets_one_row_per_batch_that_the_catalogue_takes(launcher: Launcher) -> None:
    told: list[Progress] = []
    rows = quick(
        "tiny-vit",
        "image-classification",
        launcher,
        batches=(1, 2),
        frames=(1, 2),
        command=("epara", "profile", "tiny vit"),
        progress=told.append,
    )
    assert [r.batch for r in rows] == [1, 2, 4]
    assert all(r.latency_ms > 0 and r.load_s > 0 and r.memory_bytes > 6e6 for r in rows)
    assert [r.memory_bytes for r in rows] == sorted(r.memory_bytes for r in rows)
    assert rows[0].source.startswith("measured 2026-01-02 on cpu")
    assert "torch 2" in rows[0].source
    assert "`epara profile 'tiny vit'`" in rows[0].source
    assert told[0] == Progress(text="tiny-vit on box tp1 pp1: loading")
    assert [(p.done, p.total) for p in told[1:]] == [(0, 3), (1, 3), (2, 3)]
    profile = ProfileCatalogue.from_rows(rows).shapes("tiny-vit", "box")[1, 1]
    assert profile.batch_points() == (1, 2, 4)


def test_a_generating_model_gets_prefill_and_step_rows(launcher: Launcher) -> None:
    rows = quick(
        "tiny-llama",
        "text-generation",
        launcher,
        shapes=((1, 1), (1, 2)),
        batches=(1, 4),
        prompt_tokens=(8, 64),
        output_tokens=16,
        model="chat",
    )
    for shape in ((1, 1), (1, 2)):
        profile = ProfileCatalogue.from_rows(rows).shapes("chat", "box")[shape]
        assert profile.generates
        assert profile.prefill_ms.x == (8, 64)
        assert profile.decode_step_ms.x == (1, 4)
        assert profile.prefill_ms.at(64) > 0


def test_a_shape_that_cannot_be_loaded_gets_no_rows_and_its_reason_is_told(launcher: Launcher) -> None:
    told: list[Progress] = []
    rows = quick("tiny-segformer", "image-segmentation", launcher, shapes=((2, 1),), progress=told.append)
    assert rows == []
    assert told[-1].is_note
    assert "skipped" in told[-1].text
    assert "no tensor-parallel plan is known for segformer" in told[-1].text


def test_a_model_that_is_not_there_is_an_error(launcher: Launcher) -> None:
    with pytest.raises(ProfileError, match="model no-such: no folder"):
        quick("no-such", "image-classification", launcher)


def test_rows_say_how_sure_they_are_and_a_budget_spent_at_once_leaves_that_unknown(launcher: Launcher) -> None:
    hurried = quick("tiny-mlp", "tensor", launcher, batches=(1,))
    assert hurried[0].error is None
    patient = quick("tiny-mlp", "tensor", launcher, batches=(1,), clock=itertools.repeat(0.0).__next__)
    assert 0 <= patient[0].error < 10


def test_a_searched_curve_has_its_ends_and_says_how_well_it_is_known(launcher: Launcher) -> None:
    told: list[Progress] = []
    rows = quick(
        "tiny-mlp",
        "tensor",
        launcher,
        batches=(1, 32),
        tolerance=0.5,
        clock=itertools.count(step=0.01).__next__,
        progress=told.append,
    )
    sizes = [r.batch for r in rows]
    assert sizes == sorted(set(sizes))
    assert (sizes[0], sizes[-1]) == (1, 32)
    assert all(r.error is not None for r in rows)
    assert told[-1].is_note
    assert f"{len(rows)} sizes of 1 to 32: known within" in told[-1].text


@pytest.mark.parametrize("tolerance", [0.0, 1.0, -1.0])
def test_a_tolerance_that_is_none_is_an_error(launcher: Launcher, tolerance: float) -> None:
    with pytest.raises(ProfileError, match="tolerance: expected between 0 and 1, got"):
        quick("tiny-mlp", "tensor", launcher, tolerance=tolerance)


@pytest.mark.parametrize("batches", [(), (0, 1)])
def test_batches_that_are_none_are_an_error(launcher: Launcher, batches: tuple[int, ...]) -> None:
    with pytest.raises(ProfileError, match="batches: expected at least one, each >= 1"):
        quick("tiny-vit", "image-classification", launcher, batches=batches)
