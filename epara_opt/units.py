"""Unit conversions, each done once, where outside numbers come in (YAML, CSV, RPC)."""

from __future__ import annotations

GIB = 1024**3
MS_PER_S = 1000.0


def gib_to_bytes(gib: float) -> int:
    """GiB to bytes, rounded up, so that a memory need is never understated."""
    exact = gib * GIB
    whole = int(exact)
    return whole if whole == exact else whole + 1


def bytes_to_gib(num_bytes: float) -> float:
    return num_bytes / GIB


def kb_to_bytes(kb: float) -> float:
    """kB as networks count them: 1,000 bytes."""
    return kb * 1000.0


def mbps_to_bytes_per_s(mbps: float) -> float:
    """Megabits per second to bytes per second."""
    return mbps * 1e6 / 8.0
