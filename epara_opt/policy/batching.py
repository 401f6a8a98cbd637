"""When a batch leaves, and with whom. Pure: executor and simulator ask the same function.

The window opens at the first request in the queue, not on a poll. An idle device group waits for nobody, except
that a multi-frame service waits for the rest of a stream's frames, at most (frames - 1) / fps and never past the
instant at which the earliest deadline demands a start. A busy group takes a batch ahead only when it is full:
whatever is partial gains by the time that it must wait anyway; and only when it is short beside the deadlines of
those who share the device, for it cannot be overtaken any more. Order is earliest deadline first (EDF).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

AHEAD_SHARE = 0.1  # of the shortest deadline beside it: how long a batch may be that is sent ahead
SAFETY = 1.25  # a window closes this many expected batches before the earliest deadline


class Queued(Protocol):
    """What the rule must know of a request that waits. Instants in seconds of the caller's clock."""

    @property
    def queued_at(self) -> float: ...
    @property
    def due_at(self) -> float: ...
    @property
    def priority(self) -> int:
        """Lower goes first; 0 is the default level and equals 1, as clients of Triton know it."""
        ...

    @property
    def rows(self) -> int: ...
    @property
    def stream(self) -> str:
        """Which stream a frame belongs to; empty for a request of its own."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRule:
    """Limits of one tenant's batches."""

    max_rows: int  # batch x frames
    frames: int = 1  # consecutive frames of one stream that may share a batch (MF)
    window_s: float = 0.0  # how long an idle group may wait for a stream's further frames

    def __post_init__(self) -> None:
        if self.frames < 1 or self.max_rows < self.frames:
            raise ValueError(f"max_rows: expected >= frames >= 1, got {self.max_rows} and {self.frames}")


def batch_rule(*, batch: int, frames: int, fps: float) -> BatchRule:
    """The rule that a parallel configuration (batch, frames) means for a stream of `fps`; fps 0: no stream."""
    window_s = (frames - 1) / fps if fps > 0 else 0.0
    return BatchRule(max_rows=batch * frames, frames=frames, window_s=window_s)


Q = TypeVar("Q", bound=Queued)


def urgency(request: Queued) -> tuple[int, float, float]:
    """Sort key: EDF inside a priority level; the longer wait breaks ties."""
    return max(1, request.priority), request.due_at, request.queued_at


def next_batch(
    queue: Sequence[Q], rule: BatchRule, *, now: float, idle: bool, batch_s: float
) -> tuple[tuple[Q, ...], float]:
    """The batch to start now, or () and the instant at which to ask again (infinite: at the next event).

    batch_s is what a batch is expected to take. Events are an arrival, a finished batch, a departure.
    """
    if not queue:
        return (), math.inf
    if not idle and sum(q.rows for q in queue) < rule.max_rows and not any(q.stream for q in queue):
        return (), math.inf  # all would go and not fill it: known without their order, at every arrival
    chosen = _fill(sorted(queue, key=urgency), rule)
    if len(chosen) < len(queue) or sum(q.rows for q in chosen) >= rule.max_rows:
        return chosen, now
    if not idle:
        return (), math.inf
    opened_at = min(q.queued_at for q in chosen)
    must_start_at = min(q.due_at for q in chosen) - SAFETY * batch_s
    until = min(opened_at + rule.window_s, must_start_at)
    if rule.window_s <= 0 or now >= until or not any(q.stream for q in chosen):
        return chosen, now
    return (), until


def may_go_ahead(*, batch_s: float, deadlines_s: Iterable[float]) -> bool:
    """Whether a batch may follow another without a gap, at the cost that nothing more urgent comes between them.

    batch_s: what it is expected to take. deadlines_s: of the other services on the device group.
    """
    return batch_s <= AHEAD_SHARE * min(deadlines_s, default=math.inf)


def _fill(by_urgency: Sequence[Q], rule: BatchRule) -> tuple[Q, ...]:
    """EDF prefix that fits; a stream gives at most `frames` of its frames, so that no stream crowds others out.

    What was let in under a larger limit that a plan has lowered since goes alone: it would wait for ever.
    """
    chosen: list[Q] = []
    rows = 0
    of_stream: dict[str, int] = {}
    for q in by_urgency:
        if q.stream and of_stream.get(q.stream, 0) >= rule.frames:
            continue
        if chosen and rows + q.rows > rule.max_rows:
            break
        rows += q.rows
        chosen.append(q)
        if q.stream:
            of_stream[q.stream] = of_stream.get(q.stream, 0) + 1
    return tuple(chosen)
