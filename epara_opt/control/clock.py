"""The real clock, with a stop that wakes whoever waits."""

from __future__ import annotations

import threading
import time


class SystemClock:
    """Implements `ports.Clock`."""

    def __init__(self) -> None:
        self._stop = threading.Event()

    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()

    def wait(self, seconds: float) -> bool:
        """Wait; True at once when a stop was or is asked for."""
        return self._stop.wait(max(0.0, seconds))

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()

    def stop(self) -> None:
        """Ask whoever waits on this clock to end. Safe from signal handlers and other threads."""
        self._stop.set()
