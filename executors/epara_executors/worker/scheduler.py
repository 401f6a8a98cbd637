"""Who runs in the next iteration. Iteration-level scheduling after Orca (OSDI'22); knows no torch.

Sequences hold blocks of a paged key-value cache. One iteration either takes in waiting prompts or advances every
sequence of a group by one token; prompts first, so a request waits for at most the prompts before it and those that
share its pass, which is what the planner's response rule assumes. Short prompts share a pass, as many as have
`PASS_TOKENS` together, since the pass itself costs as much as some dozens of tokens; a longer one runs alone.
A pipeline of several stages needs as many groups as stages: while one is in a later stage the next enters the first.

Blocks bound the memory. A prompt is taken in, first come, first served, when its blocks are free; a running sequence
takes another whenever the last is full. If none is free, the sequence that came to its group last gives up its place
and its blocks: it goes back to the head of the queue and is computed anew, prompt and tokens so far, when there is
room. After that nobody is taken in until a sequence has left, lest the same happen at every step. The first of a
group is never interrupted by those after it, and every step of a lone sequence has room (`add` refuses what could
not), so all that is added ends.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from epara_executors.worker.blocks import BlockPool, blocks_for
from epara_executors.worker.sequences import Sequence

PASS_TOKENS = 256  # of prompts that share an iteration


@dataclass(frozen=True, slots=True)
class Work:
    """One iteration of one group."""

    group: int
    sequences: tuple[Sequence, ...]  # those taken in, or all of the group
    is_prompt: bool


class Scheduler:
    """First come, first served over `num_groups` groups of at most `batch` sequences, which share a pool of blocks."""

    def __init__(self, batch: int, pool: BlockPool, num_groups: int = 1) -> None:
        for key, value in (("batch", batch), ("num_groups", num_groups)):
            if value < 1:
                raise ValueError(f"{key}: expected >= 1, got {value}")
        self.batch = batch
        self.pool = pool
        self.pass_tokens = PASS_TOKENS  # 0: every prompt runs alone
        self.num_preempted = 0  # sequences that had to give up their place so far
        self._waiting: deque[Sequence] = deque()
        self._running: list[list[Sequence]] = [[] for _ in range(num_groups)]
        self._busy: set[int] = set()
        self._next = 0
        self._is_short = False  # of blocks: somebody was preempted, and nobody has left since

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
        """Raises ValueError for a sequence that the whole pool could not hold; whoever makes them checks that."""
        need = blocks_for(len(sequence.prompt) + sequence.max_tokens)
        if need > self.pool.num_blocks:
            raise ValueError(f"sequence {sequence.key}: expected at most {self.pool.num_blocks} blocks, got {need}")
        self._waiting.append(sequence)

    def resize(self, num_blocks: int) -> int:
        """Another size of the pool, but none that a sequence here might not fit in; the size it has then."""
        here = [s for members in (*self._running, self._waiting) for s in members]
        most = max((blocks_for(len(s.prompt) + s.max_tokens) for s in here), default=0)
        self.pool.resize(max(num_blocks, most))
        return self.pool.num_blocks

    def cancel(self, key: str) -> Sequence | None:
        """Give up a sequence; its place is free at once, or as soon as its iteration in flight is done."""
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
            if open_groups and (work := self._admit(min(open_groups, key=lambda g: len(self._running[g])))):
                return work
        for group in free:
            if self._running[group] and self._make_room(group):
                return self._start(Work(group, tuple(self._running[group]), False))
        return None

    def complete(self, work: Work) -> None:
        """The iteration is over; sequences with a finish reason leave their places."""
        self._busy.discard(work.group)
        self._sweep(work.group)

    def drain(self) -> list[Sequence]:
        """Forget everything, running and waiting; for a stage that failed."""
        left = [*(s for members in self._running for s in members), *self._waiting]
        for sequence in left:
            self._release(sequence)
        self._waiting.clear()
        self._busy.clear()
        for members in self._running:
            members.clear()
        return left

    def _admit(self, group: int) -> Work | None:
        """Take in those at the head of the queue that have a place, blocks, and a share of one pass."""
        if self._is_short and self.num_running:
            return None
        taken: list[Sequence] = []
        num_tokens = 0
        while self._waiting and len(self._running[group]) < self.batch:
            sequence = self._waiting[0]
            num_tokens += sequence.length
            if taken and num_tokens > self.pass_tokens:
                break
            if blocks_for(sequence.length) > self.pool.num_free:
                break
            sequence.blocks = self.pool.take(blocks_for(sequence.length))
            taken.append(self._waiting.popleft())
            self._running[group].append(sequence)
        return self._start(Work(group, tuple(taken), True)) if taken else None

    def _make_room(self, group: int) -> bool:
        """A block for the next token of each, from the first to come to the last; whether anybody is left."""
        members = self._running[group]
        at = 0
        while at < len(members):
            sequence = members[at]
            missing = blocks_for(sequence.length) - len(sequence.blocks)
            if missing <= self.pool.num_free:
                sequence.blocks += self.pool.take(missing)
                at += 1
                continue
            last = members.pop()  # perhaps the one in need itself: then other groups hold the blocks
            self._release(last)
            self._waiting.appendleft(last)
            self._is_short = True
            self.num_preempted += 1
        return bool(members)

    def _start(self, work: Work) -> Work:
        self._busy.add(work.group)
        self._next = (work.group + 1) % len(self._running)
        return work

    def _sweep(self, group: int) -> None:
        left = [s for s in self._running[group] if s.finish_reason]
        if left:
            self._running[group] = [s for s in self._running[group] if not s.finish_reason]
            self._is_short = False
            for sequence in left:
                self._release(sequence)

    def _release(self, sequence: Sequence) -> None:
        self.pool.give(sequence.blocks)
        sequence.blocks = []
