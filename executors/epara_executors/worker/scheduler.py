"""Who runs in the next iteration. Iteration-level scheduling after Orca (OSDI'22); knows no torch.

Sequences hold slots of a key-value cache. One iteration either takes in one waiting prompt or advances every
sequence of a slot group by one token; prompts first, so a request waits for at most the prompts before it, which
is what the planner's response rule assumes. A pipeline of several stages needs as many slot groups as stages:
while one group is in a later stage the next one enters the first.

Slots in use are always the first ones of their group, so a batch is a plain slice of the cache: when a sequence
leaves, the last slot's content moves into its place (`Work.moves`).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from epara_executors.worker.sequences import Sequence


@dataclass(frozen=True, slots=True)
class Work:
    """One iteration of one slot group."""

    group: int
    sequences: tuple[Sequence, ...]  # one for a prompt; all of the group in slot order otherwise
    is_prompt: bool
    slot: int  # of the first sequence, within the group
    moves: tuple[tuple[int, int], ...]  # slot contents to move first, (from, to) within the group


class Scheduler:
    """First come, first served over `num_groups` groups of `batch` slots."""

    def __init__(self, batch: int, num_groups: int = 1) -> None:
        for key, value in (("batch", batch), ("num_groups", num_groups)):
            if value < 1:
                raise ValueError(f"{key}: expected >= 1, got {value}")
        self.batch = batch
        self._waiting: deque[Sequence] = deque()
        self._running: list[list[Sequence]] = [[] for _ in range(num_groups)]
        self._moves: list[list[tuple[int, int]]] = [[] for _ in range(num_groups)]
        self._busy: set[int] = set()
        self._next = 0

    @property
    def num_running(self) -> int:
        return sum(map(len, self._running))

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        return not self._waiting and not any(self._running)

    def add(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)

    def cancel(self, key: str) -> Sequence | None:
        """Give up a sequence; its slot is free at once, or as soon as its iteration in flight is done."""
        for sequence in self._waiting:
            if sequence.key == key:
                self._waiting.remove(sequence)
                sequence.finish_reason = "cancelled"
                return sequence
        for group, members in enumerate(self._running):
            for sequence in members:
                if sequence.key == key:
                    sequence.finish_reason = "cancelled"
                    if group not in self._busy:
                        self._sweep(group)
                    return sequence
        return None

    def next_work(self) -> Work | None:
        """The next iteration of a group that is not in flight, or None. It is in flight until `complete`."""
        num_groups = len(self._running)
        order = [(self._next + i) % num_groups for i in range(num_groups)]
        free = [g for g in order if g not in self._busy]
        if self._waiting:
            open_groups = [g for g in free if len(self._running[g]) < self.batch]
            if open_groups:
                return self._admit(min(open_groups, key=lambda g: len(self._running[g])))
        for group in free:
            if self._running[group]:
                members = tuple(self._running[group])
                return self._start(Work(group, members, False, 0, self._take_moves(group)))
        return None

    def complete(self, work: Work) -> None:
        """The iteration is over; sequences with a finish reason leave their slots."""
        self._busy.discard(work.group)
        self._sweep(work.group)

    def drain(self) -> list[Sequence]:
        """Forget everything, running and waiting; for a stage that failed."""
        left = [*(s for members in self._running for s in members), *self._waiting]
        self._waiting.clear()
        self._busy.clear()
        for members, moves in zip(self._running, self._moves, strict=True):
            members.clear()
            moves.clear()
        return left

    def _admit(self, group: int) -> Work:
        sequence = self._waiting.popleft()
        slot = len(self._running[group])
        self._running[group].append(sequence)
        return self._start(Work(group, (sequence,), True, slot, self._take_moves(group)))

    def _start(self, work: Work) -> Work:
        self._busy.add(work.group)
        self._next = (work.group + 1) % len(self._running)
        return work

    def _take_moves(self, group: int) -> tuple[tuple[int, int], ...]:
        moves = tuple(self._moves[group])
        self._moves[group].clear()
        return moves

    def _sweep(self, group: int) -> None:
        """From the back, so that the slot that fills a gap never belongs to a finished sequence."""
        members = self._running[group]
        for slot in reversed(range(len(members))):
            if members[slot].finish_reason:
                last = members.pop()
                if slot < len(members):
                    members[slot] = last
                    self._moves[group].append((len(members), slot))
