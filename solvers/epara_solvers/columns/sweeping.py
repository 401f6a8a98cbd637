"""One pass over servers that moves prices after each of them. Compiled.

Where all servers are priced before any price moves, all of them reach for the same cheap demand at once. Here the next
server sees what the one before it took, as in incremental subgradient methods (Nedic and Bertsekas 2001).
"""

# pyright: basic
# Kernels have no annotations: numba infers the types of what it is given, the arrays of columns.arrays.

from __future__ import annotations

from epara_solvers.columns.pricing import best_copies, best_packing, sort_gains, unpack, walk
from numba import njit


@njit(cache=True, nogil=True)
def sweep(
    a, b, order, list_start, listed, averaging, step, share, pi, cost_there, cost_back, flow, use, new, chosen, copies
):
    """Price the servers of `order` one after another; pi moves after each.

    A server's best packing enters the average of its packings, flow (E,) and their sum per demand, use (D,), with
    weight `averaging`; then the price of every demand in its reach moves by step x share (D,) x worth, times by how
    much too often the demand is asked for (at most 1, at least -1). Prices stay in [0, worth]. share: 1 / the edges of
    a demand, so that a price moves by `step` a pass. new: space, as wide as the most edges of a server.
    """
    edge_demand, offered, worth = a.edge_demand, a.offered, a.worth
    for n in order:
        first, last = a.seg_start[a.server_seg[n]], a.seg_start[a.server_seg[n + 1]]
        new[: last - first] = 0.0
        sort_gains(a, b, n, offered, pi, cost_there, cost_back)
        for q in range(a.server_pool[n], a.server_pool[n + 1]):
            best_copies(a, b, n, q, listed, list_start[q], list_start[q + 1])
            best_packing(b, a.pool_devices[q])
            num = unpack(b, a.pool_devices[q], chosen, copies, 0)
            for j in range(num):
                _, num_used = walk(a, b, n, chosen[j], copies[j], b.used_at, b.used_work, b.used_tenant)
                for i in range(num_used):
                    new[b.edge[b.used_at[i]] - first] += b.used_work[i]
        for e in range(first, last):
            change = averaging * (new[e - first] - flow[e])
            flow[e] += change
            use[edge_demand[e]] += change
        for e in range(first, last):
            d = edge_demand[e]
            over = min(1.0, max(-1.0, use[d] / offered[d] - 1.0))
            pi[d] = min(worth[d], max(0.0, pi[d] + step * share[d] * over * worth[d]))


@njit(cache=True, nogil=True)
def flow_on_links(a, flow, link_use):
    """Writes the bytes/s that flows (E,) put on each directed link (H,)."""
    link_use[:] = 0.0
    for e in range(len(flow)):
        if flow[e] <= 0.0:
            continue
        p, service = a.edge_path[e], a.edge_service[e]
        there, back = flow[e] * a.there[service], flow[e] * a.back[service]
        for h in range(a.path_start[p], a.path_start[p + 1]):
            link_use[a.path_hop[h]] += there
            link_use[a.path_back[h]] += back
