"""What each pool would earn on fewer devices, under prices. Compiled, on the kernels of `columns.pricing`."""

# pyright: basic
# The kernel has no annotations: numba infers the types of what it is given, the arrays of columns.arrays.

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from epara_solvers.columns import pricing
from epara_solvers.columns.arrays import Ground
from epara_solvers.columns.dual import Prices
from numba import njit


def pool_values(ground: Ground, prices: Prices) -> npt.NDArray[np.float64]:
    """(Q, G + 1) the best packing of each pool on 0, 1, ... devices; rows of smaller pools end in zeros."""
    a = ground.arrays
    out = np.zeros((len(a.pool_devices), int(a.pool_devices.max(initial=0)) + 1))
    if not len(a.column_content):
        return out
    there, back = (np.zeros(len(a.path_start) - 1) for _ in range(2))
    pricing.path_costs(a, prices.beta, there, back)
    listed = np.arange(len(a.column_content), dtype=np.int32)
    _pool_values(a, pricing.bench_for(a), listed, prices.pi, there, back, out)
    return out


@njit(cache=True, nogil=True)
def _pool_values(a, b, listed, pi, cost_there, cost_back, out):
    """`pricing.price_servers` without what is chosen: the whole knapsack of each pool into out (Q, G + 1)."""
    for n in range(len(a.server_pool) - 1):
        pricing.sort_gains(a, b, n, a.offered, pi, cost_there, cost_back)
        for q in range(a.server_pool[n], a.server_pool[n + 1]):
            pricing.best_copies(a, b, n, q, listed, a.pool_column[q], a.pool_column[q + 1])
            devices = a.pool_devices[q]
            pricing.best_packing(b, devices)
            for k in range(devices + 1):
                out[q, k] = b.packed[k]
