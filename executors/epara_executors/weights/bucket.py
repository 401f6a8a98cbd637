"""A cap on bytes per second, as a token bucket. It only does the arithmetic: who asks does the waiting."""

from __future__ import annotations

from collections.abc import Callable


class TokenBucket:
    """Bytes may flow at a rate, with at most a burst at once. One user at a time: a thread or an event loop."""

    def __init__(self, bytes_per_s: float, *, burst_bytes: float, clock: Callable[[], float]) -> None:
        """bytes_per_s: 0 means no cap. clock: seconds, never going back."""
        if bytes_per_s < 0 or burst_bytes <= 0:
            raise ValueError(f"expected a rate >= 0 and a burst > 0, got {bytes_per_s} and {burst_bytes}")
        self.bytes_per_s = bytes_per_s
        self._burst = burst_bytes
        self._clock = clock
        self._left = burst_bytes
        self._at = clock()

    def wait_s(self, num_bytes: int) -> float:
        """Take bytes that have flowed, or will; how long to wait until they are paid for. May go into debt."""
        if self.bytes_per_s == 0:
            return 0.0
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._at) * self.bytes_per_s) - num_bytes
        self._at = now
        return max(0.0, -self._left / self.bytes_per_s)
