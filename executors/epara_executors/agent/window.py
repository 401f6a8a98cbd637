"""Rates over the last seconds, from counters that only grow. Whoever counts pays nothing for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

WINDOW_S = 10.0


class Window:
    """Looks at counters, a second or so apart, and what they grew by since. Instants of one clock, in seconds."""

    def __init__(self, *, span_s: float = WINDOW_S) -> None:
        self._span_s = span_s
        self._looks: deque[tuple[float, Mapping[str, float]]] = deque()

    def look(self, at: float, counts: Mapping[str, float]) -> None:
        """Remember the counters as they are; what lies further back than the span is forgotten."""
        self._looks.append((at, dict(counts)))
        while len(self._looks) > 2 and self._looks[1][0] <= at - self._span_s:
            self._looks.popleft()

    def per_s(self, name: str) -> float:
        """Growth per second over the looks that are kept.

        A counter that was not there yet stood at 0 at the look before it came. One that began anew (a replica that
        was unloaded and loaded again) counts from its last beginning that a look can tell.
        """
        if not self._looks or name not in self._looks[-1][1]:
            return 0.0
        end_at, counts = self._looks[-1]
        began_at, before, value = end_at, counts[name], counts[name]
        for at, earlier in reversed(self._looks):
            known = earlier.get(name)
            if known is not None and known > before:
                break
            began_at, before = at, known or 0.0
            if known is None:
                break
        return (value - before) / (end_at - began_at) if end_at > began_at else 0.0
