"""Prices that make the upper bound tight: the volume algorithm over the Lagrangian relaxation.

For any pi >= 0 (D,) and beta >= 0 (H,),

    U(pi, beta) = sum_d pi_d offered_d + sum_h beta_h width_h + sum_n packing_n(pi, beta)

is at least the value of every placement: add to its value the priced slack of demand and links, which is >= 0, and
what is left is one packing per server. U is convex; its subgradient is what the packings leave of demand and links.

The volume algorithm (Barahona and Anbil 2000) steps along an average of subgradients, which is also an average of
packings: near the optimum, a fractional placement. Ours is preconditioned: every demand's price moves with the part of
it that is asked for too often, in units of its worth; asking for it twenty times over counts as once. Measured on a
generated edge of 100 servers x 60 services (2 shared cores, one run): 0.9 % above the best bound after 100 steps and
0.3 % after 200, against 41 % and 26 % without the preconditioner and with the usual averaging factor of 0.1.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

import numpy as np
from epara_solvers.columns import pricing
from epara_solvers.columns.arrays import F64, I32, I64, Ground

AVERAGING = 0.5  # weight of the newest subgradient, falling by FADING a step to LEAST_AVERAGING
FADING = 0.996
LEAST_AVERAGING = 0.05
FIRST_LENGTH = 0.1  # of a Polyak step
PATIENCE = 5  # steps in vain before they become shorter
SHORTER, LONGER = 0.66, 1.1
LEAST_LENGTH = 1e-4
PROVE_EVERY = 8  # steps
SERVERS_PER_THREAD = 40  # fewer are not worth a thread
LINK_SHARE = 0.5  # of an average demand's worth: how fast a link's price moves


@dataclass(frozen=True, slots=True)
class Prices:
    """Of work of each demand (D,), and of a byte per second on each directed link (H,); all >= 0."""

    pi: F64
    beta: F64


@dataclass(slots=True)
class Priced:
    """One evaluation of U."""

    bound: float
    use: F64  # (D,) work that the packings take of each demand
    link_use: F64  # (H,) bytes/s
    packing_value: F64  # (N,) after prices
    pool_price: F64  # (Q,) what a pool's last device adds to it
    columns: I64  # chosen
    copies: I64  # of each


class Reach(Enum):
    """Which columns an evaluation looks at. Only ALL proves a bound."""

    ALL = "all"
    ALONE = "alone"  # groups that hold one service
    ACTIVE = "active"  # those near the best when all were last looked at: a tenth, and at prices close by mostly enough


@dataclass(frozen=True, slots=True)
class _Listed:
    start: I64  # (Q + 1,)
    column: I32


class Pricer:
    """Evaluates U on the machine's cores. Parts are fixed by the number of threads, so sums are repeatable."""

    def __init__(self, ground: Ground, *, threads: int = 1) -> None:
        self.ground = ground
        a = ground.arrays
        self._threads = max(1, min(threads, ground.num_servers // SERVERS_PER_THREAD))
        self._pool = ThreadPoolExecutor(self._threads) if self._threads > 1 else None
        load = np.cumsum(np.diff(a.pool_column[a.server_pool]) + 1.0)
        cuts = np.searchsorted(load, np.linspace(0.0, load[-1], self._threads + 1)[1:-1]) if len(load) else []
        self._cuts = [0, *(int(c) for c in cuts), ground.num_servers]
        self._bench = [pricing.bench_for(a) for _ in range(self._threads)]
        most, num_paths = int(a.pool_devices.sum()) + 1, len(a.path_start) - 1
        self._columns = [np.zeros(most, dtype=np.int64) for _ in range(self._threads)]
        self._copies = [np.zeros(most, dtype=np.int64) for _ in range(self._threads)]
        self._cost_there, self._cost_back = np.zeros(num_paths), np.zeros(num_paths)
        self._packing_value = np.zeros(ground.num_servers)
        self._pool_price = np.zeros(len(a.pool_devices))
        self._use = [np.zeros(len(a.offered)) for _ in range(self._threads)]
        self._there = [np.zeros(num_paths) for _ in range(self._threads)]
        self._back = [np.zeros(num_paths) for _ in range(self._threads)]
        everything = np.arange(len(a.column_content), dtype=np.int32)
        is_alone = (a.content_service >= 0).sum(axis=1)[a.column_content] == 1
        before = np.concatenate(([0], np.cumsum(is_alone)))
        self._all = _Listed(a.pool_column, everything)
        self._alone = _Listed(before[a.pool_column], everything[is_alone])
        ends = [int(a.pool_column[a.server_pool[c]]) for c in self._cuts]
        self._active = [
            _Listed(np.zeros(len(a.pool_column), dtype=np.int64), np.zeros(hi - lo + 1, dtype=np.int32))
            for lo, hi in pairwise(ends)
        ]
        self._heat = np.zeros(len(a.column_content), dtype=np.int8)
        self._none = _Listed(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int32))

    def __call__(self, prices: Prices, reach: Reach = Reach.ALL) -> Priced:
        """U at these prices, of the problem with these columns alone."""
        a = self.ground.arrays
        pricing.path_costs(a, prices.beta, self._cost_there, self._cost_back)
        parts = range(self._threads)
        if self._pool is None:
            done = [self._part(i, prices.pi, reach) for i in parts]
        else:
            done = list(self._pool.map(lambda i: self._part(i, prices.pi, reach), parts))
        link_use = np.zeros(len(a.link_width))
        pricing.add_link_use(a, np.sum(self._there, axis=0), np.sum(self._back, axis=0), link_use)
        return Priced(
            bound=float(prices.pi @ a.offered + prices.beta @ a.link_width + sum(value for value, _ in done)),
            use=np.sum(self._use, axis=0),
            link_use=link_use,
            packing_value=self._packing_value.copy(),
            pool_price=self._pool_price.copy(),
            columns=np.concatenate([self._columns[i][:num] for i, (_, num) in enumerate(done)]),
            copies=np.concatenate([self._copies[i][:num] for i, (_, num) in enumerate(done)]),
        )

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def _part(self, i: int, pi: F64, reach: Reach) -> tuple[float, int]:
        for out in (self._use[i], self._there[i], self._back[i]):
            out[:] = 0.0
        listed = {Reach.ALL: self._all, Reach.ALONE: self._alone, Reach.ACTIVE: self._active[i]}[reach]
        active = self._active[i] if reach is Reach.ALL else self._none
        return pricing.price_servers(
            self.ground.arrays,
            self._bench[i],
            self._cuts[i],
            self._cuts[i + 1],
            listed.start,
            listed.column,
            active.start,
            active.column,
            self._heat,
            pi,
            self._cost_there,
            self._cost_back,
            self._use[i],
            self._there[i],
            self._back[i],
            self._packing_value,
            self._pool_price,
            self._columns[i],
            self._copies[i],
        )


class Volume:
    """See the module. `prices`, `bound` and `priced` are the best proved so far; steps start from where they led."""

    def __init__(self, pricer: Pricer, prices: Prices, *, alone: bool = False) -> None:
        a = pricer.ground.arrays
        self._pricer = pricer
        self._reach = Reach.ALONE if alone else Reach.ACTIVE
        self._value = a.offered * a.worth  # (D,) of serving a demand whole
        self._link_value = LINK_SHARE * float(self._value.sum()) / max(1, len(a.link_width))
        self._averaging, self._length, self._in_vain = AVERAGING, FIRST_LENGTH, 0
        self.steps = 0
        self.prices, self.priced = prices, pricer(prices)
        self.bound = self.priced.bound
        self._at, self._here = prices, self.priced.bound
        if alone:
            self._here = pricer(prices, Reach.ALONE).bound
        self._use, self._link_use = self.priced.use, self.priced.link_use

    def widen(self) -> None:
        """From groups of one service to all of them, at the same prices."""
        self._reach = Reach.ACTIVE
        self._length, self._averaging, self._in_vain = max(self._length, FIRST_LENGTH), AVERAGING, 0
        priced = self.prove()
        self._use, self._link_use = priced.use, priced.link_use

    def prove(self) -> Priced:
        """Look at all columns where the steps have led: a bound, and the active columns anew."""
        priced = self._pricer(self._at)
        if priced.bound < self.bound:
            self.prices, self.bound, self.priced = self._at, priced.bound, priced
        else:  # columns that were not active spoil it: back to the best, with them active
            self._at = self.prices
            self._length = max(LEAST_LENGTH, self._length * SHORTER)
        self._here = self.bound
        return priced

    @property
    def is_flat(self) -> bool:
        """Steps have become too short to be worth taking."""
        return self._length <= LEAST_LENGTH

    def step(self, target: float) -> None:
        """One step towards `target`, a value that U can hardly go below (the incumbent's)."""
        a = self._pricer.ground.arrays
        over, link_over = self._use / a.offered - 1.0, self._link_use / a.link_width - 1.0
        over[(over < 0.0) & (self._at.pi <= 0.0)] = 0.0  # a price of 0 cannot fall
        link_over[(link_over < 0.0) & (self._at.beta <= 0.0)] = 0.0
        move, link_move = over / np.maximum(1.0, np.abs(over)), link_over / np.maximum(1.0, np.abs(link_over))
        norm = float(self._value @ (over * move) + self._link_value * (link_over @ link_move))
        if norm <= 0.0:
            self._length = LEAST_LENGTH
            return
        length = self._length * max(self._here - target, 1e-6 * abs(self._here)) / norm
        prices = Prices(
            pi=np.clip(self._at.pi + length * move * a.worth, 0.0, a.worth),
            beta=np.maximum(0.0, self._at.beta + length * self._link_value * link_move / a.link_width),
        )
        priced = self._pricer(prices, self._reach)
        self.steps += 1
        along = float(
            self._value @ ((priced.use / a.offered - 1.0) * move)
            + self._link_value * ((priced.link_use / a.link_width - 1.0) @ link_move)
        )
        self._average(priced)
        if priced.bound < self._here:
            self._at, self._here, self._in_vain = prices, priced.bound, 0
            if along >= 0.0:  # U still falls in this direction: the step could have been longer
                self._length = min(2.0, self._length * LONGER)
        else:
            self._in_vain += 1
            if self._in_vain >= PATIENCE:
                self._length, self._in_vain = max(LEAST_LENGTH, self._length * SHORTER), 0
        if self._reach is Reach.ACTIVE and (self.steps % PROVE_EVERY == 0 or self.is_flat):
            self.prove()

    def _average(self, priced: Priced) -> None:
        """Move the averaged packing towards the new one, so that its violation is least."""
        a = self._pricer.ground.arrays
        was, link_was = self._use / a.offered - 1.0, self._link_use / a.link_width - 1.0
        by, link_by = (priced.use - self._use) / a.offered, (priced.link_use - self._link_use) / a.link_width
        size = float(self._value @ (by * by) + self._link_value * (link_by @ link_by))
        best = -float(self._value @ (was * by) + self._link_value * (link_was @ link_by)) / size if size > 0 else 1.0
        most = max(LEAST_AVERAGING, self._averaging)
        self._averaging *= FADING
        weight = min(max(best, most / 10.0), most)
        self._use = self._use + weight * (priced.use - self._use)
        self._link_use = self._link_use + weight * (priced.link_use - self._link_use)


def descend(volume: Volume, target: float, *, steps: int, time_is_up: Callable[[], bool]) -> None:
    """Up to so many steps, fewer when time is up or they have become too short."""
    for _ in range(steps):
        if time_is_up() or volume.is_flat:
            break
        volume.step(target)
    if not volume.is_flat:
        volume.prove()
