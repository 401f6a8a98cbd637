"""From measured rounds to the rows that are reported. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

FLOOR = "floor"


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one server did in one short stretch of closed-loop load."""

    index: int  # servers alternate within a round, so that they meet the same machine
    model: str
    server: str
    clients: int
    throughput: float  # answers per second
    p50_ms: float
    p99_ms: float
    cpu_ms: float  # of the server's processes, per answer
    client_cpu_ms: float = 0.0  # of the client's process, per call


METRICS = ("throughput", "p50_ms", "p99_ms", "cpu_ms")


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest rank: the smallest value that at least this share of them does not exceed."""
    if not values:
        raise ValueError("values: expected at least one, got none")
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def rows_of(rounds: Sequence[Round]) -> list[dict[str, Any]]:
    """A row per model, server and number of clients, in order of first appearance.

    Figures are medians over the rounds; a ratio is the median over the rounds of this server's figure over the
    floor's in the same round. Without a floor ratios are None.
    """
    floor = {(r.model, r.clients, r.index): r for r in rounds if r.server == FLOOR}
    rows: list[dict[str, Any]] = []
    for model, server, clients in dict.fromkeys((r.model, r.server, r.clients) for r in rounds):
        mine = [r for r in rounds if (r.model, r.server, r.clients) == (model, server, clients)]
        paired = [(r, floor[model, clients, r.index]) for r in mine if (model, clients, r.index) in floor]
        row: dict[str, Any] = {"model": model, "server": server, "clients": clients}
        for metric in METRICS:
            ratios = [getattr(r, metric) / getattr(f, metric) for r, f in paired if getattr(f, metric) > 0]
            row[f"{metric.removesuffix('_ms')}_ratio"] = statistics.median(ratios) if ratios else None
        for metric in METRICS:
            row[metric] = statistics.median(getattr(r, metric) for r in mine)
        rows.append(row)
    return rows


def spent_by_clients(rounds: Sequence[Round]) -> list[str]:
    """A note per server: what its protocol costs the client, which the server's figures have to be read beside."""
    notes: list[str] = []
    for server in dict.fromkeys(r.server for r in rounds):
        mine = [r for r in rounds if r.server == server]
        spent = (
            f"{statistics.median(r.client_cpu_ms for r in mine if r.clients == n):.2f} at {n}"
            for n in dict.fromkeys(r.clients for r in mine)
        )
        notes.append(f"client's CPU ms per call of {server}, by callers: {', '.join(spent)}")
    return notes
