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

_FLOW_MS = 5  # how long the rest of a frame is waited for while others have work: it is on its way

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
        """Everything that has come; wait for the first if asked to. Ends the process where the agent has left.

        A socket holds a part of a large frame, and one part at each of somebody else's turns would delay it by as many
        turns: once begun it is read to its end, as long as it flows.
        """
        items: list[Frame | Call] = []
        while not items:
            ready = self._poll.poll(None if block else _FLOW_MS if self._wire.is_amid else 0)
            for descriptor, _ in ready:
                if descriptor == self._heard:
                    items += [self._calls.popleft() for _ in os.read(self._heard, 4096)]
                    continue
                try:
                    items += self._wire.receive()
                except (Closed, ValueError):
                    os._exit(AGENT_LEFT)
            if not block and not (ready and self._wire.is_amid):
                break
        return items

    def _await_hang_up(self) -> None:
        poll = select.poll()
        poll.register(self._wire.fileno(), _HANG_UP)
        poll.poll()
        os._exit(AGENT_LEFT)
