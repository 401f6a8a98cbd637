# pyright: basic
# Kernels have no annotations: numba infers the types of what it is given.
"""The flow through a split, and simulated annealing over splits, in compiled code. What it means: layers.problem.

rates: (N, K) tokens/s with 1, 2, ... layers; most: (N,) layers that fit; source, sink: (N,), link: (N, N) tokens/s, 0
where there is no link; start, size: (N,) each node's run of layers.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from epara_solvers.random_state import below, unit

SMALL = 1e-9  # tokens/s: less room than that is none


@njit(cache=True, nogil=True)
def join(a, b, room, first, following, head, left, count):
    """Add the edge a -> b and its reverse to the lists; returns the new number of edges."""
    head[count], left[count], following[count] = b, room, first[a]
    first[a] = count
    head[count + 1], left[count + 1], following[count + 1] = a, 0.0, first[b]
    first[b] = count + 1
    return count + 2


@njit(cache=True, nogil=True)
def max_flow(start, size, rates, source, sink, link, num_layers):
    """Dinic's algorithm. Vertices: node n's entry n and exit N + n, the source 2 N, the sink 2 N + 1."""
    num = len(start)
    vertices = 2 * num + 2
    edges = 6 * num
    for i in range(num):
        for j in range(num):
            if link[i, j] > SMALL and start[i] + size[i] == start[j]:
                edges += 2
    first = np.full(vertices, -1, dtype=np.int64)
    following = np.empty(edges, dtype=np.int64)
    head = np.empty(edges, dtype=np.int64)
    left = np.empty(edges)
    count = 0
    for i in range(num):
        end = start[i] + size[i]
        count = join(i, num + i, rates[i, size[i] - 1], first, following, head, left, count)
        if start[i] == 0:
            count = join(2 * num, i, source[i], first, following, head, left, count)
        if end == num_layers:
            count = join(num + i, 2 * num + 1, sink[i], first, following, head, left, count)
            continue
        for j in range(num):
            if start[j] == end and link[i, j] > SMALL:
                count = join(num + i, j, link[i, j], first, following, head, left, count)
    level = np.empty(vertices, dtype=np.int64)
    queue = np.empty(vertices, dtype=np.int64)
    cursor = np.empty(vertices, dtype=np.int64)
    path = np.empty(vertices, dtype=np.int64)
    total = 0.0
    while rank(2 * num, 2 * num + 1, first, following, head, left, level, queue):
        cursor[:] = first
        while True:
            pushed = push(2 * num, 2 * num + 1, following, head, left, level, cursor, path)
            if pushed <= 0.0:
                break
            total += pushed
    return total


@njit(cache=True, nogil=True)
def rank(source, sink, first, following, head, left, level, queue):
    """Distances from the source over edges with room; whether the sink is reached."""
    level[:] = -1
    level[source] = 0
    queue[0] = source
    done, end = 0, 1
    while done < end:
        a = queue[done]
        done += 1
        e = first[a]
        while e >= 0:
            b = head[e]
            if level[b] < 0 and left[e] > SMALL:
                level[b] = level[a] + 1
                queue[end] = b
                end += 1
            e = following[e]
    return level[sink] >= 0


@njit(cache=True, nogil=True)
def push(source, sink, following, head, left, level, cursor, path):
    """Fill one shortest path; returns what it carries, 0 where none is left."""
    depth, a = 0, source
    while a != sink:
        e = cursor[a]
        while e >= 0 and not (left[e] > SMALL and level[head[e]] == level[a] + 1):
            e = following[e]
        cursor[a] = e
        if e >= 0:
            path[depth] = e
            depth += 1
            a = head[e]
        elif depth == 0:
            return 0.0
        else:
            depth -= 1
            e = path[depth]
            a = head[e ^ 1]
            cursor[a] = following[e]
    carried = np.inf
    for d in range(depth):
        carried = min(carried, left[path[d]])
    for d in range(depth):
        left[path[d]] -= carried
        left[path[d] ^ 1] += carried
    return carried


@njit(cache=True, nogil=True)
def covered(start, size, rates, num_layers, wanted):
    """What the layers' holders can carry: the mean, up to `wanted` each, and the least, which no flow exceeds."""
    cover = np.zeros(num_layers)
    for i in range(len(start)):
        for x in range(start[i], start[i] + size[i]):
            cover[x] += rates[i, size[i] - 1]
    total, least = 0.0, np.inf
    for x in range(num_layers):
        total += min(cover[x], wanted)
        least = min(least, cover[x])
    return total / num_layers, least


@njit(cache=True, nogil=True)
def place(i, begin, k, start, size, most, num_layers):
    """Node i gets k layers from `begin`, fewer where they do not fit."""
    size[i] = max(1, min(k, most[i]))
    start[i] = max(0, min(begin, num_layers - size[i]))


@njit(cache=True, nogil=True)
def shift(low, high, step, start, size, most, num_layers):
    """Move every boundary in [low, high) by `step`; whether all runs stay legal. 0 and num_layers do not move."""
    for i in range(len(start)):
        begin, end = start[i], start[i] + size[i]
        if begin > 0 and low <= begin < high:
            begin += step
        if end < num_layers and low <= end < high:
            end += step
        if begin < 0 or end > num_layers or end <= begin or end - begin > most[i]:
            return False
        start[i], size[i] = begin, end - begin
    return True


@njit(cache=True, nogil=True)
def propose(start, size, most, num_layers, rng):
    """Change one thing or a few that belong together; whether the runs are legal."""
    num = len(start)
    i, j = below(rng, num), below(rng, num)
    pick = unit(rng)
    if pick < 0.2:  # begin where another ends, or end where it begins
        k = 1 + below(rng, most[i])
        begin = start[j] + size[j] if unit(rng) < 0.5 else start[j] - k
        if begin < 0 or begin + k > num_layers:
            begin = 0 if unit(rng) < 0.5 else num_layers - k
        place(i, begin, k, start, size, most, num_layers)
    elif pick < 0.35:  # beside another
        begin = start[j] if unit(rng) < 0.5 else start[j] + size[j] - most[i]
        place(i, begin, size[j], start, size, most, num_layers)
    elif pick < 0.5:  # from where one ends to where another begins
        begin, end = start[j] + size[j], start[below(rng, num)]
        if end <= begin:
            begin, end = start[j], start[j] + size[j]
        place(i, begin, end - begin, start, size, most, num_layers)
    elif pick < 0.65:  # change places
        a, b, ka, kb = start[i], start[j], size[i], size[j]
        place(i, b, kb, start, size, most, num_layers)
        place(j, a, ka, start, size, most, num_layers)
    elif pick < 0.7:  # anywhere
        place(i, below(rng, num_layers), 1 + below(rng, most[i]), start, size, most, num_layers)
    else:  # one boundary, or all between two: one node's layers are another's
        low = start[i] if unit(rng) < 0.5 else start[i] + size[i]
        high = low + 1
        if pick > 0.8:
            other = start[j] if unit(rng) < 0.5 else start[j] + size[j]
            low, high = min(low, other), max(low + 1, other)
        step = 1 if unit(rng) < 0.5 else -1
        return shift(low, high, step, start, size, most, num_layers)
    return True


@njit(cache=True, nogil=True)
def anneal(
    steps,
    hot,
    cold,
    weight,
    wanted,
    start,
    size,
    best_start,
    best_size,
    rates,
    most,
    source,
    sink,
    link,
    num_layers,
    rng,
):
    """Changes start and size; leaves the runs of the best flow in best_*; returns that flow.

    Score: the flow plus `weight` times how much of `wanted` the layers' holders could carry: where no single change
    adds flow, changes that cover what is thin still count. The temperature falls from hot to cold, in tokens/s.
    """
    best = max_flow(best_start, best_size, rates, source, sink, link, num_layers)
    score = max_flow(start, size, rates, source, sink, link, num_layers)
    score += weight * covered(start, size, rates, num_layers, wanted)[0]
    old_start, old_size = start.copy(), size.copy()
    for t in range(steps):
        legal = propose(start, size, most, num_layers, rng)
        if legal and unit(rng) < 0.25:
            legal = propose(start, size, most, num_layers, rng)
        accepted = False
        if legal:
            heat = hot * (cold / hot) ** (t / steps)
            wished = score + heat * np.log(max(1e-300, unit(rng)))  # Metropolis, drawn before the work is done
            mean, least = covered(start, size, rates, num_layers, wanted)
            if least + weight * mean >= wished:
                flow = max_flow(start, size, rates, source, sink, link, num_layers)
                accepted = flow + weight * mean >= wished
                if accepted:
                    score = flow + weight * mean
                if flow > best:
                    best = flow
                    best_start[:] = start
                    best_size[:] = size
        if accepted:
            old_start[:] = start
            old_size[:] = size
        else:
            start[:] = old_start
            size[:] = old_size
    return best
