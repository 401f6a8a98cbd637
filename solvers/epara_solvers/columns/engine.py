"""The column engine: prices and a bound, a packing and its repacking, together until the deadline.

1. Prices for groups of one service each: a tenth of the columns, so a tenth of the time, and nearly the same prices.
2. Prices for all columns, on a thread of its own, while the first packing is built under the prices so far and
   repacked. Every batch sees the newest prices; every step of the prices aims at the newest value.
3. When the prices no longer move, all threads repack.

Under a deadline threads meet when they do, so two runs may differ in the last places. Under a budget of steps and
rounds the parts run one after the other and a seed decides everything.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from epara_solvers.columns.arrays import Ground
from epara_solvers.columns.dual import Priced, Pricer, Prices, Volume, descend
from epara_solvers.columns.packing import Packing, copy_packing
from epara_solvers.columns.search import Repacker

from epara_opt.placement import Placement
from epara_opt.plan import Plan

ALONE_STEPS = 150
ALONE_PART = 0.1  # of the time, at most
PRICES_PART = 0.6  # of the time: by then prices stop
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
        a = ground.arrays
        self._budget, self._gap, self._clock = budget, gap, clock
        self._started = clock()
        self._counted = budget.steps is not None and budget.rounds is not None
        self._nothing = Prices(np.zeros(len(a.offered)), np.zeros(len(a.link_width)))
        self._pricer = Pricer(ground, threads=threads)
        self._search = Repacker(ground, seed=seed, threads=1)
        self._wide = Repacker(ground, seed=seed + 1, threads=threads)
        self._rounds = 0
        self._region_s = 0.05  # that routing a region takes; measured as it goes

    def close(self) -> None:
        for part in (self._pricer, self._search, self._wide):
            part.close()

    def _part(self) -> float:
        """Of the time limit: how much is gone."""
        return (self._clock() - self._started) / max(1e-9, self._budget.time_limit_s)

    def _left_s(self) -> float:
        return (1.0 - self._part()) * self._budget.time_limit_s

    def _over(self, part: float) -> Callable[[], bool]:
        return (lambda: False) if self._counted else (lambda: self._part() >= part)

    def all(self, start: Prices | None, in_force: Plan | None) -> Solved:
        staying: Packing | None = None
        volume = Volume(self._pricer, start or self._nothing, alone=start is None)
        self._search.under(volume.prices, volume.priced)
        if in_force is not None:
            self._search.resume(in_force)
            staying = copy_packing(self._search.packing)
        self._search.construct()
        if start is None:
            descend(volume, self._target(), steps=ALONE_STEPS, time_is_up=self._over(ALONE_PART))
            volume.widen()
            self._better_start(volume)
        if self._counted:
            descend(volume, self._target(), steps=self._budget.steps or 0, time_is_up=lambda: False)
            self._better_start(volume)
            self._repack_counted(self._budget.rounds or 0)
        else:
            self._side_by_side(volume)
        best = max((self._search, self._wide), key=lambda r: r.best_value)
        if staying is not None and best.best_value <= float(staying.gain.sum()) * (1.0 + SAME):
            best.best, best.best_value = staying, float(staying.gain.sum())
        return Solved(
            placement=best.placement(),
            value=best.best_value,
            bound=volume.bound,
            prices=volume.prices,
            priced=volume.priced,
            steps=volume.steps,
            rounds=self._rounds,
        )

    def _target(self) -> float:
        return max(self._search.best_value, self._wide.best_value)

    def _better_start(self, volume: Volume) -> None:
        """Build anew under new prices, where that beats what the old ones led to."""
        fresh = Repacker(self._search.ground, seed=1)
        fresh.under(volume.prices, volume.priced)
        fresh.construct()
        if fresh.value > self._search.value:
            self._search.packing, self._search.best, self._search.best_value = (
                fresh.packing,
                fresh.best,
                fresh.best_value,
            )
        self._search.under(volume.prices, volume.priced)

    def _repack_counted(self, rounds: int) -> None:
        self._hand_over()
        while self._rounds < rounds:
            batch = min(FIRST_BATCH * 32, rounds - self._rounds)
            heat = max(0.0, 1.0 - self._rounds / rounds / COOL_AT)
            self._wide.repack(batch, heat=heat)
            self._wide.reroute(batch // ROUNDS_PER_REGION)
            self._rounds += batch
        self._wide.reroute(self._wide.regions)

    def _hand_over(self) -> None:
        """The many-threaded search goes on where the other stands."""
        w, s = self._wide, self._search
        w.packing, w.best, w.best_value = s.packing, s.best, s.best_value

    def _side_by_side(self, volume: Volume) -> None:
        done = threading.Event()
        failed: list[BaseException] = []

        def improve_prices() -> None:
            try:
                while not (self._part() >= PRICES_PART or volume.is_flat or self._closed(volume)):
                    volume.step(self._target())
            except BaseException as e:
                failed.append(e)
            finally:
                done.set()

        helper = threading.Thread(target=improve_prices, name="prices", daemon=True)
        helper.start()
        try:
            self._repack_until(volume, lambda: done.is_set() or self._part() >= 1.0, self._search)
            self._better_start(volume)
            self._hand_over()
            self._wide.under(volume.prices, volume.priced)
            self._reroute_all()
            self._repack_until(volume, lambda: self._left_s() <= self._sweep_s(), self._wide)
            self._reroute_all()
        finally:
            helper.join()
        if failed:
            raise failed[0]

    def _closed(self, volume: Volume) -> bool:
        return self._target() >= volume.bound * (1.0 - self._gap)

    def _repack_until(self, volume: Volume, is_over: Callable[[], bool], search: Repacker) -> None:
        batch, owed_s = FIRST_BATCH, 0.0
        seen = volume.prices
        while not is_over() and not self._closed(volume):
            if volume.prices is not seen:
                seen = volume.prices
                search.under(seen, volume.priced)
            at = self._clock()
            heat = max(0.0, 1.0 - self._part() / COOL_AT)
            self._rounds += search.repack(batch, heat=heat)
            took_s = max(1e-4, self._clock() - at)
            batch = max(16, int(batch * min(2.0, min(BATCH_S, max(0.02, self._left_s())) / took_s)))
            if search is self._wide:
                owed_s += took_s * ROUTING_PART / (1.0 - ROUTING_PART)
                regions = min(int(owed_s / self._region_s), search.regions)
                if regions > 0:
                    owed_s -= self._reroute(regions)

    def _reroute(self, regions: int) -> float:
        """Seconds that it took."""
        at = self._clock()
        self._wide.reroute(regions, left_s=self._left_s)
        took_s = max(1e-4, self._clock() - at)
        self._region_s = 0.5 * (self._region_s + took_s / regions)
        return took_s

    def _sweep_s(self) -> float:
        return self._wide.regions * self._region_s

    def _reroute_all(self) -> None:
        """Each server once, while there is time."""
        left = self._wide.regions
        while left > 0 and self._left_s() > 0.0:
            regions = max(1, min(left, int(BATCH_S / self._region_s), int(self._left_s() / self._region_s)))
            self._reroute(regions)
            left -= regions
