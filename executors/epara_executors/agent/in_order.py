"""Answers of a stream's frames in the order of the frames, whichever replica made them first (EPARA's DP).

Frames of a stream may be at work at several replicas at once. Their answers are let out in the order in which the
frames came; one that is ready too early waits. A frame that is refused is answered in its place by its refusal. A
frame without an answer holds up those behind it until its deadline and no longer: once one behind it has ended, it is
given up at its deadline and answered DEADLINE_EXCEEDED in its place. With nothing behind it, it may still come late.

How many frames can be held back is bounded by whoever lets frames in (`data_plane`): its window is of frames whose
answers have not left yet.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

A = TypeVar("A")


@dataclass(slots=True, eq=False)
class Place(Generic[A]):
    """One frame's place in the order. Its owner tells the deadline once that is known."""

    order: InOrder[A]
    give_up: Callable[[], A] | None  # stop working on it; the answer that says so. None once it has left
    due_at: float | None = None  # of the event loop's clock
    held: list[A] = field(default_factory=list[A])
    ended: bool = False

    def answer(self, answer: A) -> None:
        """One answer, or a part of one. Nothing once the place has ended."""
        if self.ended:
            return
        if self.order.first is self:
            self.order.let_out(answer)
        else:
            self.held.append(answer)

    def end(self) -> None:
        """No more comes from this frame. Idempotent."""
        if not self.ended:
            self.ended = True
            self.order.advance()


class InOrder(Generic[A]):
    """Of one stream within one call, on its event loop."""

    def __init__(self, *, let_out: Callable[[A], None], left: Callable[[], None]) -> None:
        """let_out: takes answers in order. left: called once per frame, after its last answer was let out."""
        self.let_out = let_out
        self._left = left
        self._places: deque[Place[A]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def first(self) -> Place[A] | None:
        """Whose answers go out as they come."""
        return self._places[0] if self._places else None

    def __len__(self) -> int:
        return len(self._places)

    def enter(self, give_up: Callable[[], A]) -> Place[A]:
        """The place of the frame that came last."""
        place = Place(self, give_up)
        self._places.append(place)
        return place

    def advance(self) -> None:
        """Let out what may go; watch the deadline of what holds up the rest."""
        while self._places and self._places[0].ended:
            self._places.popleft().give_up = None  # its owner holds the place: no cycle is left for the collector
            self._left()
            for answer in self._places[0].held if self._places else ():
                self.let_out(answer)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._places:
            return
        due_at = self._places[0].due_at
        if due_at is not None and any(p.ended for p in self._places):
            self._timer = asyncio.get_running_loop().call_at(due_at, self._expire, self._places[0])

    def close(self) -> None:
        """The call is over: nothing is let out any more."""
        while self._places:
            self._places.popleft().give_up = None
        if self._timer is not None:
            self._timer.cancel()

    def _expire(self, place: Place[A]) -> None:
        self._timer = None
        if place is self.first and not place.ended and place.give_up is not None:
            place.answer(place.give_up())
            place.end()
