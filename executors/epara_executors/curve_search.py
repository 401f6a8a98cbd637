"""Which sizes to measure until a curve of time over size is known: the stopping law of `epara profile --incremental`.

The planner reads a profile as straight lines between measured sizes. What those lines may be off by is bounded from
what is measured. Let each measured size x have an interval [low(x), high(x)] for its time. Between neighbours a < b:

    (M)  a larger batch takes no less time               low(a) <= t(x) <= high(b)
    (E)  a larger batch takes no more time per row       x low(b) / b <= t(x) <= x high(a) / a

With p the line through the measured medians and [l, u] what both laws leave, the bound at x is the larger of
(p - l) / l and (u - p) / u; at a measured size it is that of its own interval. The curve counts as known within the
tolerance when

1. the bound is within it at every size of the range, measured or not, and
2. the size measured last was foretold: it was in the middle (by ratio) of the widest gap left, and the line met its
   median within the tolerance.

Next comes the size that is least certain in the gap of the greatest bound. Where measurements break (E) (devices that
work in tiles, a cache that overflows), the gap falls back to (M) alone, and so do all gaps made inside one whose
middle was measured outside of what (E) allowed. Where they break (M), it is their hull.

No bound can do without laws: a step or dip between two measured sizes that obey both is not seen, unless (2) hits it.
On devices that work in tiles of 16 rows, say, lines may be off by a tile between sizes. The result is as good as (M)
and (E) are for the device at hand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from epara_executors.confidence import Estimate

TOLERANCE = 0.05


@dataclass(frozen=True, slots=True)
class _Gap:
    """Two measured neighbours and what lies between them."""

    a: int
    b: int
    at_a: Estimate
    at_b: Estimate
    scales: bool  # whether (E) is taken to hold here

    def line(self, x: int) -> float:
        return self.at_a.median + (self.at_b.median - self.at_a.median) * (x - self.a) / (self.b - self.a)

    def between(self, x: int) -> tuple[float, float]:
        """What the laws leave for the time at x."""
        low, high = min(self.at_a.low, self.at_b.low), max(self.at_a.high, self.at_b.high)
        if self.scales:
            least, most = x * self.at_b.low / self.b, x * self.at_a.high / self.a
            if max(low, least) <= min(high, most):
                return max(low, least), min(high, most)
        return low, high

    def bound(self, x: int) -> float:
        low, high = self.between(x)
        p = self.line(x)
        if low <= 0 or high == math.inf:
            return math.inf
        return max((p - low) / low, (high - p) / high)

    def worst(self) -> float:
        """Over all sizes inside; 0 of neighbours."""
        return max((self.bound(x) for x in range(self.a + 1, self.b)), default=0.0)

    def least_certain(self) -> int:
        """Where the laws leave most room, by ratio; of equals, the one nearest to the middle by ratio."""
        middle = math.log(self.a * self.b) / 2

        def room(x: int) -> tuple[float, float]:
            low, high = self.between(x)
            return -round(math.log(high / low), 6), abs(math.log(x) - middle)

        return min(range(self.a + 1, self.b), key=room)

    def middle(self) -> int:
        return min(max(self.a + 1, round(math.sqrt(self.a * self.b))), self.b - 1)


class CurveSearch:
    """Of one curve. Ask `next_size`, measure there, `add` what was found; until it is None."""

    def __init__(self, first: int, last: int, *, tolerance: float = TOLERANCE) -> None:
        """Sizes from first to last, both included. Raises ValueError for an empty range or a tolerance <= 0."""
        if not 1 <= first <= last:
            raise ValueError(f"sizes: expected 1 <= first <= last, got {first} and {last}")
        if not tolerance > 0:
            raise ValueError(f"tolerance: expected > 0, got {tolerance:g}")
        self._ends = (first, last)
        self._tolerance = tolerance
        self._found: dict[int, Estimate] = {}
        self._alone: list[tuple[int, int]] = []  # ranges in which (E) was seen to fail
        self._foretold = False  # the size measured last, as (2) wants it
        self._trial = 0  # the size asked for by (2)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Measured, ascending."""
        return tuple(sorted(self._found))

    @property
    def bound(self) -> float:
        """What the lines may be off by anywhere in the range, relative; infinite until both ends are measured."""
        if any(x not in self._found for x in self._ends):
            return math.inf
        return max([e.error for e in self._found.values()] + [g.worst() for g in self._gaps()])

    @property
    def known(self) -> bool:
        return self.next_size() is None

    def next_size(self) -> int | None:
        """Where to measure next, a size measured before if that is the least certain; None when the curve is known."""
        for end in self._ends:
            if end not in self._found:
                return end
        gaps = self._gaps()
        worst, error = max(((x, e.error) for x, e in self._found.items()), key=lambda p: p[1])
        widest = max(gaps, key=lambda g: g.worst(), default=None)
        if widest is not None and widest.worst() > max(error, self._tolerance):
            return widest.least_certain()
        if error > self._tolerance:
            return worst
        gaps = [g for g in gaps if g.b - g.a > 1]
        if self._foretold or not gaps:
            return None
        self._trial = max(gaps, key=lambda g: g.b / g.a).middle()
        return self._trial

    def add(self, size: int, found: Estimate) -> None:
        """What was measured at a size; replaces what was known there."""
        if size not in self._found:
            gap = next((g for g in self._gaps() if g.a < size < g.b), None)
            if gap is not None:
                low, high = gap.between(size)
                foretold = abs(gap.line(size) - found.median) <= self._tolerance * found.median
                if gap.scales and (found.high < low or found.low > high or (size == self._trial and not foretold)):
                    self._alone.append((gap.a, gap.b))
                self._foretold = size == self._trial and foretold
        self._found[size] = found

    def _gaps(self) -> list[_Gap]:
        xs = sorted(self._found)
        return [
            _Gap(a, b, self._found[a], self._found[b], not any(s <= a and b <= e for s, e in self._alone))
            for a, b in pairwise(xs)
        ]
