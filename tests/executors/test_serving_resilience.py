"""The arithmetic of the benchmarks of resilience, and their calls that go wrong against an executor. Times nothing."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc.aio
import numpy as np
import psutil
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "serving"


@pytest.fixture(scope="module")
def serving() -> Iterator[Any]:
    """Import a file of benchmarks/serving, which is no package, by name."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def outcomes(serving: Any) -> ModuleType:
    return serving("outcomes")


def outcome(outcomes: ModuleType, sent_at: float, done_at: float, status: str = "OK", **over: Any) -> Any:
    return outcomes.Outcome(
        **{"flow": 0, "due_at": sent_at, "sent_at": sent_at, "done_at": done_at, **over}, status=status
    )


def test_outcomes_come_in_order_of_sending(outcomes: ModuleType) -> None:
    columns = {
        "flow": [0, 1],
        "due_at": [2.0, 1.0],
        "sent_at": [2.5, 1.0],
        "done_at": [3.0, 4.0],
        "status": ["OK", "NO"],
        "detail": ["", "why"],
    }
    first, second = outcomes.outcomes_of(columns)
    assert (first.flow, first.taken_ms, first.status, first.detail) == (1, 3000.0, "NO", "why")
    assert (second.flow, second.taken_ms, second.late_ms) == (0, 500.0, 500.0)


def test_goodput_counts_what_was_due_in_the_window_and_on_time_by_its_own_flow(outcomes: ModuleType) -> None:
    seen = [
        outcome(outcomes, 0.9, 1.0),  # before the window
        outcome(outcomes, 1.0, 1.1),
        outcome(outcomes, 1.5, 1.7),  # late for flow 0
        outcome(outcomes, 1.5, 1.7, flow=1),
        outcome(outcomes, 1.6, 1.6, "RESOURCE_EXHAUSTED"),
        outcome(outcomes, 2.9, 3.0),  # answered after the window, due in it
        outcome(outcomes, 3.0, 3.1),  # due after it
    ]
    assert outcomes.goodput(seen, [150.0, 300.0], begins_at=1.0, ends_at=3.0) == 1.5
    with pytest.raises(ValueError, match="ends_at: expected > begins_at = 1, got 1"):
        outcomes.goodput(seen, [150.0], begins_at=1.0, ends_at=1.0)


def test_a_gap_is_between_good_answers_only(outcomes: ModuleType) -> None:
    seen = [outcome(outcomes, 0, 1.0), outcome(outcomes, 0, 1.4, "UNAVAILABLE"), outcome(outcomes, 0, 1.75)]
    assert outcomes.longest_gap_s(seen) == 0.75
    assert outcomes.longest_gap_s(seen[:2]) == 0.0


def test_a_request_is_lost_by_its_last_call(outcomes: ModuleType) -> None:
    seen = [
        outcome(outcomes, 1.0, 1.1, "UNAVAILABLE"),
        outcome(outcomes, 1.1, 1.2, due_at=1.0),  # its second try
        outcome(outcomes, 1.0, 1.3, "UNAVAILABLE", flow=1),
        outcome(outcomes, 2.0, 2.1, "WRONG"),
    ]
    assert outcomes.lost(seen) == 2
    assert outcomes.in_flight(seen, 1.1) == [seen[2]]
    assert outcomes.statuses(seen) == {"UNAVAILABLE": 2, "OK": 1, "WRONG": 1}


def test_who_was_not_let_in_is_told_from_who_was_lost(outcomes: ModuleType) -> None:
    seen = [
        outcome(outcomes, 1.0, 2.0),  # in flight when the first was refused
        outcome(outcomes, 1.0, 2.0, "UNAVAILABLE", detail="Socket closed"),  # so was this one, and it was lost
        outcome(outcomes, 1.4, 1.5, "UNAVAILABLE", detail="executor b is draining"),
        outcome(outcomes, 1.6, 1.7, "UNAVAILABLE", detail="failed to connect to all addresses"),
        outcome(outcomes, 1.6, 1.8),  # elsewhere
    ]
    left = outcomes.left_behind(seen)
    assert (left["in_flight"], left["in_flight_lost"]) == (2, 1)


def test_a_row_says_whether_its_target_was_met(outcomes: ModuleType) -> None:
    assert [outcomes.row("x", v, "s", law="<=", target=0.3)["met"] for v in (0.3, 0.31)] == [True, False]
    assert outcomes.row("x", 1.0, "s")["met"] is None
    with pytest.raises(ValueError, match="law: expected one of >=, <=, ==, got <"):
        outcomes.row("x", 1.0, "s", law="<", target=1.0)


def test_rounds_of_one_rate_offer_the_same_number(serving: Any) -> None:
    arrivals = serving("open_loop").arrivals
    made = [arrivals({"rate_per_s": 50}, 2.0, np.random.default_rng(seed)) for seed in (1, 2)]
    assert [len(m) for m in made] == [100, 100]
    assert not np.array_equal(*made)
    assert all((np.diff(m) >= 0).all() and m[0] >= 0 and m[-1] < 2.0 for m in made)
    even = arrivals({"rate_per_s": 4, "arrivals": "even"}, 1.0, np.random.default_rng(0))
    assert even.tolist() == [0.0, 0.25, 0.5, 0.75]


def test_calls_that_go_wrong_end_with_their_status_and_leave_nothing_behind(echo_edge: Any, serving: Any) -> None:
    wrong_calls = serving("wrong_calls")
    executor = echo_edge.start("a", "127.0.0.1:0", "--max-message-mib", "1")
    rows = echo_edge.tenant(service="rows", source="echo?width=256", batch=16, deadline_ms=60_000.0)
    talk = echo_edge.tenant(
        service="talk", group="g1", source="echo?latency_ms=5", task="text-generation", batch=4, deadline_ms=60_000.0
    )
    echo_edge.apply("a", echo_edge.group("a", rows), echo_edge.group("a", talk, name="g1", device=1))

    async def calls(number: int) -> dict[str, dict[str, int]]:
        async with grpc.aio.insecure_channel(executor.address, options=wrong_calls.OPTIONS) as channel:
            to = wrong_calls.Target(
                address=executor.address,
                channel=channel,
                rows="rows",
                width=256,
                max_rows=16,
                talk="talk",
                prompt="on and on",
                max_message_bytes=2**20,
            )
            return await wrong_calls.make_calls(to, number, seed=0)

    def quiet() -> bool:
        return not any(r.queued for r in echo_edge.state("a").replicas)

    agent = psutil.Process(executor.pid)
    asyncio.run(calls(100))
    echo_edge.until(quiet)
    files, bytes_before = agent.num_fds(), agent.memory_info().rss
    seen = asyncio.run(calls(300))
    assert wrong_calls.wrong_ends(seen) == {}
    assert sum(sum(ended.values()) for ended in seen.values()) == 300
    assert all(seen.values())  # of every kind some
    echo_edge.until(quiet)
    assert agent.num_fds() <= files
    assert agent.memory_info().rss <= bytes_before + 24 * 2**20  # a large message each, kept, would be 15 and more
