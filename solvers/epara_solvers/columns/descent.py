"""Prices that make the bound small: sweeps over servers, each of which moves the prices it meets.

An incremental subgradient method (Nedic and Bertsekas 2001) along averaged packings, as the volume algorithm averages
them (Barahona and Anbil 2000): near the optimum the averages are a fractional placement. Preconditioned: a demand's
price moves with the part of it that is asked for too often, in units of its worth; asking for it twenty times over
counts as once. Steps and the weight of the newest packing shrink geometrically with the part of the budget that is
spent. First with groups of one service each, then with the columns near the best of all; only an evaluation with all
columns (`dual.Pricer`) proves a bound, and the best of those is kept.

Measured on generated edges (2026-11-25, 2 shared cores under other load, one run each): at 100 servers x 60 services
150 sweeps on one thread, 3 s, proved 323.5; the volume algorithm on all servers at once, as it stood here before, had
325.4 after 12 s on two threads. At 1,000 x 100, 250 sweeps proved 3,148, and 304 steps of the volume algorithm 3,191.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from epara_solvers.columns import pricing, sweeping
from epara_solvers.columns.arrays import F64, I64
from epara_solvers.columns.dual import Listed, Priced, Pricer, Prices

FIRST_STEP, LAST_STEP = 0.3, 0.002  # of a demand's worth, a sweep
WARM_STEP = 0.05  # the first, from prices of an earlier plan
FIRST_WEIGHT, LAST_WEIGHT = 0.4, 0.03  # of the newest packing in the average
ALONE_SWEEPS = 24  # with groups of one service
ALONE_STEP, ALONE_WEIGHT = 0.05, 0.1  # the last of them
PROVE_EVERY = 8  # sweeps
MEETINGS = 16  # a sweep: threads tell each other what they moved, or both would react to the same
LINK_SHARE = 0.5  # of an average demand's worth: how fast a link's price moves


class Descent:
    """See the module. `prices`, `bound` and `priced` are the best proved so far; sweeps start from where they led.

    flow: (E,) the averaged packings' work on each edge.
    """

    def __init__(self, pricer: Pricer, start: Prices | None, *, seed: int = 1) -> None:
        a = pricer.ground.arrays
        self._pricer = pricer
        self._draw = np.random.default_rng(seed)
        self._first_step = FIRST_STEP if start is None else WARM_STEP
        self._pi = np.zeros(len(a.offered)) if start is None else start.pi.copy()
        self._beta = np.zeros(len(a.link_width)) if start is None else start.beta.copy()
        self.sweeps = 0
        self.flow = np.zeros(len(a.edge_demand))
        self._use = np.zeros(len(a.offered))
        self._link_use = np.zeros(len(a.link_width))
        self._share = 1.0 / np.maximum(1, np.bincount(a.edge_demand, minlength=len(a.offered)))
        value = float(a.offered @ a.worth)
        self._link_step = LINK_SHARE * value / max(1, len(a.link_width)) / np.maximum(a.link_width, 1e-300)
        num_paths = len(a.path_start) - 1
        self._cost_there, self._cost_back = np.zeros(num_paths), np.zeros(num_paths)
        widest = int(np.diff(a.seg_start[a.server_seg]).max(initial=0))
        most = int(a.pool_devices.max(initial=0)) + 1
        self._threads = [
            (pricing.bench_for(a), np.zeros(widest), np.zeros(most, dtype=np.int64), np.zeros(most, dtype=np.int64))
            for _ in pricer.parts
        ]
        self._pool = ThreadPoolExecutor(len(self._threads)) if len(self._threads) > 1 else None
        self.prices = Prices(self._pi.copy(), self._beta.copy())
        self.priced: Priced = pricer(self.prices)
        self.bound = self.priced.bound
        self._listed: Listed = pricer.active()
        if start is not None:
            self._sweep(1.0, 0.0)  # averages begin with what packs best now

    def alone(self, time_is_up: Callable[[], bool] = lambda: False) -> None:
        """Prices of the problem whose groups hold one service each, then over to all columns near the best."""
        self._listed = self._pricer.alone()
        for i in range(ALONE_SWEEPS):
            if time_is_up():
                break
            part = i / ALONE_SWEEPS
            self._sweep(_between(FIRST_WEIGHT, ALONE_WEIGHT, part), _between(FIRST_STEP, ALONE_STEP, part))
        self.prove()

    def step(self, part: float) -> None:
        """One sweep; `part` in [0, 1] of the budget is spent."""
        self._sweep(_between(FIRST_WEIGHT, LAST_WEIGHT, part), _between(self._first_step, LAST_STEP, part))
        self.sweeps += 1
        if self.sweeps % PROVE_EVERY == 0:
            self.prove()

    def prove(self) -> None:
        """Look at all columns where the sweeps have led: a bound, and the active columns anew."""
        prices = Prices(self._pi.copy(), self._beta.copy())
        priced = self._pricer(prices)
        self._listed = self._pricer.active()
        if priced.bound < self.bound:
            self.prices, self.bound, self.priced = prices, priced.bound, priced

    def active(self) -> Listed:
        """Columns near the best where the prices are now."""
        return self._listed

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def _sweep(self, weight: float, step: float) -> None:
        a = self._pricer.ground.arrays
        pricing.path_costs(a, self._beta, self._cost_there, self._cost_back)
        orders = [lo + self._draw.permutation(hi - lo) for lo, hi in self._pricer.parts]
        if self._pool is None:
            self._part(0, orders[0], self._pi, self._use, weight, step)
        else:
            for chunks in zip(*(np.array_split(order, MEETINGS) for order in orders), strict=True):
                self._together(self._pool, chunks, weight, step)
        if len(self._beta):
            sweeping.flow_on_links(a, self.flow, self._link_use)
            over = np.clip(self._link_use / np.maximum(a.link_width, 1e-300) - 1.0, -1.0, 1.0)
            self._beta = np.maximum(0.0, self._beta + step * over * self._link_step)

    def _together(self, pool: ThreadPoolExecutor, chunks: tuple[I64, ...], weight: float, step: float) -> None:
        """Each thread moves prices of its own; what they moved is added up, so that runs are alike."""
        pi, use = self._pi, self._use
        own = [(pi.copy(), use.copy()) for _ in chunks]
        jobs = [pool.submit(self._part, i, chunk, *own[i], weight, step) for i, chunk in enumerate(chunks)]
        for job in jobs:
            job.result()
        self._pi = np.clip(pi + sum(p - pi for p, _ in own), 0.0, self._pricer.ground.arrays.worth)
        self._use = use + sum(u - use for _, u in own)

    def _part(self, i: int, order: I64, pi: F64, use: F64, weight: float, step: float) -> None:
        bench, new, chosen, copies = self._threads[i]
        sweeping.sweep(
            self._pricer.ground.arrays,
            bench,
            order,
            self._listed.start,
            self._listed.column,
            weight,
            step,
            self._share,
            pi,
            self._cost_there,
            self._cost_back,
            self.flow,
            use,
            new,
            chosen,
            copies,
        )


def _between(first: float, last: float, part: float) -> float:
    """Geometrically from first to last."""
    return first * (last / first) ** min(1.0, max(0.0, part))
