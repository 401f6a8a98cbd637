from collections import Counter
from itertools import groupby

import pytest

from epara_opt.policy.routing import SmoothWeighted, StreamTable


def test_choices_are_in_proportion_and_evenly_spread():
    turns = SmoothWeighted({"a": 5.0, "b": 1.0, "c": 1.0})
    assert "".join(turns.choose() or "" for _ in range(7)) == "aabacaa"


def test_only_the_able_are_chosen():
    turns = SmoothWeighted({"a": 5.0, "b": 1.0})
    assert [turns.choose({"b"}) for _ in range(3)] == ["b"] * 3
    assert turns.choose(set()) is None


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match=r"weights\.a: expected >= 0, got -1"):
        SmoothWeighted({"a": -1})


def test_streams_fill_routes_evenly_and_stick():
    table = StreamTable(10.0, {"a": 20.0, "b": 20.0})
    chosen = {s: {table.choose(s, now=0.01 * i) for i in range(5)} for s in ("s1", "s2", "s3", "s4")}
    assert all(len(routes) == 1 for routes in chosen.values())
    assert Counter(next(iter(r)) for r in chosen.values()) == {"a": 2, "b": 2}


def test_a_stream_faster_than_any_route_goes_round_robin_over_several():
    table = StreamTable(30.0, {"a": 15.0, "b": 15.0, "c": 10.0})
    frames = Counter(table.choose("s", now=0.0) for _ in range(30))
    assert frames == {"a": 15, "b": 15}


def test_a_stream_that_ended_gives_its_rate_back():
    table = StreamTable(10.0, {"a": 10.0, "b": 9.0})
    assert table.choose("s1", now=0.0) == "a"
    assert table.choose("s2", now=6.0) == "a"
    assert table.num_streams(6.0) == 1


def test_a_stream_whose_routes_are_all_down_gets_none():
    table = StreamTable(10.0, {"a": 10.0, "b": 10.0})
    assert table.choose("s", now=0.0) == "a"
    assert table.choose("s", now=0.1, among={"b"}) is None


def test_frames_go_as_runs_to_replicas_that_batch_them():
    table = StreamTable(30.0, {"a": 15.0, "b": 15.0}, {"a": 4, "b": 2})
    chosen = "".join(table.choose("s", now=0.0) or "" for _ in range(48))
    assert Counter(chosen) == {"a": 24, "b": 24}
    runs = ["".join(g) for _, g in groupby(chosen)]
    assert {len(r) % 4 for r in runs if r[0] == "a"} == {0}
    assert {len(r) % 2 for r in runs if r[0] == "b"} == {0}


def test_a_run_whose_replica_is_lost_goes_on_elsewhere():
    table = StreamTable(30.0, {"a": 15.0, "b": 15.0}, {"a": 4, "b": 4})
    assert [table.choose("s", now=0.0) for _ in range(2)] == ["a", "a"]
    assert [table.choose("s", now=0.0, among={"b"}) for _ in range(2)] == ["b", "b"]


def test_a_stream_that_says_it_is_over_gives_its_rate_back_at_once():
    table = StreamTable(10.0, {"a": 10.0, "b": 9.0})
    assert table.choose("s1", now=0.0) == "a"
    table.end("s1")
    table.end("never heard of")
    assert table.choose("s2", now=0.0) == "a"
    assert table.num_streams(0.0) == 1
