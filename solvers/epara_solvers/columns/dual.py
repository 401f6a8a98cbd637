"""The upper bound: a Lagrangian relaxation of demand and links, evaluated at prices.

For any pi >= 0 (D,) and beta >= 0 (H,),

    U(pi, beta) = sum_d pi_d offered_d + sum_h beta_h width_h + sum_n packing_n(pi, beta)

is at least the value of every placement: add to its value the priced slack of demand and links, which is >= 0, and
what is left is one packing per server. U is convex; its subgradient is what the packings leave of demand and links.
`descent` finds prices that make it small.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from epara_solvers.columns import pricing
from epara_solvers.columns.arrays import F64, I32, I64, Ground

SERVERS_PER_THREAD = 40  # fewer are not worth a thread


@dataclass(frozen=True, slots=True)
class Prices:
    """Of work of each demand (D,), and of a byte per second on each directed link (H,); all >= 0."""

    pi: F64
    beta: F64


@dataclass(frozen=True, slots=True)
class Priced:
    """One evaluation of U."""

    bound: float
    packing_value: F64  # (N,) after prices
    pool_price: F64  # (Q,) what a pool's last device adds to it


@dataclass(frozen=True, slots=True)
class Listed:
    """Some columns of every pool: column[start[q] : start[q + 1]] of pool q."""

    start: I64  # (Q + 1,)
    column: I32


class Pricer:
    """Evaluates U on the machine's cores. Parts are fixed by the number of threads, so sums are repeatable."""

    def __init__(self, ground: Ground, *, threads: int = 1) -> None:
        self.ground = ground
        a = ground.arrays
        self.threads = max(1, min(threads, ground.num_servers // SERVERS_PER_THREAD))
        self._pool = ThreadPoolExecutor(self.threads) if self.threads > 1 else None
        load = np.cumsum(np.diff(a.pool_column[a.server_pool]) + 1.0)
        cuts = np.searchsorted(load, np.linspace(0.0, load[-1], self.threads + 1)[1:-1]) if len(load) else []
        self.parts = tuple(pairwise([0, *(int(c) for c in cuts), ground.num_servers]))  # servers of each thread
        self._bench = [pricing.bench_for(a) for _ in self.parts]
        num_paths = len(a.path_start) - 1
        self._cost_there, self._cost_back = np.zeros(num_paths), np.zeros(num_paths)
        self._packing_value = np.zeros(ground.num_servers)
        self._pool_price = np.zeros(len(a.pool_devices))
        self._active = [
            Listed(np.zeros(len(a.pool_column), dtype=np.int64), np.zeros(len(a.column_content), dtype=np.int32))
            for _ in self.parts
        ]
        self._heat = np.zeros(len(a.column_content), dtype=np.int8)

    def __call__(self, prices: Prices) -> Priced:
        """U at these prices."""
        a = self.ground.arrays
        pricing.path_costs(a, prices.beta, self._cost_there, self._cost_back)
        which = range(len(self.parts))
        if self._pool is None:
            values = [self._part(i, prices.pi) for i in which]
        else:
            values = list(self._pool.map(lambda i: self._part(i, prices.pi), which))
        return Priced(
            bound=float(prices.pi @ a.offered + prices.beta @ a.link_width + sum(values)),
            packing_value=self._packing_value.copy(),
            pool_price=self._pool_price.copy(),
        )

    def alone(self) -> Listed:
        """Columns of groups that hold one service."""
        a = self.ground.arrays
        is_alone = (a.content_service >= 0).sum(axis=1)[a.column_content] == 1
        before = np.concatenate(([0], np.cumsum(is_alone)))
        return Listed(before[a.pool_column], a.every_column[is_alone])

    def active(self) -> Listed:
        """Columns that came near the best in one of the last evaluations: a tenth, and mostly enough nearby."""
        a = self.ground.arrays
        counts = np.zeros(len(a.pool_column) - 1, dtype=np.int64)
        columns: list[I32] = []
        for (lo, hi), mine in zip(self.parts, self._active, strict=True):
            pools = slice(int(a.server_pool[lo]), int(a.server_pool[hi]))
            counts[pools] = np.diff(mine.start[pools.start : pools.stop + 1])
            columns.append(mine.column[: mine.start[pools.stop]])
        return Listed(np.concatenate(([0], np.cumsum(counts))), np.concatenate(columns))

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def _part(self, i: int, pi: F64) -> float:
        return pricing.price_servers(
            self.ground.arrays,
            self._bench[i],
            *self.parts[i],
            self._active[i].start,
            self._active[i].column,
            self._heat,
            pi,
            self._cost_there,
            self._cost_back,
            self._packing_value,
            self._pool_price,
        )
