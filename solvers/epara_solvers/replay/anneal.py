# pyright: basic
# Kernels have no annotations: numba infers the types of what it is given.
"""Simulated annealing on replayed days, in compiled code, with candidates raced against the placement they change."""

from __future__ import annotations

import numpy as np
from numba import njit

from epara_solvers.replay.kernel import advance, index
from epara_solvers.replay.moves import propose, unit

CHUNK = 256  # requests between two looks at a race
DOUBT = 3.0  # standard errors by which a candidate must be behind to be given up early
FLOOR = 4.0  # least variance of a chunk's difference, in requests^2: two chunks alike prove little


@njit(cache=True, nogil=True)
def reach(
    upto, at_s, model, starts, shape, holders, count, clocks, trail, known, stage_s, num_stages, slo_s, overhead_s, lost
):
    """Losses of every chunk among the first `upto` requests into trail, from where `known` chunks end."""
    chunk = 0
    for d in range(len(starts) - 1):
        first = starts[d]
        while first < starts[d + 1] and first < upto:
            end = min(first + CHUNK, starts[d + 1])
            if chunk >= known:
                if first == starts[d]:
                    clocks[:] = 0.0
                trail[chunk] = advance(
                    at_s, model, first, end, shape, holders, count, clocks, stage_s, num_stages, slo_s, overhead_s, lost
                )
            chunk += 1
            first = end
    return chunk


@njit(cache=True, nogil=True)
def race(
    upto, limit, at_s, model, starts, shape, holders, count, clock, trail, rival, stage_s, num_stages, slo_s,
    overhead_s, lost
):  # fmt: skip
    """Losses beyond the rival's over the first `upto` requests, and chunks seen; given up early when they are
    significantly above `limit` per request. rival, trail: losses of each chunk.
    """
    chunk, seen = 0, 0
    extra, squares = 0.0, 0.0
    for d in range(len(starts) - 1):
        first = starts[d]
        clock[:] = 0.0
        while first < starts[d + 1] and first < upto:
            end = min(first + CHUNK, starts[d + 1])
            trail[chunk] = advance(
                at_s, model, first, end, shape, holders, count, clock, stage_s, num_stages, slo_s, overhead_s, lost
            )
            difference = np.float64(trail[chunk] - rival[chunk])
            extra += difference
            squares += difference * difference
            chunk += 1
            seen += end - first
            first = end
            if chunk > 1 and extra > limit * seen:
                variance = max(FLOOR, (squares - extra * extra / chunk) / (chunk - 1))
                if extra - limit * seen > DOUBT * np.sqrt(variance * chunk):
                    return extra, seen, chunk
    return extra, seen, chunk


@njit(cache=True, nogil=True)
def anneal(
    steps, heat, upto, at_s, model, starts, shape, hosts, stage_s, num_stages, shape_devices, weight_bytes,
    memory_bytes, slo_s, overhead_s, load, rng, stats
):  # fmt: skip
    """Annealing of (shape, hosts) in place at one temperature, in losses per request, over the first `upto` requests.

    Returns the requests replayed.
    """
    num_groups, num_models = hosts.shape
    holders = np.zeros((num_models, num_groups), dtype=np.uint32)
    count = np.zeros(num_models, dtype=np.uint32)
    clock = np.zeros((num_groups, stage_s.shape[2] + 1))
    chunks = len(at_s) // CHUNK + len(starts)
    trail, other = np.zeros(chunks, dtype=np.int64), np.zeros(chunks, dtype=np.int64)
    lost, other_lost = np.zeros(num_models, dtype=np.int64), np.zeros(num_models, dtype=np.int64)
    index(shape, hosts, holders, count)
    known = reach(
        upto, at_s, model, starts, shape, holders, count, clock, trail, 0, stage_s, num_stages, slo_s, overhead_s, lost
    )
    old_shape, old_hosts = shape.copy(), hosts.copy()
    work = 0
    for _ in range(steps):
        for _ in range(20):
            propose(shape, hosts, shape_devices, weight_bytes, memory_bytes, load, lost, rng)
            if (shape != old_shape).any() or (hosts != old_hosts).any():
                break
        limit = -heat * np.log(unit(rng) + 1e-300)
        index(shape, hosts, holders, count)
        other_lost[:] = 0
        extra, seen, chunk = race(
            upto, limit, at_s, model, starts, shape, holders, count, clock, other, trail, stage_s, num_stages, slo_s,
            overhead_s, other_lost,
        )  # fmt: skip
        work += seen
        stats[0] += 1
        if chunk == known:
            stats[1] += 1
        if chunk == known and extra <= limit * seen:
            stats[2] += 1
            if extra < 0: stats[3] += 1
            trail, other = other, trail
            lost, other_lost = other_lost, lost
            old_shape[:] = shape
            old_hosts[:] = hosts
        else:
            shape[:] = old_shape
            hosts[:] = old_hosts
    return work
