"""Races against whole replays, annealing that does not get worse, and changes that stay within the memory."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from epara_solvers.replay import anneal, kernel, moves
from epara_solvers.replay.instance import Instance, resampled
from epara_solvers.replay.search import Days, Replay

from .test_replay import make_instance, plain_replay, random_groups

State = tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]


def random_state(instance: Instance, seed: int) -> State:
    groups = random_groups(instance, seed)
    shape = np.full(instance.num_devices, -1, dtype=np.int64)
    hosts = np.zeros((instance.num_devices, len(instance.slo_s)), dtype=np.bool_)
    for g, group in enumerate(groups):
        shape[g] = group.shape
        hosts[g, list(group.models)] = True
    return shape, hosts


def three_days(instance: Instance, seed: int) -> Days:
    rng = np.random.default_rng(seed)
    return Days.of([resampled(instance, 60.0, rng) for _ in range(3)])


def raced(
    run: Replay, days: Days, state: State, rival: npt.NDArray[np.int64], limit: float, upto: int
) -> tuple[float, int, npt.NDArray[np.int64]]:
    """The race's answer and the losses of every chunk."""
    i = run.instance
    groups, models = state[1].shape
    holders = np.zeros((models, groups), dtype=np.uint32)
    count = np.zeros(models, dtype=np.uint32)
    kernel.index(*state, holders, count)
    trail = np.zeros_like(rival)
    extra, seen = anneal.race(
        upto, limit, days.at_s, days.model, days.starts, state[0], holders, count,
        np.zeros((groups, run.stage_s.shape[2] + 1)), trail, rival, run.stage_s, run.num_stages, i.slo_s,
        i.overhead_s, np.zeros(models, dtype=np.int64),
    )  # fmt: skip
    return float(extra), int(seen), trail


def lost(run: Replay, days: Days, state: State) -> int:
    i = run.instance
    return kernel.replay(
        days.at_s, days.model, days.starts, *state, run.stage_s, run.num_stages, i.slo_s, i.overhead_s,
        np.zeros(len(i.slo_s), dtype=np.int64),
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(10))
def test_a_race_to_the_end_is_the_difference_of_two_replays(seed: int) -> None:
    instance = make_instance(seed, models=5)
    run, days = Replay(instance), three_days(instance, seed)
    one, other = random_state(instance, seed), random_state(instance, seed + 50)
    everything = len(days.at_s)
    nothing = np.zeros(everything // anneal.CHUNK + 4, dtype=np.int64)
    extra, seen, trail = raced(run, days, one, nothing, math.inf, everything)
    assert (extra, seen) == (lost(run, days, one), everything)
    extra, seen, _ = raced(run, days, other, trail, math.inf, everything)
    assert (extra, seen) == (lost(run, days, other) - lost(run, days, one), everything)


def test_a_race_is_given_up_early_only_where_it_is_above_the_limit() -> None:
    early = 0
    for seed in range(20):
        instance = make_instance(seed, models=5)
        run, days = Replay(instance), three_days(instance, seed)
        nothing = np.zeros(len(days.at_s) // anneal.CHUNK + 4, dtype=np.int64)
        _, _, trail = raced(run, days, random_state(instance, seed), nothing, math.inf, len(days.at_s))
        extra, seen, _ = raced(run, days, random_state(instance, seed + 50), trail, 1e-3, len(days.at_s))
        if seen < len(days.at_s):
            early += 1
            assert extra > 1e-3 * seen
    assert 0 < early < 20


def test_groups_are_idle_when_a_day_begins() -> None:
    instance = make_instance(2)
    rng = np.random.default_rng(2)
    apart = [resampled(instance, 20.0, rng) for _ in range(4)]
    groups = random_groups(instance, 2)
    together = Days.of(apart)
    shape, hosts = random_state(instance, 2)
    served = sum(round(plain_replay(instance, day, groups) * len(day.at_s)) for day in apart)
    assert len(together.at_s) - lost(Replay(instance), together, (shape, hosts)) == served


@pytest.mark.parametrize("seed", range(5))
def test_annealing_without_heat_never_loses_more(seed: int) -> None:
    instance = make_instance(seed, models=5)
    run, days = Replay(instance), three_days(instance, seed)
    shape, hosts = np.full(4, -1, dtype=np.int64), np.zeros((4, 5), dtype=np.bool_)
    shape[0] = 1  # one group, which holds nothing, of the shape that every model has
    rng = np.array([seed], dtype=np.uint64)
    i, before = instance, lost(run, days, (shape, hosts))
    assert before == len(days.at_s)
    for _ in range(4):
        anneal.anneal(
            50, 1e-12, len(days.at_s), days.at_s, days.model, days.starts, shape, hosts, run.stage_s, run.num_stages,
            run.shape_devices, i.weight_bytes, i.memory_bytes, i.slo_s, i.overhead_s, run.load, rng,
        )  # fmt: skip
        after = lost(run, days, (shape, hosts))
        assert after <= before
        before = after
    assert before < len(days.at_s)


@pytest.mark.parametrize("seed", range(5))
def test_changes_reach_every_shape_and_stay_within_devices_and_memory(seed: int) -> None:
    instance = make_instance(seed, models=5)
    run = Replay(instance)
    shape, hosts = np.full(4, -1, dtype=np.int64), np.zeros((4, 5), dtype=np.bool_)
    shape[:2] = 1
    rng, asked_and_lost = np.array([seed], dtype=np.uint64), np.arange(5)
    seen: set[int] = set()
    for _ in range(2_000):
        moves.propose(
            shape, hosts, run.shape_devices, instance.weight_bytes, instance.memory_bytes, run.load, asked_and_lost, rng
        )
        live = shape >= 0
        assert run.shape_devices[shape[live]].sum() == 4
        assert not hosts[~live].any()
        for g in np.flatnonzero(live):
            assert instance.weight_bytes[hosts[g], shape[g]].sum() <= instance.memory_bytes
        seen.update(shape[live].tolist())
    assert seen == set(range(len(instance.shapes)))
