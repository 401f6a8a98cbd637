"""How sure a median is: the confidence interval from order statistics, which asks nothing of the distribution.

Of n independent samples in ascending order, the median lies between the k-th from below and the k-th from above
with probability 1 - 2 P(B <= k - 1), B binomial over n fair coins (e.g. Conover, Practical Nonparametric Statistics).
k is the largest with at least the coverage asked for. Fewer than 6 samples give no interval at 95 %. Samples of one
run of one machine are not quite independent, and stopping once the interval is narrow enough favours narrow ones: read
it as what another run beside this one would give, not as what next week's would.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

COVERAGE = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A median and its interval. 0 < low <= median <= high."""

    median: float
    low: float
    high: float

    @property
    def error(self) -> float:
        """The larger half of the interval, relative to the median; infinite where there is none."""
        return max(self.high - self.median, self.median - self.low) / self.median


def rank(n: int, coverage: float = COVERAGE) -> int:
    """k of the interval [k-th smallest, k-th largest] of n samples; 0: there is none with this coverage."""
    tail, k = 0.0, 0
    while True:
        tail += math.comb(n, k) / 2.0**n
        if 2.0 * tail > 1.0 - coverage or k + 1 > n // 2:
            return k
        k += 1


def estimate(samples: Sequence[float], coverage: float = COVERAGE) -> Estimate:
    """Of at least one sample, each > 0. With too few for an interval it reaches from 0 to infinity."""
    ascending = sorted(samples)
    middle = statistics.median(ascending)
    k = rank(len(ascending), coverage)
    return Estimate(middle, ascending[k - 1], ascending[-k]) if k else Estimate(middle, 0.0, math.inf)
