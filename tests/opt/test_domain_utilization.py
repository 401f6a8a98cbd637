"""The table of utilizations that bursts leave room for: read, monotone, and used where replicas are rated."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from epara_opt.domain.utilization import AXES, TABLE, Kind, seen_cv, utilizations


def at(kind: Kind, target: float, cv: float, batch: float, time_left: float) -> float:
    one = [np.array([x]) for x in (cv, batch, time_left)]
    return float(utilizations(kind, target=target, cv=one[0], batch=one[1], time_left=one[2])[0])


@pytest.mark.parametrize("kind", list(Kind))
def test_at_its_points_the_table_is_what_the_file_says(kind: Kind) -> None:
    rows = [line.split(",") for line in TABLE.read_text().splitlines() if line.startswith(f"{kind},")]
    axes = AXES[kind]
    assert len(rows) == len(axes.target) * len(axes.cv) * len(axes.batch)
    for row in rows:
        target, cv, batch = (float(x) for x in row[1:4])
        found = [at(kind, target, cv, batch, t) for t in axes.time_left]
        assert found == pytest.approx([float(x) for x in row[4:]], abs=1e-9)


@pytest.mark.parametrize("kind", list(Kind))
def test_more_time_larger_batches_lower_targets_and_less_burstiness_never_lower_it(kind: Kind) -> None:
    rng = np.random.default_rng(7)
    size = 4000
    point = {
        "cv": rng.uniform(0, 7, size),
        "batch": 2 ** rng.uniform(0, 7, size),
        "time_left": rng.uniform(0, 70, size),
    }
    better = {
        "cv": np.maximum(0.0, point["cv"] - rng.uniform(0, 2, size)),
        "batch": point["batch"] * rng.uniform(1, 3, size),
        "time_left": point["time_left"] + rng.uniform(0, 5, size),
    }
    base = utilizations(kind, target=0.97, **point)
    assert ((base > 0) & (base <= 1)).all()
    assert (utilizations(kind, target=0.93, **point) >= base - 1e-12).all()
    for key, value in better.items():
        assert (utilizations(kind, target=0.97, **{**point, key: value}) >= base - 1e-12).all(), key


def test_one_slot_without_waiting_is_erlangs_loss() -> None:
    """A share B = a / (1 + a) of Poisson arrivals finds the one slot taken, whatever the length: a = B / (1 - B)."""
    for target in (0.9, 0.95):
        lost = 1.0 - target
        assert at(Kind.SLOTS, target, 1.0, 1, 0.0) == pytest.approx(lost / (1.0 - lost), rel=0.1)


def test_beyond_the_table_its_nearest_point_counts() -> None:
    for kind, outside, inside in itertools.product(Kind, [(9.0, 128.0, 500.0)], [(6.0, 64.0, 60.0)]):
        last = AXES[kind].time_left[-1]
        assert at(kind, 0.99, *outside) == at(kind, 0.99, *inside[:2], last)


def test_a_random_part_of_a_bursty_process_is_less_bursty_by_the_exact_formula() -> None:
    work = np.array([5.0, 20.0, 80.0])
    assert seen_cv([(20.0, 3.0)], work) == pytest.approx([math.sqrt(1 + 0.25 * 8), 3.0, 3.0])
    assert seen_cv([(10.0, 2.0), (30.0, 4.0)], np.array([1e9])) == pytest.approx([math.sqrt(0.25 * 4 + 0.75 * 16)])
    assert seen_cv([], work) == pytest.approx([1.0, 1.0, 1.0])
