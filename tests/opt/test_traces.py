"""Traces: read strictly, cut, and scaled in time without losing their burstiness."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from epara_opt.errors import InputError
from epara_opt.importers.catalogue import shipped_topologies
from epara_opt.traces import Trace, read_trace

HEADER = "arrival_s,context_tokens,generated_tokens\n"


@pytest.fixture
def three(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text("# a source\n" + HEADER + "0.0,10,5\n1.5,20,6\n4.0,30,7\n")
    return path


def test_a_trace_is_read_with_its_columns(three: Path) -> None:
    trace = read_trace(three)
    assert trace.arrival_s.tolist() == [0.0, 1.5, 4.0]
    assert trace.prompt_tokens.tolist() == [10, 20, 30]
    assert trace.output_tokens.tolist() == [5, 6, 7]
    assert (trace.duration_s, trace.rate_per_s) == (5.0, 0.6)


def test_a_window_starts_its_own_clock(three: Path) -> None:
    cut = read_trace(three).window(1.0, 3.0)
    assert cut.arrival_s.tolist() == [0.5]
    assert (cut.duration_s, cut.rate_per_s) == (3.0, pytest.approx(1 / 3))


def test_an_empty_window_is_a_trace_without_requests(three: Path) -> None:
    empty = read_trace(three).window(2.0, 1.0)
    assert (len(empty), empty.rate_per_s, empty.interarrival_cv) == (0, 0.0, 0.0)


def test_the_shipped_slice_has_the_published_character() -> None:
    trace = read_trace(shipped_topologies() / "traces" / "azure_llm_2023_conv_slice.csv")
    assert (len(trace), trace.duration_s) == (1445, 300.0)
    assert trace.interarrival_cv == pytest.approx(1.19, abs=0.01)
    assert 4.8 < trace.rate_per_s < 4.9


def test_scaling_sets_the_rate_and_keeps_the_burstiness() -> None:
    trace = read_trace(shipped_topologies() / "traces" / "azure_llm_2023_conv_slice.csv")
    slow = trace.scaled(2.0)
    assert slow.rate_per_s == pytest.approx(2.0)
    assert slow.interarrival_cv == pytest.approx(trace.interarrival_cv)
    assert np.array_equal(slow.prompt_tokens, trace.prompt_tokens)


def test_poisson_arrivals_have_a_cv_of_one() -> None:
    gaps = np.random.default_rng(7).exponential(0.1, size=20_000)
    trace = Trace(
        arrival_s=np.cumsum(gaps),
        prompt_tokens=np.ones(20_000, dtype=np.int64),
        output_tokens=np.ones(20_000, dtype=np.int64),
        duration_s=float(gaps.sum()) + 0.1,
    )
    assert trace.interarrival_cv == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "trace.csv: header: expected the columns arrival_s,context_tokens,generated_tokens, got nothing"),
        (
            "when,what\n",
            "trace.csv:1: header: expected the columns arrival_s,context_tokens,generated_tokens, got when,what",
        ),
        (HEADER, "trace.csv:1: expected at least one request, got none"),
        (HEADER + "0,1\n", "trace.csv:2: row: expected a number and two whole numbers, got 0,1"),
        (HEADER + "0,1,x\n", "trace.csv:2: row: expected a number and two whole numbers, got 0,1,x"),
        (HEADER + "nan,1,1\n", "trace.csv:2: arrival_s: expected >= the arrival before it, and >= 0, got nan"),
        (HEADER + "2,1,1\n1,1,1\n", "trace.csv:3: arrival_s: expected >= the arrival before it, and >= 0, got 1"),
        (HEADER + "0,0,1\n", "trace.csv:2: tokens: expected >= 1, got 0,0,1"),
    ],
)
def test_a_bad_trace_is_told_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("trace.csv").write_text(text)
    with pytest.raises(InputError) as caught:
        read_trace("trace.csv")
    assert str(caught.value) == message


def test_every_bad_line_is_told_at_once(three: Path) -> None:
    three.write_text(HEADER + "0,1,x\n1,1,1\n0.5,1,1\n")
    with pytest.raises(InputError) as caught:
        read_trace(three)
    assert [v.line for v in caught.value.violations] == [2, 4]


def test_a_rate_of_zero_is_refused(three: Path) -> None:
    with pytest.raises(InputError, match="rate_per_s: expected a finite number > 0, got 0"):
        read_trace(three).scaled(0)
