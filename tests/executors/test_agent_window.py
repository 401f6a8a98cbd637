"""Rates from counters, on a clock of the test's own."""

import pytest
from epara_executors.agent.window import Window


def looked(*looks, span_s=10.0):
    window = Window(span_s=span_s)
    for at, counts in looks:
        window.look(at, counts)
    return window


def test_a_rate_is_growth_over_the_time_between_looks():
    assert looked((100.0, {"a": 5}), (101.0, {"a": 8}), (104.0, {"a": 13})).per_s("a") == 2.0


@pytest.mark.parametrize("looks", [(), ((1.0, {"a": 5}),), ((1.0, {"b": 1}), (2.0, {"b": 2}))])
def test_nothing_is_claimed_of_what_was_not_seen_twice(looks):
    assert looked(*looks).per_s("a") == 0.0


def test_what_lies_before_the_span_is_forgotten():
    window = looked(*((float(t), {"a": 100.0 if t >= 5 else 0.0}) for t in range(30)))
    assert window.per_s("a") == 0.0
    window.look(30.0, {"a": 150.0})
    assert window.per_s("a") == 5.0


def test_a_counter_that_comes_later_stood_at_zero_the_look_before():
    assert looked((0.0, {}), (1.0, {}), (2.0, {"a": 4}), (3.0, {"a": 6})).per_s("a") == 3.0


def test_a_counter_that_began_anew_gives_no_negative_rate():
    assert looked((0.0, {"a": 90}), (1.0, {"a": 100}), (2.0, {"a": 1}), (4.0, {"a": 5})).per_s("a") == 2.0


def test_a_counter_that_left_has_no_rate():
    assert looked((0.0, {"a": 1}), (1.0, {"a": 2}), (2.0, {})).per_s("a") == 0.0
