"""Memory that was needed for a while, given back to the system."""

from __future__ import annotations

import asyncio
import ctypes
import sys

SETTLE_S = 1.0  # gRPC frees what a channel held after the channel has ended, in threads of its own


def give_back() -> None:
    """Return what is free to the system: glibc would keep what passed through for the next time. Milliseconds."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # absent in other C libraries
        if trim is not None:
            trim(0)


def give_back_soon() -> None:
    """Once things have settled, in a thread. On the event loop."""
    loop = asyncio.get_running_loop()
    loop.call_later(SETTLE_S, loop.run_in_executor, None, give_back)
