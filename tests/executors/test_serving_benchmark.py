"""The serving benchmark's arithmetic: which round is paired with which, and what a median is of. Times nothing."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "serving"


@pytest.fixture(scope="module")
def rows() -> ModuleType:
    """benchmarks/serving/rows.py, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("serving_rows", FOLDER / "rows.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


def round_of(rows: ModuleType, index: int, server: str, throughput: float, **over: Any) -> Any:
    figures = {"model": "m", "clients": 8, "p50_ms": 2.0, "p99_ms": 4.0, "cpu_ms": 1.0}
    return rows.Round(index=index, server=server, throughput=throughput, **{**figures, **over})


def test_ratios_pair_the_servers_of_a_round_before_the_median_is_taken(rows: ModuleType) -> None:
    floor = [round_of(rows, i, "floor", t) for i, t in enumerate((100.0, 200.0, 400.0))]
    ours = [round_of(rows, i, "epara", t) for i, t in enumerate((50.0, 180.0, 400.0))]
    first, second = rows.rows_of([*floor, *ours])
    assert (first["server"], first["throughput"], first["throughput_ratio"]) == ("floor", 200.0, 1.0)
    assert (second["server"], second["throughput"], second["throughput_ratio"]) == ("epara", 180.0, 0.9)


def test_every_metric_has_its_figure_and_its_ratio(rows: ModuleType) -> None:
    floor = round_of(rows, 0, "floor", 100.0)
    ours = round_of(rows, 0, "epara", 50.0, p50_ms=3.0, p99_ms=10.0, cpu_ms=0.5)
    _, row = rows.rows_of([floor, ours])
    assert row == {
        "model": "m",
        "server": "epara",
        "clients": 8,
        "throughput_ratio": 0.5,
        "p50_ratio": 1.5,
        "p99_ratio": 2.5,
        "cpu_ratio": 0.5,
        "throughput": 50.0,
        "p50_ms": 3.0,
        "p99_ms": 10.0,
        "cpu_ms": 0.5,
    }


def test_numbers_of_clients_are_rows_of_their_own_and_without_a_floor_there_is_no_ratio(rows: ModuleType) -> None:
    made = rows.rows_of(
        [
            round_of(rows, 0, "floor", 100.0),
            round_of(rows, 0, "epara", 50.0),
            round_of(rows, 0, "epara", 9.0, clients=1),
        ]
    )
    assert [(r["server"], r["clients"]) for r in made] == [("floor", 8), ("epara", 8), ("epara", 1)]
    assert made[2]["throughput_ratio"] is None
    assert made[2]["throughput"] == 9.0


def test_a_percentile_is_a_value_that_was_seen(rows: ModuleType) -> None:
    values = [float(n) for n in range(100, 0, -1)]
    assert (rows.percentile(values, 0.5), rows.percentile(values, 0.99), rows.percentile([7.0], 0.99)) == (50, 99, 7)
    with pytest.raises(ValueError, match="values: expected at least one, got none"):
        rows.percentile([], 0.5)
