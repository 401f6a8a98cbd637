"""Continuous batching of one replica: schedule, run, hand out tokens. Threads and sockets live elsewhere.

transformers' own continuous batching (ContinuousBatchingManager, 5.23) was measured beside it in
benchmarks/serving/generation.py: as exact, no faster here, and it does not do what requests ask for. Seed and penalties
are settings of its manager, not of a request; what is sampled depends on the company; it loops in a thread of its own,
so that other tenants of the device group get no turns, and drives no pipeline of processes. So this engine steps over
plain transformers models instead. Knows no torch: the stage does the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from epara_executors.worker.scheduler import Scheduler, Work
from epara_executors.worker.sequences import Sequence


class Stage(Protocol):
    """Runs iterations, first in, first out; up to `depth` of them may be under way at once."""

    @property
    def depth(self) -> int: ...

    @property
    def num_in_flight(self) -> int: ...

    def submit(self, work: Work) -> None: ...

    def collect(self) -> tuple[Work, list[int]]:
        """The oldest work under way and its next token per sequence."""
        ...


@dataclass(frozen=True, slots=True)
class Emitted:
    """One new token of one sequence."""

    sequence: Sequence
    token: int
    text: str  # what it made certain; may be empty
    done: bool


class Engine:
    """One replica of a generating model."""

    def __init__(self, stage: Stage, scheduler: Scheduler, clock: Callable[[], float]) -> None:
        self._stage = stage
        self.scheduler = scheduler
        self._clock = clock
        self.busy_s = 0.0

    @property
    def idle(self) -> bool:
        return self.scheduler.idle and not self._stage.num_in_flight

    @property
    def in_flight(self) -> int:
        return self._stage.num_in_flight

    def add(self, sequence: Sequence) -> None:
        sequence.arrived_at = self._clock()
        self.scheduler.add(sequence)

    def cancel(self, key: str) -> Sequence | None:
        return self.scheduler.cancel(key)

    def step(self) -> list[Emitted]:
        """Fill the pipeline by one iteration, or hand out the oldest one's tokens; empty while it fills."""
        started_at = self._clock()
        work = self.scheduler.next_work() if self._stage.num_in_flight < self._stage.depth else None
        if work is not None:
            self._stage.submit(work)
            if self._stage.num_in_flight < self._stage.depth:
                return []
        if not self._stage.num_in_flight:
            return []
        done, tokens = self._stage.collect()
        emitted = [self._advance(s, t) for s, t in zip(done.sequences, tokens, strict=True) if not s.finish_reason]
        self.scheduler.complete(done)
        self.busy_s += self._clock() - started_at
        return emitted

    def _advance(self, sequence: Sequence, token: int) -> Emitted:
        text = sequence.append(token)
        return Emitted(sequence, token, text, bool(sequence.finish_reason))
