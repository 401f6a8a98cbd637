"""What reports show of the past: one row per planning cycle, and events between them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryPoint:
    """One cycle, or one event. Goodput, offered and bound are weighted, as in a plan's objective."""

    at: float  # Unix time
    goodput: float | None = None  # observed since the cycle before; None: not observed
    offered: float | None = None  # observed since the cycle before
    dual_bound: float | None = None  # of the plan made in this cycle
    generation: int = 0  # of the plan in force; 0: none
    event: str = ""  # e.g. "executor of edge-b was killed"
