"""A placement that holds up: searched on many resampled days, chosen on the recorded one.

A search on the recorded arrivals alone learns their accidents. So each round anneals on arrivals drawn anew from the
models' rates and coefficients of variation, starting from where the last round ended, and the recorded trace, which no
round has seen, chooses among what the rounds found. The last rounds anneal on both.

Starts are uniform groups of every shape, stuffed with models by their load. Chains run side by side, one a thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from epara_solvers.replay import kernel
from epara_solvers.replay.instance import F64, I64, Arrivals, Group, Instance, resampled

Bools = npt.NDArray[np.bool_]

DAY = 60_000  # requests of a resampled day: with 10,000 the search learns the accidents of each (measured)
ROUND_STEPS = 300
KEPT_STARTS = 2
MAX_BUCKETS = 4
HOT, COLD = 5e-4, 5e-5  # parts of the requests: temperatures of the first round and the last
JUDGES = 4  # resampled days, seen by no round, that choose together with the recorded one


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A placement, its SLO attainment on the recorded arrivals and on the judging days, and the replays it took."""

    groups: tuple[Group, ...]
    recorded: float
    judged: float
    replays: int


@dataclass(slots=True)
class _State:
    shape: I64  # (G,) -1: no group
    hosts: Bools  # (G, M)

    def copy(self) -> _State:
        return _State(self.shape.copy(), self.hosts.copy())

    def groups(self) -> tuple[Group, ...]:
        return tuple(
            Group(int(s), tuple(np.flatnonzero(self.hosts[g]).tolist())) for g, s in enumerate(self.shape) if s >= 0
        )


class Replay:
    """An instance ready to be replayed."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.num_stages, self.shape_devices = instance.num_stages, instance.shape_devices
        usable = np.where(np.isfinite(instance.stage_s), instance.stage_s, 0.0).sum(axis=2)
        alone = np.where(np.isfinite(instance.weight_bytes), usable, np.inf).min(axis=1)
        self.load: F64 = instance.rate_per_s * np.where(np.isfinite(alone), alone, 0.0)  # (M,) of a device's time

    def attainment(self, arrivals: Arrivals, groups: Sequence[Group]) -> float:
        """The part of the requests that is served within its SLO."""
        shape = np.array([g.shape for g in groups], dtype=np.int64)
        hosts = np.zeros((len(groups), len(self.instance.slo_s)), dtype=np.bool_)
        for i, group in enumerate(groups):
            hosts[i, list(group.models)] = True
        return self.score(arrivals, _State(shape, hosts))

    def score(self, arrivals: Arrivals, state: _State) -> float:
        i = self.instance
        served = np.zeros(len(i.slo_s), dtype=np.int64)
        good = kernel.replay(
            arrivals.at_s, arrivals.model, state.shape, state.hosts, i.stage_s, self.num_stages, i.slo_s, i.overhead_s,
            0, served,
        )  # fmt: skip
        return good / max(1, len(arrivals.at_s))

    def anneal(
        self, arrivals: Arrivals, state: _State, rng: npt.NDArray[np.uint64], *, steps: int, hot: float, cold: float
    ) -> _State:
        """Changes `state`; returns the best seen."""
        i, best = self.instance, state.copy()
        num = len(arrivals.at_s)
        kernel.anneal(
            steps, hot * num, cold * num, arrivals.at_s, arrivals.model, state.shape, state.hosts, best.shape,
            best.hosts, i.stage_s, self.num_stages, self.shape_devices, i.weight_bytes, i.memory_bytes, i.slo_s,
            i.overhead_s, self.load, rng,
        )  # fmt: skip
        return best


def search(
    instance: Instance,
    recorded: Arrivals,
    *,
    time_limit_s: float = 8.0,
    rounds: int | None = None,  # per chain, instead of the clock: runs with the same seed are then alike
    seed: int = 1,
    threads: int = 2,
    clock: Callable[[], float] = time.monotonic,
) -> Found:
    """The placement with the best judged attainment. Looks at no arrivals but `recorded`."""
    started = clock()
    run = Replay(instance)
    total = max(1e-9, float(instance.rate_per_s.sum()))
    draw = np.random.default_rng([seed, 7])
    judges = [recorded, *(resampled(instance, DAY / total, draw) for _ in range(JUDGES))]
    starts = _starts(run, judges[1:], np.array([seed], dtype=np.uint64))

    def part(done: int) -> float:
        return done / rounds if rounds is not None else (clock() - started) / time_limit_s

    def chain(number: int) -> tuple[list[_State], int]:
        rng = np.array([seed * 7919 + number + 1], dtype=np.uint64)
        days = np.random.default_rng([seed, number])
        state = starts[number % len(starts)].copy()
        kept: list[_State] = []
        done = 0
        while (p := part(done)) < 1.0:
            hot = HOT * (COLD / HOT) ** min(1.0, p)
            day = resampled(instance, DAY / total, days) if p < 0.8 else _joined(recorded, instance, days, DAY / total)
            best = run.anneal(day, state, rng, steps=ROUND_STEPS, hot=hot, cold=hot)
            kept = [*kept[-5:], best, state.copy()]
            done += 1
        return kept, done * ROUND_STEPS

    chains = max(1, threads)
    if chains == 1:
        results = [chain(0)]
    else:
        with ThreadPoolExecutor(chains) as pool:
            results = list(pool.map(chain, range(chains)))
    candidates = [state for kept, _ in results for state in kept] or starts[:1]
    judged = [float(np.mean([run.score(j, c) for j in judges])) for c in candidates]
    chosen = candidates[int(np.argmax(judged))]
    return Found(
        groups=chosen.groups(),
        recorded=run.score(recorded, chosen),
        judged=max(judged),
        replays=sum(replays for _, replays in results),
    )


def _joined(recorded: Arrivals, instance: Instance, rng: np.random.Generator, duration_s: float) -> Arrivals:
    """A piece of the recorded trace followed by a resampled one of the same length."""
    end = float(recorded.at_s[-1]) if len(recorded.at_s) else 0.0
    first = float(rng.uniform(0.0, max(0.0, end - duration_s)))
    inside = (recorded.at_s >= first) & (recorded.at_s < first + duration_s)
    drawn = resampled(instance, duration_s, rng)
    return Arrivals(
        np.concatenate((recorded.at_s[inside] - first, drawn.at_s + duration_s + float(instance.slo_s.max()))),
        np.concatenate((recorded.model[inside], drawn.model)),
    )


def _starts(run: Replay, days: Sequence[Arrivals], rng: npt.NDArray[np.uint64]) -> list[_State]:
    """Uniform groups of every shape, shared by all models or split between quick and slow ones; the best first."""
    i = run.instance
    found: list[tuple[float, _State]] = []
    for s, devices in enumerate(run.shape_devices.tolist()):
        num = i.num_devices // devices
        for buckets in range(1, min(num, MAX_BUCKETS) + 1):
            shape = np.full(i.num_devices, -1, dtype=np.int64)
            shape[:num] = s
            hosts = np.zeros((i.num_devices, len(i.slo_s)), dtype=np.bool_)
            for g, loads in enumerate(_shared(run, buckets, num)):
                kernel.stuff(g, shape, hosts, i.weight_bytes, i.memory_bytes, loads, rng)
            state = _State(shape, hosts)
            found.append((float(np.mean([run.score(d, state) for d in days])), state))
    found.sort(key=lambda f: -f[0])
    return [state for _, state in found[:KEPT_STARTS]]


def _shared(run: Replay, buckets: int, num_groups: int) -> list[F64]:
    """For every group the load of the models it is for, 0 for others: buckets by SLO, groups by the buckets' load."""
    order = np.argsort(run.instance.slo_s, kind="stable")
    before = np.cumsum(run.load[order]) - run.load[order] / 2
    total = max(1e-12, float(run.load.sum()))
    bucket = np.zeros(len(order), dtype=np.int64)
    bucket[order] = np.minimum(buckets - 1, (before / total * buckets).astype(np.int64))
    return [np.where(bucket == g * buckets // num_groups, run.load, 0.0) for g in range(num_groups)]
