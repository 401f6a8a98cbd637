"""What reaches rank 0's main thread: frames of the agent, and calls of its own threads.

The main thread reads the socket itself, so that a request wakes one thread and not two. Another thread only waits for
the agent to hang up, which ends the process at once, mid-batch if need be.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable

from epara_executors.worker.frames import Frame
from epara_executors.worker.wire import Closed, Wire

AGENT_LEFT = 3  # exit status
_HANG_UP = getattr(select, "POLLRDHUP", select.POLLHUP)  # the former is Linux's and comes earlier

Call = Callable[[], None]


class Inbox:
    """`take` belongs to the main thread; `call` may be called from any."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._calls: deque[Call] = deque()
        self._heard, self._wake = os.pipe()
        self._poll = select.poll()
        self._poll.register(wire.fileno(), select.POLLIN)
        self._poll.register(self._heard, select.POLLIN)

    def watch(self) -> None:
        """From now on the process ends when the agent leaves."""
        threading.Thread(target=self._await_hang_up, name="hang-up", daemon=True).start()

    def call(self, function: Call) -> None:
        """Have the main thread call this at its next take."""
        self._calls.append(function)
        os.write(self._wake, b"\0")

    def take(self, *, block: bool) -> list[Frame | Call]:
        """Everything that has come; wait for the first if asked to. Ends the process where the agent has left."""
        items: list[Frame | Call] = []
        while not items:
            for descriptor, _ in self._poll.poll(None if block else 0):
                if descriptor == self._heard:
                    items += [self._calls.popleft() for _ in os.read(self._heard, 4096)]
                    continue
                try:
                    items += self._wire.receive()
                except (Closed, ValueError):
                    os._exit(AGENT_LEFT)
            if not block:
                break
        return items

    def _await_hang_up(self) -> None:
        poll = select.poll()
        poll.register(self._wire.fileno(), _HANG_UP)
        poll.poll()
        os._exit(AGENT_LEFT)
