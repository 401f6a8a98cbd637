import math

import pytest

from epara_opt.policy.admission import Expected, admits, batch_finish_at, batch_prior_s, may_forget, slot_finish_at


def test_the_prior_holds_until_something_is_seen():
    expected = Expected(0.5)
    assert expected.value_s == 0.5
    expected.observe(0.1)
    assert expected.value_s == pytest.approx(0.125)


def test_the_mean_follows_what_is_seen():
    expected = Expected(0.5)
    for _ in range(100):
        expected.observe(0.2)
    assert expected.mean_s == pytest.approx(0.2)
    assert expected.value_s == pytest.approx(0.2, rel=1e-3)


def test_half_of_a_predicted_response_is_the_batch_once_frames_are_gathered():
    assert batch_prior_s(response_ms=200.0, frames=1, fps=0.0) == pytest.approx(0.1)
    assert batch_prior_s(response_ms=500.0, frames=4, fps=10.0) == pytest.approx(0.1)


def test_an_idle_replica_answers_after_one_batch():
    assert batch_finish_at(now=10.0, busy_until=0.0, rows_ahead=0, rows=1, max_rows=8, batch_s=0.1) == 10.1


def test_what_runs_and_what_is_queued_first_come_first():
    finish = batch_finish_at(now=0.0, busy_until=0.05, rows_ahead=8, rows=1, max_rows=8, batch_s=0.1, others_s=0.2)
    assert finish == pytest.approx(0.05 + 0.2 + 0.2)


@pytest.mark.parametrize(("in_flight", "finish"), [(0, 1.0), (3, 1.0), (4, 1.25), (7, 2.0)])
def test_a_generation_beyond_the_slots_waits_for_those_that_end(in_flight, finish):
    assert slot_finish_at(now=0.0, in_flight=in_flight, slots=4, answer_s=1.0, whole_s=1.0) == finish


@pytest.mark.parametrize(("finish_at", "admitted"), [(0.9, True), (1.0, True), (1.001, False)])
def test_only_what_will_be_on_time_is_admitted(finish_at, admitted):
    assert admits(finish_at=finish_at, due_at=1.0) is admitted


def test_what_was_forgotten_is_the_prior_again_and_the_next_observation_replaces_it():
    expected = Expected(0.5)
    expected.observe(9.0)
    expected.forget()
    assert (expected.value_s, expected.seen_s) == (0.5, 0.0)
    expected.observe(0.1)
    assert expected.value_s == expected.seen_s == pytest.approx(0.125)


@pytest.mark.parametrize(
    ("due_at", "observed_at", "forgets"),
    [
        (10.3, 8.9, True),  # seen 0.5, predicted 0.2
        (10.3, 9.1, False),  # seen lately
        (10.6, 8.9, False),  # admitted anyway
        (10.1, 8.9, False),  # late by the prediction too
    ],
)
def test_only_an_old_observation_that_alone_refuses_is_forgotten(due_at, observed_at, forgets):
    expected = Expected(0.2)
    expected.observe(0.4)
    assert may_forget(expected, now=10.0, observed_at=observed_at, due_at=due_at) is forgets


def test_a_prior_that_was_never_corrected_is_not_forgotten():
    assert not may_forget(Expected(0.2), now=10.0, observed_at=-math.inf, due_at=10.3)
