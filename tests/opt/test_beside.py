"""Levels of a pool and their counts; groups against residents, by every way of giving devices to groups."""

from __future__ import annotations

import itertools
import random

from epara_opt.beside import Levels, fits_in_place


def test_levels_say_how_many_devices_have_room() -> None:
    levels = Levels.of(5, 24, [(1, 20), (2, 10)])  # two devices are empty
    assert levels == Levels(free_bytes=(4, 14), devices=(4, 2))
    assert [levels.exceeded(b) for b in (0, 4, 5, 14, 15, 24)] == [0, 0, 1, 1, 2, 2]


def test_counts_by_level_say_what_trying_every_way_says() -> None:
    rng = random.Random(3)
    seen = {True: 0, False: 0}
    for _ in range(400):
        count, memory = rng.randint(1, 5), 10
        held, at = [0] * count, 0
        residents: list[tuple[int, int, bool]] = []  # devices, bytes, kept
        while at < count and rng.random() < 0.8:
            num = min(count - at, rng.choice((1, 1, 2)))
            residents.append((num, rng.randint(1, memory), rng.random() < 0.3))
            held[at : at + num] = [residents[-1][1]] * num
            at += num
        groups = [(rng.choice((1, 1, 2)), rng.randint(1, memory)) for _ in range(rng.randint(1, 3))]
        levels = Levels.of(count, memory, [(num, b) for num, b, _ in residents])
        used = [0] * len(levels.devices)
        kept = [(num, memory - b) for num, b, stays in residents if stays]
        for num, needs in (*groups, *kept):
            for level in range(levels.exceeded(needs)):
                used[level] += num
        total = sum(num for num, _ in (*groups, *kept))
        counted = total <= count and all(u <= d for u, d in zip(used, levels.devices, strict=True))
        starts = list(itertools.accumulate((num for num, *_ in residents), initial=0))
        taken = {d for (num, _, stays), s in zip(residents, starts, strict=False) if stays for d in range(s, s + num)}

        def can_place(groups: list[tuple[int, int]], left: frozenset[int], held: list[int], memory: int) -> bool:
            if not groups:
                return True
            (num, needs), *others = groups
            fitting = [d for d in sorted(left) if held[d] + needs <= memory]
            return any(
                can_place(others, left - set(some), held, memory) for some in itertools.combinations(fitting, num)
            )

        assert counted == can_place(groups, frozenset(range(count)) - taken, held, memory)
        seen[counted] += 1
    assert min(seen.values()) > 50


def test_in_place_the_larger_of_two_batches_counts_and_all_of_what_leaves_and_comes() -> None:
    held, wanted = {"a": 4, "b": 3}, {"a": 6, "c": 2}
    assert fits_in_place(11, held, wanted, anew=False)
    assert not fits_in_place(10, held, wanted, anew=False)
    assert fits_in_place(15, held, wanted, anew=True)
    assert not fits_in_place(14, held, wanted, anew=True)
