"""Who runs next. No torch: sequences are plain data."""

from __future__ import annotations

import random

import pytest
from epara_executors.runners.transcript import IncrementalTranscript
from epara_executors.worker.scheduler import Scheduler
from epara_executors.worker.sequences import Sequence


def sequence(key: str, num_tokens: int = 3) -> Sequence:
    transcript = IncrementalTranscript(lambda tokens: "".join(map(chr, tokens)))
    return Sequence(key=key, request=key, prompt=(1, 2), max_tokens=num_tokens, transcript=transcript)


def advance(scheduler: Scheduler) -> list[str]:
    """Run one iteration with a stage that always says 65; the keys that took part."""
    work = scheduler.next_work()
    if work is None:
        return []
    for member in work.sequences:
        member.append(65)
    scheduler.complete(work)
    return [s.key for s in work.sequences]


def test_prompts_come_before_steps_and_fill_the_slots_in_order_of_arrival() -> None:
    scheduler = Scheduler(2)
    for key in "abc":
        scheduler.add(sequence(key))
    assert [advance(scheduler) for _ in range(3)] == [["a"], ["b"], ["a", "b"]]


def test_a_waiting_prompt_takes_a_slot_as_soon_as_one_is_free() -> None:
    scheduler = Scheduler(1)
    scheduler.add(sequence("a", 2))
    scheduler.add(sequence("b", 1))
    assert [advance(scheduler) for _ in range(4)] == [["a"], ["a"], ["b"], []]
    assert scheduler.idle


def test_the_last_slot_moves_into_the_place_of_a_sequence_that_left() -> None:
    scheduler = Scheduler(3)
    for key, num_tokens in (("a", 2), ("b", 9), ("c", 9)):
        scheduler.add(sequence(key, num_tokens))
    for _ in range(4):
        advance(scheduler)
    work = scheduler.next_work()
    assert work is not None
    assert [s.key for s in work.sequences] == ["c", "b"]
    assert work.moves == ((2, 0),)


def test_cancelling_frees_the_slot_at_once() -> None:
    scheduler = Scheduler(1)
    scheduler.add(sequence("a", 100))
    scheduler.add(sequence("b"))
    advance(scheduler)
    assert scheduler.cancel("a") is not None
    assert advance(scheduler) == ["b"]
    assert scheduler.cancel("a") is None


def test_cancelling_what_is_in_flight_waits_for_its_iteration() -> None:
    scheduler = Scheduler(1)
    scheduler.add(sequence("a", 100))
    work = scheduler.next_work()
    assert work is not None
    scheduler.cancel("a")
    assert scheduler.num_running == 1
    scheduler.complete(work)
    assert scheduler.idle


def test_two_groups_are_in_flight_at_once_and_never_the_same_twice() -> None:
    scheduler = Scheduler(1, num_groups=2)
    for key in "abc":
        scheduler.add(sequence(key))
    first, second = scheduler.next_work(), scheduler.next_work()
    assert first is not None
    assert second is not None
    assert {first.group, second.group} == {0, 1}
    assert scheduler.next_work() is None


@pytest.mark.parametrize("seed", range(20))
def test_moves_keep_every_running_sequence_with_its_slot(seed: int) -> None:
    """Replay the moves on a list of slots: whoever the work names must be there, whatever left before."""
    rng = random.Random(seed)
    num_groups = rng.choice([1, 2])
    scheduler = Scheduler(rng.randint(1, 5), num_groups)
    slots: list[list[str]] = [[""] * 5 for _ in range(num_groups)]
    keys = [str(i) for i in range(30)]
    waiting = list(keys)
    while waiting or not scheduler.idle:
        if waiting and rng.random() < 0.6:
            scheduler.add(sequence(waiting.pop(0), rng.randint(1, 6)))
        if rng.random() < 0.1:
            scheduler.cancel(rng.choice(keys))
        work = scheduler.next_work()
        if work is None:
            continue
        for source, target in work.moves:
            slots[work.group][target] = slots[work.group][source]
        if work.is_prompt:
            slots[work.group][work.slot] = work.sequences[0].key
        used = slots[work.group][work.slot : work.slot + len(work.sequences)]
        assert used == [s.key for s in work.sequences]
        for member in work.sequences:
            member.append(65)
        scheduler.complete(work)


@pytest.mark.parametrize(("batch", "num_groups"), [(0, 1), (1, 0)])
def test_no_slots_is_an_error(batch: int, num_groups: int) -> None:
    with pytest.raises(ValueError, match="expected >= 1, got 0"):
        Scheduler(batch, num_groups)
