"""The simulation in plain Python, out of the functions that executors ask. What the compiled one is held against."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from epara_opt.policy.admission import admits, batch_finish_at
from epara_opt.policy.batching import BatchRule, next_batch, urgency
from epara_solvers.simulate.arrivals import Arrivals
from epara_solvers.simulate.fleet import I64, SLACK_S, Fleet
from epara_solvers.simulate.kernel import LATE, MAX_TRIES, ON_TIME, REFUSED


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    number: int
    queued_at: float
    due_at: float
    stream: str
    priority: int = 0
    rows: int = 1


@dataclass(slots=True, kw_only=True)
class _Replica:
    rule: BatchRule
    slots: int
    room: int
    answer_s: Sequence[float]  # by items
    hold_s: Sequence[float]
    queue: list[_Job] = field(default_factory=list[_Job])
    free_at: list[float] = field(default_factory=list[float])  # (slots,)


@dataclass(slots=True, kw_only=True)
class _Group:
    replicas: list[_Replica] = field(default_factory=list[_Replica])
    busy_until: float = -math.inf
    wake_at: float = math.inf


def simulate_plainly(fleet: Fleet, arrivals: Arrivals, first: I64) -> I64:
    """(N,) what becomes of each arrival: ON_TIME, REFUSED or LATE."""
    f = fleet.arrays
    replicas = [_replica(fleet, r) for r in range(len(f.group))]
    groups = [_Group() for _ in range(len(f.group_first) - 1)]
    for r, g in zip(replicas, f.group.tolist(), strict=True):
        groups[g].replicas.append(r)
    outcome = [REFUSED] * len(arrivals)
    for i, (at, e) in enumerate(zip(arrivals.at_s.tolist(), arrivals.entry.tolist(), strict=True)):
        start, end = int(f.route_first[e]), int(f.route_first[e + 1])
        if first[i] < 0:
            continue
        for k in range(min(end - start, MAX_TRIES)):
            w = start + (int(first[i]) - start + k) % (end - start)
            number = int(f.route_replica[w])
            due_at = at + float(f.route_slack_s[w]) + SLACK_S
            replica, group = replicas[number], groups[int(f.group[number])]
            if replica.slots:
                if _take_slot(replica, at, due_at):
                    outcome[i] = ON_TIME
                    break
                continue
            _advance(group, at, outcome)
            if admits(finish_at=_finish_at(group, replica, at, due_at), due_at=due_at) and (
                len(replica.queue) < replica.room
            ):
                s = int(arrivals.stream[i])
                replica.queue.append(_Job(number=i, queued_at=at, due_at=due_at, stream=str(s) if s >= 0 else ""))
                outcome[i] = LATE
                group.wake_at = min(group.wake_at, max(at, group.busy_until))
                break
    for group in groups:
        _advance(group, math.inf, outcome)
    return np.array(outcome, dtype=np.int64)


def _replica(fleet: Fleet, r: int) -> _Replica:
    f = fleet.arrays
    at, rows = int(f.curve_first[r]), int(f.max_rows[r])
    return _Replica(
        rule=BatchRule(max_rows=rows, frames=int(f.frames[r]), window_s=float(f.window_s[r])),
        slots=int(f.slots[r]),
        room=int(f.queue_first[r + 1] - f.queue_first[r]),
        answer_s=f.answer_s[at : at + rows + 1].tolist(),
        hold_s=f.hold_s[at : at + rows + 1].tolist(),
        free_at=[-math.inf] * int(f.slots[r]),
    )


def _take_slot(replica: _Replica, now: float, due_at: float) -> bool:
    soonest = min(range(replica.slots), key=lambda s: replica.free_at[s])
    begins = max(now, replica.free_at[soonest])
    taken = 1 + sum(at > begins for at in replica.free_at)
    if not admits(finish_at=begins + replica.answer_s[taken], due_at=due_at):
        return False
    replica.free_at[soonest] = begins + replica.hold_s[taken]
    return True


def _finish_at(group: _Group, replica: _Replica, now: float, due_at: float) -> float:
    def rows_due(r: _Replica) -> int:
        return sum(now < j.due_at <= due_at for j in r.queue)

    others_s = sum(
        math.ceil(rows_due(r) / r.rule.max_rows) * r.answer_s[-1]
        for r in group.replicas
        if r is not replica and not r.slots
    )
    return batch_finish_at(
        now=now,
        busy_until=group.busy_until,
        rows_ahead=rows_due(replica),
        rows=1,
        max_rows=replica.rule.max_rows,
        batch_s=replica.answer_s[-1],
        others_s=others_s,
    )


def _advance(group: _Group, until: float, outcome: list[int]) -> None:
    while group.wake_at < until:
        now, group.wake_at = group.wake_at, math.inf
        best: tuple[_Replica, tuple[_Job, ...]] | None = None
        for replica in group.replicas:
            replica.queue = [j for j in replica.queue if j.due_at > now]
            jobs, again_at = next_batch(replica.queue, replica.rule, now=now, idle=True, batch_s=replica.answer_s[-1])
            if not jobs:
                group.wake_at = min(group.wake_at, again_at)
            elif best is None or urgency(jobs[0]) < urgency(best[1][0]):
                best = (replica, jobs)
        if best is None:
            continue
        replica, jobs = best
        answered_at = now + replica.answer_s[len(jobs)]
        group.busy_until = now + replica.hold_s[len(jobs)]
        for j in jobs:
            outcome[j.number] = ON_TIME if answered_at <= j.due_at else LATE
        gone = {j.number for j in jobs}
        replica.queue = [j for j in replica.queue if j.number not in gone]
        group.wake_at = group.busy_until if any(r.queue for r in group.replicas) else math.inf
