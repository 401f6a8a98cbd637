"""Who runs next, and in which blocks. No torch: sequences are plain data."""

from __future__ import annotations

import random

import pytest
from epara_executors.runners.transcript import IncrementalTranscript
from epara_executors.worker.blocks import BLOCK_TOKENS, BlockPool, blocks_for, cache_blocks
from epara_executors.worker.scheduler import PASS_TOKENS, Scheduler
from epara_executors.worker.sequences import Sequence


def sequence(key: str, num_tokens: int = 3, prompt_length: int = 2) -> Sequence:
    transcript = IncrementalTranscript(lambda tokens: "".join(map(chr, tokens)))
    return Sequence(key=key, request=key, prompt=(1,) * prompt_length, max_tokens=num_tokens, transcript=transcript)


def scheduler_of(batch: int, num_groups: int = 1, blocks: int = 99) -> Scheduler:
    return Scheduler(batch, BlockPool(blocks), num_groups)


def advance(scheduler: Scheduler) -> list[str]:
    """Run one iteration with a stage that always says 65; the keys that took part."""
    work = scheduler.next_work()
    if work is None:
        return []
    for member in work.sequences:
        member.append(65)
    scheduler.complete(work)
    return [s.key for s in work.sequences]


def test_prompts_come_before_steps_and_short_ones_share_a_pass_in_order_of_arrival() -> None:
    scheduler = scheduler_of(3)
    for key in "abcd":
        scheduler.add(sequence(key))
    assert [advance(scheduler) for _ in range(3)] == [["a", "b", "c"]] * 3
    assert advance(scheduler) == ["d"]


def test_a_pass_of_prompts_is_bounded_and_a_long_one_runs_alone() -> None:
    scheduler = scheduler_of(9)
    lengths = {"a": PASS_TOKENS + 1, "b": 6, "c": PASS_TOKENS - 6, "d": 7, "e": PASS_TOKENS - 7}
    for key, length in lengths.items():
        scheduler.add(sequence(key, 9, length))
    assert [advance(scheduler) for _ in range(4)] == [["a"], ["b", "c"], ["d", "e"], list("abcde")]


def test_prompts_of_a_model_that_cannot_tell_them_apart_run_alone() -> None:
    scheduler = scheduler_of(2)
    scheduler.pass_tokens = 0
    for key in "ab":
        scheduler.add(sequence(key))
    assert [advance(scheduler) for _ in range(3)] == [["a"], ["b"], ["a", "b"]]


def test_a_waiting_prompt_takes_a_place_as_soon_as_one_is_free() -> None:
    scheduler = scheduler_of(1)
    scheduler.add(sequence("a", 2))
    scheduler.add(sequence("b", 1))
    assert [advance(scheduler) for _ in range(4)] == [["a"], ["a"], ["b"], []]
    assert scheduler.idle


def test_cancelling_frees_place_and_blocks_at_once() -> None:
    scheduler = scheduler_of(1, blocks=7)
    scheduler.add(sequence("a", 100))
    scheduler.add(sequence("b"))
    advance(scheduler)
    assert scheduler.pool.num_free == 6
    assert scheduler.cancel("a") is not None
    assert scheduler.pool.num_free == 7
    assert advance(scheduler) == ["b"]
    assert scheduler.cancel("a") is None


def test_cancelling_what_is_in_flight_waits_for_its_iteration() -> None:
    scheduler = scheduler_of(1, blocks=7)
    scheduler.add(sequence("a", 100))
    work = scheduler.next_work()
    assert work is not None
    scheduler.cancel("a")
    assert scheduler.num_running == 1
    scheduler.complete(work)
    assert scheduler.idle
    assert scheduler.pool.num_free == 7


def test_two_groups_are_in_flight_at_once_and_never_the_same_twice() -> None:
    scheduler = scheduler_of(1, num_groups=2)
    for key in "abc":
        scheduler.add(sequence(key))
    first, second = scheduler.next_work(), scheduler.next_work()
    assert first is not None
    assert second is not None
    assert {first.group, second.group} == {0, 1}
    assert scheduler.next_work() is None


def test_who_came_last_gives_up_its_blocks_and_is_taken_in_again_when_somebody_has_left() -> None:
    scheduler = scheduler_of(3, blocks=3)
    for key in "ab":
        scheduler.add(sequence(key, 20, prompt_length=BLOCK_TOKENS))
    scheduler.add(sequence("c", 1, prompt_length=1))
    assert advance(scheduler) == ["a", "b", "c"]  # a block each; c ends
    assert advance(scheduler) == ["a"]  # needs its second block and takes the third; b finds none and gives up its own
    assert scheduler.num_preempted == 1
    scheduler.add(sequence("d", 1, prompt_length=1))
    taken = [advance(scheduler) for _ in range(20)]
    assert taken == [*[["a"]] * 18, ["b", "d"], ["b"]]  # nobody comes in before a has left


def test_a_prompt_that_finds_no_blocks_is_not_overtaken() -> None:
    scheduler = scheduler_of(3, blocks=3)
    for key, length in (("a", BLOCK_TOKENS), ("b", 2 * BLOCK_TOKENS + 1), ("c", 1)):
        scheduler.add(sequence(key, 2, length))
    assert [advance(scheduler) for _ in range(3)] == [["a"], ["a"], ["b"]]


@pytest.mark.parametrize("seed", range(40))
def test_whatever_comes_and_goes_no_block_has_two_owners_and_all_that_is_added_ends(seed: int) -> None:
    rng = random.Random(seed)
    num_groups, blocks = rng.choice([1, 2, 3]), rng.randint(4, 12)
    scheduler = scheduler_of(rng.randint(1, 5), num_groups, blocks)
    members = [sequence(str(i), rng.randint(1, 40), rng.randint(1, 24)) for i in range(30)]
    waiting = list(members)
    in_flight = []
    for _ in range(20_000):
        if not waiting and scheduler.idle:
            break
        if waiting and rng.random() < 0.4:
            scheduler.add(waiting.pop(0))
        if rng.random() < 0.05:
            scheduler.cancel(rng.choice(members).key)
        if rng.random() < 0.05:
            scheduler.batch = rng.randint(1, 5)
        if rng.random() < 0.05:
            scheduler.resize(rng.randint(4, 12))
        work = scheduler.next_work()
        if work is not None:
            for member in work.sequences:
                assert len(member.blocks) == blocks_for(member.length)
            in_flight.append(work)
        owned = [b for m in members for b in m.blocks]
        assert len(owned) == len(set(owned))
        assert 0 not in owned
        if in_flight and (work is None or rng.random() < 0.7):
            done = in_flight.pop(0)
            for member in done.sequences:
                if not member.finish_reason:
                    member.append(65)
            scheduler.complete(done)
    assert scheduler.idle
    assert all(m.finish_reason in ("length", "cancelled") for m in members)
    assert all(len(m.tokens) == m.max_tokens for m in members if m.finish_reason == "length")
    assert scheduler.pool.num_free == scheduler.pool.num_blocks


def test_what_the_pool_could_never_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="sequence a: expected at most 2 blocks, got 3"):
        scheduler_of(1, blocks=2).add(sequence("a", 1, 2 * BLOCK_TOKENS))


def test_a_smaller_pool_still_holds_whoever_is_here() -> None:
    scheduler = scheduler_of(2, blocks=9)
    scheduler.add(sequence("a", 5 * BLOCK_TOKENS - 2))
    assert scheduler.resize(2) == 5
    advance(scheduler)
    scheduler.cancel("a")
    assert scheduler.resize(2) == 2
    assert (scheduler.pool.num_free, scheduler.pool.highest_taken) == (2, 0)


def test_blocks_beyond_a_smaller_pool_leave_when_they_are_given_back() -> None:
    pool = BlockPool(4)
    low, high = pool.take(2), pool.take(2)
    pool.resize(2)
    pool.give(high)
    assert (pool.num_free, pool.highest_taken) == (0, 2)
    pool.resize(3)
    pool.give(low)
    assert sorted(pool.take(3)) == [1, 2, 3]
    with pytest.raises(ValueError, match="blocks: expected at most 0, which are free, got 1"):
        pool.take(1)
    with pytest.raises(ValueError, match="block 4: expected one that is taken"):
        pool.give([4])


@pytest.mark.parametrize(
    ("sequences", "usual_tokens", "max_length", "blocks"),
    [
        (32, 128, 2048, 256),  # what the plan's batch needs at its usual length
        (1, 128, 2048, 128),  # room for one of the model's full length
        (1, 0, 64, 4),
        (1, 128, 100_000, 128),  # but not for any length
        (4, 5000, 2048, 512),  # no sequence is longer than the model allows
    ],
)
def test_a_cache_holds_a_batch_of_usual_sequences_and_one_long_one(
    sequences: int, usual_tokens: int, max_length: int, blocks: int
) -> None:
    assert cache_blocks(sequences=sequences, usual_tokens=usual_tokens, max_length=max_length) == blocks


@pytest.mark.parametrize(("batch", "num_groups", "blocks"), [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_no_places_or_blocks_is_an_error(batch: int, num_groups: int, blocks: int) -> None:
    with pytest.raises(ValueError, match="expected >= 1, got 0"):
        scheduler_of(batch, num_groups, blocks)
