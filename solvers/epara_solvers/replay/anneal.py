# pyright: basic
# Kernels have no annotations: numba infers the types of what it is given.
"""Simulated annealing on replayed days, in compiled code, with candidates raced against the placement they change."""

from __future__ import annotations

import numpy as np
from numba import njit

from epara_solvers.random_state import unit
from epara_solvers.replay.kernel import advance, index
from epara_solvers.replay.moves import propose

CHUNK = 256  # requests between two looks at a race
DOUBT = 2.0  # standard errors by which a candidate must be behind to be given up early
FLOOR = 4.0  # least variance of a chunk's difference, in requests^2: two chunks alike prove little
AGAIN = 0.45  # chance that a change is followed by another before it is raced: some valleys are two changes wide
TRIES = 20  # changes that come to nothing in a row before the placement is raced against itself


@njit(cache=True, nogil=True)
def race(
    upto, limit, at_s, model, starts, shape, holders, count, clock, trail, rival, stage_s, num_stages, slo_s,
    overhead_s, lost
):  # fmt: skip
    """Losses beyond the rival's over the first `upto` requests, and how many were replayed.

    trail, rival: losses of each chunk, written and read. With d chunks of differences x the race is given up once
    sum(x) - limit * requests > DOUBT * sqrt(d * var(x)): the losses are significantly above `limit` per request.
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
            behind = extra - limit * seen
            if chunk > 1 and behind > 0.0:
                variance = max(FLOOR, (squares - extra * extra / chunk) / (chunk - 1))
                if behind > DOUBT * np.sqrt(variance * chunk):
                    return extra, seen
    return extra, seen


@njit(cache=True, nogil=True)
def anneal(
    steps, heat, upto, at_s, model, starts, shape, hosts, stage_s, num_stages, shape_devices, weight_bytes,
    memory_bytes, slo_s, overhead_s, load, rng
):  # fmt: skip
    """Annealing of (shape, hosts) in place at one temperature, in losses per request, over the first `upto` requests.

    A candidate is taken where its losses per request exceed the placement's by at most -heat ln(u), u uniform: the
    rule of Metropolis, with u drawn first so that the race knows what it must not exceed. Returns requests replayed.
    """
    num_groups, num_models = hosts.shape
    holders = np.zeros((num_models, num_groups), dtype=np.uint32)
    count = np.zeros(num_models, dtype=np.uint32)
    clock = np.zeros((num_groups, stage_s.shape[2] + 1))
    chunks = len(at_s) // CHUNK + len(starts)
    trail, other = np.zeros(chunks, dtype=np.int64), np.zeros(chunks, dtype=np.int64)
    lost, other_lost = np.zeros(num_models, dtype=np.int64), np.zeros(num_models, dtype=np.int64)
    index(shape, hosts, holders, count)
    _, work = race(  # against nothing: the placement's own losses
        upto, np.inf, at_s, model, starts, shape, holders, count, clock, trail, other, stage_s, num_stages, slo_s,
        overhead_s, lost,
    )  # fmt: skip
    old_shape, old_hosts = shape.copy(), hosts.copy()
    for _ in range(steps):
        for _ in range(TRIES):
            propose(shape, hosts, shape_devices, weight_bytes, memory_bytes, load, lost, rng)
            if unit(rng) >= AGAIN and ((shape != old_shape).any() or (hosts != old_hosts).any()):
                break
        limit = -heat * np.log(unit(rng) + 1e-300)
        index(shape, hosts, holders, count)
        other_lost[:] = 0
        extra, seen = race(
            upto, limit, at_s, model, starts, shape, holders, count, clock, other, trail, stage_s, num_stages, slo_s,
            overhead_s, other_lost,
        )  # fmt: skip
        work += seen
        if extra <= limit * seen:  # a race given up is above it
            trail, other = other, trail
            lost, other_lost = other_lost, lost
            old_shape[:] = shape
            old_hosts[:] = hosts
        else:
            shape[:] = old_shape
            hosts[:] = old_hosts
    return work
