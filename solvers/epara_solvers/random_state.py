"""Random numbers in compiled code: splitmix64 (Steele et al., OOPSLA'14), so that a seed decides everything."""

# pyright: basic
# Kernels have no annotations: numba infers the types of what it is given.

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def unit(rng):
    """Uniform in [0, 1); rng: (1,) uint64 state."""
    rng[0] += np.uint64(0x9E3779B97F4A7C15)
    z = rng[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return np.float64(z >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@njit(cache=True, nogil=True)
def below(rng, n):
    """Uniform in 0, 1, ... n - 1."""
    return min(np.int64(unit(rng) * n), n - 1)
