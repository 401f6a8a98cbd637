"""The column engine: prices and a bound, a packing and its repacking, together until the deadline.

1. Prices: first for groups of one service each, a tenth of the columns, so a tenth of the time; then for all.
2. A packing is built under the prices, and repacked; between batches of rounds, regions get their best flows.

Each part uses all threads. Under a deadline the clock decides how often each of them turns, so two runs may differ in
the last places. Under a budget of steps and rounds a seed decides everything.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from epara_solvers.columns.arrays import Ground
from epara_solvers.columns.descent import Descent
from epara_solvers.columns.dual import Priced, Pricer, Prices
from epara_solvers.columns.packing import Packing, copy_packing
from epara_solvers.columns.search import Repacker

from epara_opt.placement import Placement
from epara_opt.plan import Plan

PRICES_PART = 0.3  # of the time, at most
MOST_STEPS = 1_000  # of prices: more of them, each smaller, prove nothing more
MEET_EVERY = 32  # steps of prices, between looks whether they prove the value at hand
BATCH_S = 0.4  # wanted length of a batch of rounds
FIRST_BATCH = 64  # rounds
SAME = 1e-6  # relative: what is in force stays unless something earns more by so much
COOL_AT = 0.9  # of the time: annealing is over
ROUTING_PART = 0.25  # of the time of repacking: best flows for the groups there are
ROUNDS_PER_REGION = 256  # under a budget of counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How long to search: by the clock, or by counts, which makes runs repeatable."""

    time_limit_s: float = 30.0
    steps: int | None = None  # of prices; with rounds, instead of the clock
    rounds: int | None = None  # of repacking


@dataclass(frozen=True, slots=True, kw_only=True)
class Solved:
    """What the engine found. `bound` holds for the problem; `prices` prove it (see epara_opt.certify)."""

    placement: Placement
    value: float
    bound: float
    prices: Prices
    priced: Priced
    steps: int
    rounds: int


def solve(
    ground: Ground,
    budget: Budget,
    *,
    seed: int = 1,
    threads: int = 2,
    start: Prices | None = None,
    in_force: Plan | None = None,
    gap: float = 1e-4,
    clock: Callable[[], float] = time.monotonic,
) -> Solved:
    """Search until the budget is spent or value and bound are within `gap`.

    start: prices of an earlier plan. in_force: the plan whose replicas the first placement keeps.
    """
    run = _Run(ground, budget, seed=seed, threads=threads, gap=gap, clock=clock)
    try:
        return run.all(start, in_force)
    finally:
        run.close()


class _Run:
    def __init__(
        self, ground: Ground, budget: Budget, *, seed: int, threads: int, gap: float, clock: Callable[[], float]
    ) -> None:
        self._budget, self._gap, self._clock, self._seed = budget, gap, clock, seed
        self._started = clock()
        self._pricer = Pricer(ground, threads=threads)
        self._search = Repacker(ground, seed=seed, threads=threads)
        self._descent: Descent | None = None
        self._rounds = 0
        self._region_s = 0.05  # that routing a region takes; measured as it goes

    def close(self) -> None:
        for part in (self._pricer, self._search, self._descent):
            if part is not None:
                part.close()

    def _part(self) -> float:
        """Of the time limit: how much is gone."""
        return (self._clock() - self._started) / max(1e-9, self._budget.time_limit_s)

    def _left_s(self) -> float:
        return (1.0 - self._part()) * self._budget.time_limit_s

    def all(self, start: Prices | None, in_force: Plan | None) -> Solved:
        staying: Packing | None = None
        descent = self._descent = Descent(self._pricer, start, seed=self._seed)
        search = self._search
        search.under(descent.prices, descent.priced, descent.active())
        if in_force is not None:
            search.resume(in_force)
            staying = copy_packing(search.packing)
        search.construct()
        if start is None:
            descent.alone(lambda: self._budget.steps is None and self._part() >= PRICES_PART / 2)
        self._descend(descent)
        self._better_start(descent)
        if self._budget.rounds is not None:
            self._repack_counted(self._budget.rounds)
        else:
            self._repack_until_over(descent)
        if staying is not None and search.best_value <= float(staying.gain.sum()) * (1.0 + SAME):
            search.best, search.best_value = staying, float(staying.gain.sum())
        return Solved(
            placement=search.placement(),
            value=search.best_value,
            bound=descent.bound,
            prices=descent.prices,
            priced=descent.priced,
            steps=descent.sweeps,
            rounds=self._rounds,
        )

    def _descend(self, descent: Descent) -> None:
        steps = self._budget.steps
        begun = self._part()
        while True:
            by_count = descent.sweeps / (MOST_STEPS if steps is None else max(1, steps))
            by_clock = 0.0 if steps is not None else (self._part() - begun) / max(1e-9, PRICES_PART - begun)
            part = max(by_count, by_clock)
            if part >= 1.0 or (descent.sweeps % MEET_EVERY == 0 and self._closed(descent)):
                break
            descent.step(part)
        descent.prove()

    def _better_start(self, descent: Descent) -> None:
        """Build anew under the prices, where that beats what there is."""
        search = self._search
        search.under(descent.prices, descent.priced, descent.active())
        fresh = Repacker(search.ground, seed=self._seed)
        fresh.under(descent.prices, descent.priced, descent.active())
        fresh.construct()
        if fresh.value > search.value:
            search.take(fresh)

    def _repack_counted(self, rounds: int) -> None:
        while self._rounds < rounds:
            batch = min(FIRST_BATCH * 32, rounds - self._rounds)
            heat = max(0.0, 1.0 - self._rounds / rounds / COOL_AT)
            self._search.repack(batch, heat=heat)
            self._search.reroute(batch // ROUNDS_PER_REGION)
            self._rounds += batch
        self._search.reroute(self._search.regions)

    def _closed(self, descent: Descent) -> bool:
        return self._search.best_value >= descent.bound * (1.0 - self._gap)

    def _repack_until_over(self, descent: Descent) -> None:
        """Batches of rounds, and after each as much routing as is owed; at the end every region once more."""
        batch, owed_s = FIRST_BATCH, 0.0
        while self._left_s() > self._sweep_s() and not self._closed(descent):
            at = self._clock()
            heat = max(0.0, 1.0 - self._part() / COOL_AT)
            self._rounds += self._search.repack(batch, heat=heat)
            took_s = max(1e-4, self._clock() - at)
            batch = max(16, int(batch * min(2.0, min(BATCH_S, max(0.02, self._left_s())) / took_s)))
            owed_s += took_s * ROUTING_PART / (1.0 - ROUTING_PART)
            regions = min(int(owed_s / self._region_s), self._search.regions)
            if regions > 0:
                owed_s -= self._reroute(regions)
        self._reroute_all()

    def _reroute(self, regions: int) -> float:
        """Seconds that it took."""
        at = self._clock()
        self._search.reroute(regions, left_s=self._left_s)
        took_s = max(1e-4, self._clock() - at)
        self._region_s = 0.5 * (self._region_s + took_s / regions)
        return took_s

    def _sweep_s(self) -> float:
        return min(self._search.regions * self._region_s, 0.25 * self._budget.time_limit_s)

    def _reroute_all(self) -> None:
        """Each server once, while there is time."""
        left = self._search.regions
        while left > 0 and self._left_s() > self._region_s:
            regions = max(1, min(left, int(BATCH_S / self._region_s), int(self._left_s() / self._region_s)))
            self._reroute(regions)
            left -= regions
