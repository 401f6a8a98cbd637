"""Memory that was needed for a while, given back to the system."""

from __future__ import annotations

import ctypes
import sys


def give_back() -> None:
    """Return what is free to the system: glibc would keep what passed through for the next time. Milliseconds."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # absent in other C libraries
        if trim is not None:
            trim(0)
