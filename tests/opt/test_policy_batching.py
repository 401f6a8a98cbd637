import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epara_opt.policy.batching import BatchRule, batch_rule, may_go_ahead, next_batch, urgency


@dataclass(frozen=True)
class Waiting:
    queued_at: float
    due_at: float
    rows: int = 1
    stream: str = ""
    priority: int = 0


def test_an_idle_group_takes_a_lone_request_at_once():
    one = Waiting(0.0, 1.0)
    assert next_batch([one], BatchRule(max_rows=8), now=0.0, idle=True, batch_s=0.1) == ((one,), 0.0)


def test_a_busy_group_lets_a_partial_batch_gather():
    chosen, until = next_batch([Waiting(0.0, 1.0)], BatchRule(max_rows=2), now=0.0, idle=False, batch_s=0.1)
    assert (chosen, until) == ((), math.inf)


def test_a_busy_group_takes_a_full_batch_ahead():
    queue = [Waiting(0.0, 1.0), Waiting(0.1, 1.0)]
    assert next_batch(queue, BatchRule(max_rows=2), now=0.2, idle=False, batch_s=0.1)[0] == tuple(queue)


@pytest.mark.parametrize("idle", [True, False])
def test_what_was_let_in_before_a_plan_lowered_the_limit_goes_alone(idle):
    queue = [Waiting(0.0, 1.0, rows=4), Waiting(0.0, 2.0)]
    assert next_batch(queue, BatchRule(max_rows=2), now=0.2, idle=idle, batch_s=0.1) == ((queue[0],), 0.2)


def test_the_earliest_deadline_goes_first():
    late, soon = Waiting(0.0, 9.0), Waiting(0.1, 1.0)
    assert next_batch([late, soon], BatchRule(max_rows=1), now=0.2, idle=True, batch_s=0.1)[0] == (soon,)


def test_a_higher_priority_goes_before_an_earlier_deadline_and_none_means_the_first_level():
    plain, second = Waiting(0.0, 9.0), Waiting(0.0, 1.0, priority=2)
    assert sorted([second, plain], key=urgency) == [plain, second]
    assert urgency(plain) == urgency(Waiting(0.0, 9.0, priority=1))


def test_an_idle_group_waits_for_a_streams_frames_until_the_window_closes():
    rule = batch_rule(batch=1, frames=4, fps=10.0)
    frame = Waiting(0.0, 2.0, stream="cam")
    assert next_batch([frame], rule, now=0.0, idle=True, batch_s=0.1) == ((), pytest.approx(0.3))
    assert next_batch([frame], rule, now=0.3, idle=True, batch_s=0.1)[0] == (frame,)


def test_the_window_closes_early_where_the_deadline_asks_for_it():
    rule = batch_rule(batch=1, frames=4, fps=10.0)
    _, until = next_batch([Waiting(0.0, 0.25, stream="cam")], rule, now=0.0, idle=True, batch_s=0.1)
    assert until == pytest.approx(0.125)


def test_frames_that_are_all_there_leave_at_once():
    rule = batch_rule(batch=1, frames=2, fps=10.0)
    frames = [Waiting(0.0, 2.0, stream="cam"), Waiting(0.1, 2.1, stream="cam")]
    assert next_batch(frames, rule, now=0.1, idle=True, batch_s=0.1)[0] == tuple(frames)


def test_no_stream_takes_the_frames_of_another():
    rule = batch_rule(batch=2, frames=2, fps=10.0)
    greedy = [Waiting(0.01 * i, 1.0 + 0.01 * i, stream="a") for i in range(4)]
    other = Waiting(0.5, 2.0, stream="b")
    chosen, _ = next_batch([*greedy, other], rule, now=0.6, idle=True, batch_s=0.1)
    assert [w.stream for w in chosen] == ["a", "a", "b"]


@pytest.mark.parametrize(("max_rows", "frames"), [(0, 1), (1, 0), (1, 2)])
def test_limits_that_cannot_be_are_refused(max_rows, frames):
    with pytest.raises(ValueError, match="expected >= frames >= 1"):
        BatchRule(max_rows=max_rows, frames=frames)


waiting = st.builds(
    Waiting,
    queued_at=st.floats(0, 1),
    due_at=st.floats(0, 3),
    rows=st.integers(1, 4),
    stream=st.sampled_from(["", "a", "b"]),
)


@given(st.lists(waiting, max_size=12), st.integers(1, 3), st.booleans(), st.floats(0, 3))
def test_a_batch_is_within_its_limits_and_never_passes_over_the_most_urgent(queue, frames, idle, now):
    rule = BatchRule(max_rows=4 * frames, frames=frames, window_s=0.1)
    chosen, until = next_batch(queue, rule, now=now, idle=idle, batch_s=0.05)
    assert sum(w.rows for w in chosen) <= rule.max_rows
    assert all(sum(w.stream == s for w in chosen) <= frames for s in ("a", "b"))
    if chosen:
        assert urgency(chosen[0]) == min(map(urgency, queue))
    elif queue and idle:
        assert until > now


@pytest.mark.parametrize(
    ("batch_s", "deadlines_s", "ahead"),
    [(0.05, [0.5, 9.0], True), (0.06, [0.5, 9.0], False), (60.0, [], True)],
)
def test_only_what_is_short_beside_the_others_deadlines_goes_ahead(batch_s, deadlines_s, ahead):
    assert may_go_ahead(batch_s=batch_s, deadlines_s=deadlines_s) is ahead
