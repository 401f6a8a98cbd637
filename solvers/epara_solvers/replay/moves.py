# pyright: basic
# Kernels have no annotations: numba infers the types of what it is given.
"""Changes of a placement, in compiled code: what the search tries next."""

from __future__ import annotations

import numpy as np
from numba import njit

from epara_solvers.random_state import below, unit


@njit(cache=True, nogil=True)
def held_bytes(g, shape, hosts, weight_bytes):
    total = 0.0
    for m in range(hosts.shape[1]):
        if hosts[g, m]:
            total += weight_bytes[m, shape[g]]
    return total


@njit(cache=True, nogil=True)
def trim(g, shape, hosts, weight_bytes, memory_bytes, rng):
    """Drop models at random until the group fits; first those that cannot run in its shape."""
    for m in range(hosts.shape[1]):
        if hosts[g, m] and not np.isfinite(weight_bytes[m, shape[g]]):
            hosts[g, m] = False
    while held_bytes(g, shape, hosts, weight_bytes) > memory_bytes:
        m = below(rng, hosts.shape[1])
        for _ in range(hosts.shape[1]):
            if hosts[g, m]:
                break
            m = (m + 1) % hosts.shape[1]
        hosts[g, m] = False


@njit(cache=True, nogil=True)
def stuff(g, shape, hosts, weight_bytes, memory_bytes, load, rng):
    """Add models while some fit, by load per holder and some chance. A replica that fits costs nothing."""
    num_groups, num_models = hosts.shape
    used = held_bytes(g, shape, hosts, weight_bytes)
    holders = np.zeros(num_models, dtype=np.int64)
    for h in range(num_groups):
        if shape[h] >= 0:
            for m in range(num_models):
                holders[m] += hosts[h, m]
    while True:
        best, best_score = -1, 0.0
        for m in range(num_models):
            if hosts[g, m] or not used + weight_bytes[m, shape[g]] <= memory_bytes:
                continue
            score = load[m] / (1.0 + holders[m]) * (0.3 + unit(rng))
            if score > best_score:
                best, best_score = m, score
        if best < 0:
            return
        hosts[g, best] = True
        used += weight_bytes[best, shape[g]]


@njit(cache=True, nogil=True)
def dropped(g, hosts, rng):
    """Drop one of the group's models at random; False where it has none."""
    m = below(rng, hosts.shape[1])
    for _ in range(hosts.shape[1]):
        if hosts[g, m]:
            hosts[g, m] = False
            return True
        m = (m + 1) % hosts.shape[1]
    return False


@njit(cache=True, nogil=True)
def refit(g, shape, hosts, weight_bytes, memory_bytes, load, rng):
    """Make a group of a new shape fit: filled up, as it is, or with a model or a few less."""
    trim(g, shape, hosts, weight_bytes, memory_bytes, rng)
    pick = unit(rng)
    if pick < 0.4:
        stuff(g, shape, hosts, weight_bytes, memory_bytes, load, rng)
    while pick > 0.6 and unit(rng) < 0.7 and dropped(g, hosts, rng):
        pass


@njit(cache=True, nogil=True)
def most_lost(lost, rng):
    """A model that loses many requests: the worst of three drawn at random."""
    m = below(rng, len(lost))
    for _ in range(3):
        other = below(rng, len(lost))
        if lost[other] > lost[m]:
            m = other
    return m


@njit(cache=True, nogil=True)
def propose(shape, hosts, shape_devices, weight_bytes, memory_bytes, load, lost, rng):
    """Change a placement in place: models of one group or two, a group's shape, two groups into one or one into two."""
    num_models = hosts.shape[1]
    live = np.flatnonzero(shape >= 0)
    g = live[below(rng, len(live))]
    pick = unit(rng)
    if pick < 0.3:  # another model for one that it holds
        m = below(rng, num_models)
        for _ in range(num_models):
            if hosts[g, m]:
                break
            m = (m + 1) % num_models
        o = most_lost(lost, rng) if unit(rng) < 0.6 else below(rng, num_models)
        if hosts[g, m] and not hosts[g, o]:
            room = memory_bytes - held_bytes(g, shape, hosts, weight_bytes) + weight_bytes[m, shape[g]]
            if weight_bytes[o, shape[g]] <= room:
                hosts[g, m], hosts[g, o] = False, True
    elif pick < 0.47:  # one more; what must go for it goes at random
        o = most_lost(lost, rng) if unit(rng) < 0.6 else below(rng, num_models)
        if not hosts[g, o] and weight_bytes[o, shape[g]] <= memory_bytes:
            trim(g, shape, hosts, weight_bytes, memory_bytes - weight_bytes[o, shape[g]], rng)
            hosts[g, o] = True
            if unit(rng) < 0.15:
                stuff(g, shape, hosts, weight_bytes, memory_bytes, load, rng)
    elif pick < 0.6:  # one less: what is held less is served sooner
        dropped(g, hosts, rng)
    elif pick < 0.78:  # exchange between two groups
        h = live[below(rng, len(live))]
        m, o = below(rng, num_models), below(rng, num_models)
        if h != g and hosts[g, m] and hosts[h, o] and not hosts[g, o] and not hosts[h, m]:
            hosts[g, m], hosts[h, o], hosts[g, o], hosts[h, m] = False, False, True, True
        elif h != g and hosts[g, m] and not hosts[h, m]:
            hosts[g, m], hosts[h, m] = False, True
        trim(g, shape, hosts, weight_bytes, memory_bytes, rng)
        trim(h, shape, hosts, weight_bytes, memory_bytes, rng)
    elif pick < 0.88:  # another shape of as many devices
        s = below(rng, len(shape_devices))
        for _ in range(len(shape_devices)):
            if s != shape[g] and shape_devices[s] == shape_devices[shape[g]]:
                shape[g] = s
                break
            s = (s + 1) % len(shape_devices)
        refit(g, shape, hosts, weight_bytes, memory_bytes, load, rng)
    elif pick < 0.94:  # two groups of one size become one
        h = live[below(rng, len(live))]
        size = shape_devices[shape[g]]
        s = below(rng, len(shape_devices))
        for _ in range(len(shape_devices)):
            if h != g and shape_devices[shape[h]] == size and shape_devices[s] == 2 * size:
                shape[g] = s
                shape[h] = -1
                for m in range(num_models):
                    hosts[g, m] = hosts[g, m] or hosts[h, m]
                    hosts[h, m] = False
                refit(g, shape, hosts, weight_bytes, memory_bytes, load, rng)
                break
            s = (s + 1) % len(shape_devices)
    else:  # one becomes two of half the size
        size = shape_devices[shape[g]]
        free = np.flatnonzero(shape < 0)
        s = below(rng, len(shape_devices))
        for _ in range(len(shape_devices)):
            if size > 1 and len(free) > 0 and 2 * shape_devices[s] == size:
                h = free[0]
                shape[g] = s
                shape[h] = s
                for m in range(num_models):
                    hosts[h, m] = hosts[g, m]
                refit(g, shape, hosts, weight_bytes, memory_bytes, load, rng)
                refit(h, shape, hosts, weight_bytes, memory_bytes, load, rng)
                break
            s = (s + 1) % len(shape_devices)
