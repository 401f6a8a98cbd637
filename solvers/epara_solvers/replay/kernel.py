# pyright: basic
# Kernels have no annotations: numba infers the types of what it is given.
"""The replay in compiled code. See replay.instance for what it means.

Indices of the inner loop are unsigned: numba then leaves out the test for negative ones.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def index(shape, hosts, holders, count):
    """Where each model is: groups into holders (M, G) in order, how many into count (M,).

    shape: (G,) index of each group's shape, -1 where there is no group; hosts: (G, M) whether it holds the model.
    """
    num_groups, num_models = hosts.shape
    count[:] = 0
    for g in range(num_groups):
        if shape[g] >= 0:
            for m in range(num_models):
                if hosts[g, m]:
                    holders[m, count[m]] = g
                    count[m] += 1


@njit(cache=True, nogil=True)
def advance(at_s, model, first, end, shape, holders, count, clock, stage_s, num_stages, slo_s, overhead_s, lost):
    """Replay arrivals [first, end) from and into clock; returns how many are lost, per model added to lost (M,).

    clock: (G, K + 1) when each stage is free, and in the last column when the last stage is; stage_s: (S, M, K).
    """
    bad = 0
    ready = clock.shape[1] - 1
    for i in range(first, end):
        m = model[i]
        at = at_s[i]
        n = count[m]
        if n == 0:
            bad += 1
            lost[m] += 1
            continue
        g = holders[m, 0]
        soonest = clock[g, ready]
        for j in range(np.uint32(1), n):
            other = holders[m, j]
            free = clock[other, ready]
            closer = free < soonest
            g = other if closer else g
            soonest = free if closer else soonest
        s = shape[g]
        stages = num_stages[s]
        # The last stage alone often says no; rounding is monotone, so it never says more than the whole would.
        now = (soonest if soonest > at else at) + stage_s[s, m, stages - 1]
        if now + overhead_s - at <= slo_s[m]:
            now = at
            for k in range(stages):
                free = clock[g, k]
                now = (free if free > now else now) + stage_s[s, m, k]
            if now + overhead_s - at <= slo_s[m]:
                clock[g, ready] = now
                now = at
                for k in range(stages):
                    free = clock[g, k]
                    now = (free if free > now else now) + stage_s[s, m, k]
                    clock[g, k] = now
                continue
        bad += 1
        lost[m] += 1
    return bad


@njit(cache=True, nogil=True)
def replay(at_s, model, starts, shape, hosts, stage_s, num_stages, slo_s, overhead_s, lost):
    """Requests lost in days that begin at `starts` (D + 1,), each with idle groups; per model into lost (M,)."""
    num_groups, num_models = hosts.shape
    holders = np.zeros((num_models, num_groups), dtype=np.uint32)
    count = np.zeros(num_models, dtype=np.uint32)
    index(shape, hosts, holders, count)
    clock = np.zeros((num_groups, stage_s.shape[2] + 1))
    lost[:] = 0
    bad = 0
    for d in range(len(starts) - 1):
        clock[:] = 0.0
        bad += advance(
            at_s, model, starts[d], starts[d + 1], shape, holders, count, clock, stage_s, num_stages, slo_s, overhead_s,
            lost,
        )  # fmt: skip
    return bad
