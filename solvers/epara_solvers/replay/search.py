"""A placement that holds up: annealed on many resampled days, chosen on days that the annealing has not seen.

A search on the recorded arrivals alone learns their accidents: with bursts of a coefficient of variation of 4, two
placements that expect the same differ by a thousandth of the requests on 100,000 of them. So the annealing replays days
drawn anew from the models' rates and coefficients of variation, as long as the recorded one (a day begins with idle
groups, and a renewal process begins with a burst: both weigh more in short days). It begins with few requests and ends
with the whole pool, the same for every candidate. That is paid for by races: a candidate is replayed chunk by chunk
against the losses of the placement that it would replace, and most are given up early.

The last placements of every chain are judged on further resampled days and the recorded one. Starts are uniform groups
of every shape, stuffed with models by their load. Chains run side by side, one a thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from epara_solvers.replay import anneal as annealing
from epara_solvers.replay import kernel, moves
from epara_solvers.replay.instance import F64, I64, Arrivals, Group, Instance, resampled

Bools = npt.NDArray[np.bool_]

POOL = 480_000  # requests of the days that a search ends with
FIRST = 30_000  # requests it begins with
SHORTEST = 10_000  # requests of a resampled day, where the recorded one is shorter
ROUND_STEPS = 200
KEPT_STARTS = 2
MAX_BUCKETS = 4
HOT, COLD = 1e-3, 3e-5  # temperatures of the first round and the last, in losses per request
JUDGED = 480_000  # requests of resampled days, seen by no round, that choose together with the recorded one
START_DAYS = 4  # days of the pool that choose where to start


@dataclass(frozen=True, slots=True)
class Days:
    """Arrivals of several days one after the other; groups are idle when one begins."""

    at_s: F64  # (A,) since the day began
    model: npt.NDArray[np.uint32]  # (A,)
    starts: I64  # (D + 1,) of each day in those, and A

    @classmethod
    def of(cls, days: Sequence[Arrivals]) -> Days:
        return cls(
            np.concatenate([d.at_s for d in days]),
            np.concatenate([d.model for d in days]).astype(np.uint32),
            np.cumsum([0, *(len(d.at_s) for d in days)]),
        )


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
        finite = np.where(np.isfinite(instance.stage_s), instance.stage_s, 0.0)
        self.stage_s: F64 = np.ascontiguousarray(finite.transpose(1, 0, 2))  # (S, M, K)
        alone = np.where(np.isfinite(instance.weight_bytes), finite.sum(axis=2), np.inf).min(axis=1)
        self.load: F64 = instance.rate_per_s * np.where(np.isfinite(alone), alone, 0.0)  # (M,) of a device's time

    def attainment(self, arrivals: Arrivals, groups: Sequence[Group]) -> float:
        """The part of the requests that is served within its SLO."""
        shape = np.array([g.shape for g in groups], dtype=np.int64)
        hosts = np.zeros((len(groups), len(self.instance.slo_s)), dtype=np.bool_)
        for i, group in enumerate(groups):
            hosts[i, list(group.models)] = True
        return self.score(Days.of([arrivals]), _State(shape, hosts))

    def score(self, days: Days, state: _State) -> float:
        i = self.instance
        lost = kernel.replay(
            days.at_s, days.model, days.starts, state.shape, state.hosts, self.stage_s, self.num_stages, i.slo_s,
            i.overhead_s, np.zeros(len(i.slo_s), dtype=np.int64),
        )  # fmt: skip
        return (len(days.at_s) - lost) / max(1, len(days.at_s))

    def anneal(
        self, days: Days, state: _State, rng: npt.NDArray[np.uint64], *, steps: int, heat: float, upto: int
    ) -> int:
        """Changes `state`; returns the requests replayed."""
        i = self.instance
        return annealing.anneal(
            steps, heat, upto, days.at_s, days.model, days.starts, state.shape, state.hosts, self.stage_s,
            self.num_stages, self.shape_devices, i.weight_bytes, i.memory_bytes, i.slo_s, i.overhead_s, self.load, rng,
        )  # fmt: skip


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
    recorded_s = float(recorded.at_s[-1]) if len(recorded.at_s) else 0.0
    day_s = min(max(recorded_s, SHORTEST / total), POOL / total)

    def days(requests: int) -> list[Arrivals]:
        return [resampled(instance, day_s, draw) for _ in range(max(1, round(requests / (total * day_s))))]

    drawn = days(POOL)
    pool, judges = Days.of(drawn), Days.of([recorded, *days(JUDGED)])
    starts = _starts(run, Days.of(drawn[:START_DAYS]), np.array([seed], dtype=np.uint64))

    def part(done: int) -> float:
        return done / rounds if rounds is not None else (clock() - started) / time_limit_s

    def chain(number: int) -> tuple[list[_State], int]:
        rng = np.array([seed * 7919 + number + 1], dtype=np.uint64)
        state = starts[number % len(starts)].copy()
        kept: list[_State] = []
        done = 0
        while (p := part(done)) < 1.0:
            heat = HOT * (COLD / HOT) ** p
            upto = int(FIRST * (POOL / FIRST) ** p)  # by the end all of the pool, give or take a day
            run.anneal(pool, state, rng, steps=ROUND_STEPS, heat=heat, upto=upto)
            kept = [*kept[-5:], state.copy()]
            done += 1
        return kept, done * ROUND_STEPS

    chains = max(1, threads)
    if chains == 1:
        results = [chain(0)]
    else:
        with ThreadPoolExecutor(chains) as workers:
            results = list(workers.map(chain, range(chains)))
    candidates = [state for kept, _ in results for state in kept] or starts[:1]
    judged = [run.score(judges, c) for c in candidates]
    chosen = candidates[int(np.argmax(judged))]
    return Found(
        groups=chosen.groups(),
        recorded=run.score(Days.of([recorded]), chosen),
        judged=max(judged),
        replays=sum(replays for _, replays in results),
    )


def _starts(run: Replay, days: Days, rng: npt.NDArray[np.uint64]) -> list[_State]:
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
                moves.stuff(g, shape, hosts, i.weight_bytes, i.memory_bytes, loads, rng)
            state = _State(shape, hosts)
            found.append((run.score(days, state), state))
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
