# pyright: basic
# Kernels have no annotations: numba infers the types of what it is given.
"""The simulation in compiled code. What it means: simulate.fleet. The same in plain Python: simulate.plain."""

from __future__ import annotations

import numpy as np
from numba import njit

ON_TIME, REFUSED, LATE = 0, 1, 2
SAFETY = 1.25  # policy.batching.SAFETY; a test holds them together
MAX_TRIES = 4  # of the executors' handler


@njit(cache=True, nogil=True)
def simulate(f, at_s, entry, stream, first, slack_s, outcome):
    """What becomes of each arrival, into outcome (N,). slack_s: an allowance on deadlines."""
    num_groups = len(f.group_first) - 1
    num_replicas = len(f.group)
    room = f.queue_first[num_replicas]
    busy_until = np.full(num_groups, -np.inf)
    wake = np.full(num_groups, np.inf)
    length = np.zeros(num_replicas, dtype=np.int64)
    due = np.full(room, -np.inf)  # of what waits, by urgency; of a generation's slots: when they are free
    came = np.zeros(room)
    who = np.zeros(room, dtype=np.int64)
    most = 1
    for r in range(num_replicas):
        most = max(most, f.queue_first[r + 1] - f.queue_first[r])
    chosen = np.zeros(most, dtype=np.bool_)
    best = np.zeros(most, dtype=np.bool_)
    for i in range(len(at_s)):
        outcome[i] = REFUSED
        if first[i] < 0:
            continue
        start, end = f.route_first[entry[i]], f.route_first[entry[i] + 1]
        for k in range(min(end - start, MAX_TRIES)):
            w = first[i] + k
            if w >= end:
                w -= end - start
            r = f.route_replica[w]
            due_at = at_s[i] + f.route_slack_s[w] + slack_s
            if f.slots[r] > 0:
                if take_slot(f, r, due, at_s[i], due_at):
                    outcome[i] = ON_TIME
                    break
                continue
            g = f.group[r]
            if wake[g] < at_s[i]:
                advance(f, g, at_s[i], busy_until, wake, length, due, came, who, stream, outcome, chosen, best)
            if finish_at(f, r, at_s[i], due_at, busy_until[g], length, due) <= due_at and push(
                f, r, i, at_s[i], due_at, length, due, came, who
            ):
                outcome[i] = LATE  # until it is answered
                wake[g] = min(wake[g], max(at_s[i], busy_until[g]))
                break
    for g in range(num_groups):
        advance(f, g, np.inf, busy_until, wake, length, due, came, who, stream, outcome, chosen, best)


@njit(cache=True, nogil=True)
def take_slot(f, r, free_at, now, due_at):
    """Whether a generation that came now is answered in time; if so it has its slot."""
    q = f.queue_first[r]
    soonest = q
    for s in range(q + 1, q + f.slots[r]):
        if free_at[s] < free_at[soonest]:
            soonest = s
    begins = max(now, free_at[soonest])
    taken = 1
    for s in range(q, q + f.slots[r]):
        taken += free_at[s] > begins
    at = f.curve_first[r] + taken
    if begins + f.answer_s[at] > due_at:
        return False
    free_at[soonest] = begins + f.hold_s[at]
    return True


@njit(cache=True, nogil=True)
def rows_due(f, r, now, due_at, length, due):
    """Rows that wait with a deadline up to this one, and not passed."""
    first, end = f.queue_first[r], f.queue_first[r] + length[r]
    while end > first and due[end - 1] > due_at:
        end -= 1
    while first < end and due[first] <= now:
        first += 1
    return end - first


@njit(cache=True, nogil=True)
def finish_at(f, r, now, due_at, busy_until, length, due):
    """policy.admission.batch_finish_at with the group's other tenants."""
    g = f.group[r]
    others_s = 0.0
    for o in range(f.group_first[g], f.group_first[g + 1]):
        if o != r and f.slots[o] == 0:
            rows = rows_due(f, o, now, due_at, length, due)
            others_s += -(-rows // f.max_rows[o]) * f.batch_s[o]
    rows = rows_due(f, r, now, due_at, length, due) + 1
    return max(now, busy_until) + others_s + -(-rows // f.max_rows[r]) * f.batch_s[r]


@njit(cache=True, nogil=True)
def push(f, r, i, now, due_at, length, due, came, who):
    """Queue by deadline, behind equals. False where there is no room."""
    q = f.queue_first[r]
    if q + length[r] == f.queue_first[r + 1]:
        return False
    j = q + length[r]
    while j > q and due[j - 1] > due_at:
        due[j], came[j], who[j] = due[j - 1], came[j - 1], who[j - 1]
        j -= 1
    due[j], came[j], who[j] = due_at, now, i
    length[r] += 1
    return True


@njit(cache=True, nogil=True)
def advance(f, g, until, busy_until, wake, length, due, came, who, stream, outcome, chosen, best):
    """All that the group decides before `until`. What comes at an instant is seen before what is decided at it."""
    while wake[g] < until:
        now = wake[g]
        wake[g] = np.inf
        winner, size = -1, 0
        for r in range(f.group_first[g], f.group_first[g + 1]):
            if f.slots[r] > 0:
                continue
            drop_expired(f, r, now, length, due, came, who)
            n, again_at = next_batch(f, r, now, length, due, came, who, stream, chosen)
            if n == 0:
                wake[g] = min(wake[g], again_at)
                continue
            q = f.queue_first[r]
            b = f.queue_first[winner]
            if winner < 0 or due[q] < due[b] or (due[q] == due[b] and came[q] < came[b]):
                winner, size = r, n
                best[: length[r]] = chosen[: length[r]]
        if winner < 0:
            continue
        at = f.curve_first[winner] + size
        answered = now + f.answer_s[at]
        busy_until[g] = now + f.hold_s[at]
        q = f.queue_first[winner]
        kept = q
        for j in range(length[winner]):
            if best[j]:
                if answered <= due[q + j]:
                    outcome[who[q + j]] = ON_TIME
            else:
                due[kept], came[kept], who[kept] = due[q + j], came[q + j], who[q + j]
                kept += 1
        length[winner] = kept - q
        wake[g] = np.inf
        for r in range(f.group_first[g], f.group_first[g + 1]):
            if length[r] > 0:
                wake[g] = busy_until[g]


@njit(cache=True, nogil=True)
def drop_expired(f, r, now, length, due, came, who):
    """Out with what can be answered too late only: its deadline has come."""
    q = f.queue_first[r]
    gone = 0
    while gone < length[r] and due[q + gone] <= now:
        gone += 1
    if gone > 0:
        for j in range(q, q + length[r] - gone):
            due[j], came[j], who[j] = due[j + gone], came[j + gone], who[j + gone]
        length[r] -= gone


@njit(cache=True, nogil=True)
def next_batch(f, r, now, length, due, came, who, stream, chosen):
    """policy.batching.next_batch of an idle group: how many leave now and which, else 0 and when to ask again."""
    n = length[r]
    if n == 0:
        return 0, np.inf
    q = f.queue_first[r]
    rows = 0
    streams = False
    for j in range(n):
        chosen[j] = False
        if rows == f.max_rows[r]:
            continue
        own = stream[who[q + j]]
        if own >= 0:
            streams = True
            same = 0
            for k in range(j):
                same += chosen[k] and stream[who[q + k]] == own
            if same >= f.frames[r]:
                continue
        chosen[j] = True
        rows += 1
    if rows < n or rows >= f.max_rows[r] or f.window_s[r] <= 0 or not streams:
        return rows, now
    opened = came[q]
    for j in range(q, q + n):
        opened = min(opened, came[j])
    again_at = min(opened + f.window_s[r], due[q] - SAFETY * f.batch_s[r])
    if now >= again_at:
        return rows, now
    return 0, again_at
