"""What a server is worth under prices: fills, and the best packing of its devices. Compiled; one home for both.

Prices: pi per work of a demand, beta per byte/s of a directed link; q_e = pi of the edge's demand + what its bytes
cost on the links of its path. A tenant that earns v per work gains v - q_e on every unit it serves over e.

*Fill.* k groups of one column have k of time for their tenants together. Time goes to the tenant and edge of highest
gain per time, (v - q_e) x work/s, each edge up to what is offered there: the fractional knapsack, optimal for one
column. Gains per copy fall with each copy.

*Packing.* Copies of different columns are valued independently, so the value of a packing is at least what any real
one earns. As gains fall from copy to copy, for each group size only the best floor(G / size) copies of a pool can
matter; a knapsack over sizes (numbers of devices) finds the best packing.

A column with a tenant that gains nowhere is left out: without that tenant the others gain no less, and the column
without it exists (`contents` keeps every smaller company), on new devices if nowhere else.

`a` is columns.arrays.Arrays throughout; kernels write into arrays that the caller owns, and release the GIL.
"""

# pyright: basic
# Kernels have no annotations: numba infers the types of what it is given, the arrays of columns.arrays.

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from epara_solvers.columns.arrays import Arrays
from numba import njit

TINY = 1e-12
HOT = 8  # evaluations of all columns for which one stays active after it came near
NEAR = 0.8  # of what the last of the best copies gains: columns near enough to matter at prices close by
MAX_USED = 4096  # edges that one column may fill; more are left unfilled by the caller's record, never by the value


class Bench(NamedTuple):
    """Working space of one thread: the positive edges of the server in hand, and the best copies of its pools."""

    edge: npt.NDArray[np.int32]  # (widest server,)
    q: npt.NDArray[np.float64]
    room: npt.NDArray[np.float64]
    start: npt.NDArray[np.int64]  # (segments of a server + 1,)
    least_q: npt.NDArray[np.float64]  # (L,) of each service's kept edges; inf where there is none
    most: npt.NDArray[np.float64]  # (L,) what all kept edges of a service together could gain
    gains: npt.NDArray[np.float64]  # (G,) per copy
    first_gain: npt.NDArray[np.float64]  # (columns of a pool,)
    top_gain: npt.NDArray[np.float64]  # (G + 1, G) by size, falling
    top_column: npt.NDArray[np.int64]  # (G + 1, G)
    top_count: npt.NDArray[np.int64]  # (G + 1,)
    packed: npt.NDArray[np.float64]  # (G + 1,) knapsack
    taken: npt.NDArray[np.int64]  # (G + 1, G + 1) copies of a size at each capacity
    used_at: npt.NDArray[np.int64]  # (MAX_USED,)
    used_work: npt.NDArray[np.float64]
    used_tenant: npt.NDArray[np.int64]
    seat: npt.NDArray[np.int64]  # (T,) segments of a column's tenants, relative to the server's first
    at: npt.NDArray[np.int64]  # (T,) a walk's place, end, time left on the edge, gain per time, worth; per tenant
    stop: npt.NDArray[np.int64]
    rest: npt.NDArray[np.float64]
    rate: npt.NDArray[np.float64]
    value: npt.NDArray[np.float64]
    fresh: npt.NDArray[np.float64]  # (C x T,) what a unit earns at a tenant that must be loaded
    nothing: npt.NDArray[np.int64]  # (0,)
    no_work: npt.NDArray[np.float64]  # (0,)


def bench_for(a: Arrays) -> Bench:
    """Space for the largest server of these arrays."""
    per_server = np.diff(a.seg_start[a.server_seg]) if len(a.server_seg) > 1 else np.zeros(1, dtype=np.int64)
    edges = int(per_server.max(initial=1))
    segments = int(np.diff(a.server_seg).max(initial=1))
    devices = int(a.pool_devices.max(initial=1))
    width = a.content_service.shape[1]
    used = min(MAX_USED, edges + devices + 8)
    return Bench(
        edge=np.zeros(edges, dtype=np.int32),
        q=np.zeros(edges),
        room=np.zeros(edges),
        start=np.zeros(segments + 1, dtype=np.int64),
        least_q=np.full(len(a.service_worth), np.inf),
        most=np.zeros(len(a.service_worth)),
        gains=np.zeros(devices + 1),
        first_gain=np.zeros(int(np.diff(a.pool_column).max(initial=1))),
        top_gain=np.zeros((devices + 1, devices + 1)),
        top_column=np.zeros((devices + 1, devices + 1), dtype=np.int64),
        top_count=np.zeros(devices + 1, dtype=np.int64),
        packed=np.zeros(devices + 1),
        taken=np.zeros((devices + 1, devices + 1), dtype=np.int64),
        used_at=np.zeros(used, dtype=np.int64),
        used_work=np.zeros(used),
        used_tenant=np.zeros(used, dtype=np.int64),
        seat=np.zeros(width, dtype=np.int64),
        at=np.zeros(width, dtype=np.int64),
        stop=np.zeros(width, dtype=np.int64),
        rest=np.zeros(width),
        rate=np.zeros(width),
        value=np.zeros(width),
        fresh=(a.content_worth * a.content_fresh).ravel(),
        nothing=np.zeros(0, dtype=np.int64),
        no_work=np.zeros(0),
    )


@njit(cache=True, nogil=True)
def path_costs(a, beta, cost_there, cost_back):
    """Per path the sum of beta over its hops, there and back. Writes cost_there, cost_back (P,)."""
    for p in range(len(a.path_start) - 1):
        there = 0.0
        back = 0.0
        for h in range(a.path_start[p], a.path_start[p + 1]):
            there += beta[a.path_hop[h]]
            back += beta[a.path_back[h]]
        cost_there[p] = there
        cost_back[p] = back


@njit(cache=True, nogil=True)
def sort_gains(a, b, n, room, pi, cost_there, cost_back):
    """The edges of server n that could gain, each segment by rising q, into the bench. room: (D,) work left."""
    num = 0
    first_seg = a.server_seg[n]
    edge_demand, edge_path, seg_start = a.edge_demand, a.edge_path, a.seg_start
    b_edge, b_q, b_room = b.edge, b.q, b.room
    b.least_q[:] = np.inf
    b.most[:] = 0.0
    for seg in range(first_seg, a.server_seg[n + 1]):
        service = a.seg_service[seg]
        begin = num
        b.start[seg - first_seg] = begin
        limit = a.service_worth[service]
        there = a.there[service]
        back = a.back[service]
        most = 0.0
        for e in range(seg_start[seg], seg_start[seg + 1]):
            d = edge_demand[e]
            if room[d] <= 0.0:
                continue
            p = edge_path[e]
            q = pi[d] + there * cost_there[p] + back * cost_back[p]
            if q >= limit:
                continue
            at = num
            while at > begin and b_q[at - 1] > q:
                b_q[at] = b_q[at - 1]
                b_edge[at] = b_edge[at - 1]
                b_room[at] = b_room[at - 1]
                at -= 1
            b_q[at] = q
            b_edge[at] = e
            b_room[at] = room[d]
            most += (limit - q) * room[d]
            num += 1
        if num > begin:
            b.least_q[service] = b_q[begin]
            b.most[service] = most
    b.start[a.server_seg[n + 1] - first_seg] = num


@njit(cache=True, nogil=True)
def earns(a, k, t):
    """What a unit of work earns at tenant t of column k: its weight, times the share of time it is loaded."""
    c = a.column_content[k]
    if (a.column_loaded[k] >> t) & 1:
        return a.content_worth[c, t]
    return a.content_worth[c, t] * a.content_fresh[c, t]


@njit(cache=True, nogil=True)
def fill(
    c,
    loaded,
    first_edge,
    seat,
    content_service,
    content_work,
    content_worth,
    content_fresh,
    edge,
    q,
    room,
    start,
    at,
    stop,
    rest,
    rate,
    value,
    copies,
    least,
    gains,
    used_at,
    used_work,
    used_tenant,
):
    """Fill `copies` groups of content c from sorted edges; writes each copy's gain.

    Stops early after a copy that gains no more than `least`.

    first_edge, seat: (T,) the tenants' first edges fast enough, and their segments in `start`. Returns (copies that
    gain, entries of used_*): index into the sorted edges, work and tenant, in the order filled. Takes arrays one by
    one: a kernel that takes them in a tuple counts references at every access.
    """
    tenants = 0
    for t in range(content_service.shape[1]):
        if content_service[c, t] < 0:
            break
        here, end, first = start[seat[t]], start[seat[t] + 1], first_edge[t]
        while here < end and edge[here] < first:
            here += 1
        if here == end:
            return 0, 0
        value[t] = content_worth[c, t]
        if not (loaded >> t) & 1:
            value[t] *= content_fresh[c, t]
        rate[t] = (value[t] - q[here]) * content_work[c, t]
        if rate[t] <= 0.0:
            return 0, 0
        at[t], stop[t] = here, end
        rest[t] = room[here] / content_work[c, t]
        tenants += 1
    record = len(used_at) > 0
    num_used = 0
    copy = 0
    left = 1.0
    gain = 0.0
    while True:
        best = 0
        for t in range(1, tenants):
            if rate[t] > rate[best]:
                best = t
        if rate[best] <= 0.0:
            break
        time = min(left, rest[best])
        gain += time * rate[best]
        if record and num_used < len(used_at):
            used_at[num_used] = at[best]
            used_work[num_used] = time * content_work[c, best]
            used_tenant[num_used] = best
            num_used += 1
        left -= time
        rest[best] -= time
        if left <= TINY:
            gains[copy] = gain
            copy += 1
            if copy == copies or gain <= least:
                return copy, num_used
            gain = 0.0
            left = 1.0
        if rest[best] <= TINY:
            here = at[best] + 1
            first = first_edge[best]
            while here < stop[best] and edge[here] < first:
                here += 1
            at[best] = here
            rate[best] = 0.0
            if here < stop[best]:
                rate[best] = (value[best] - q[here]) * content_work[c, best]
                rest[best] = room[here] / content_work[c, best]
    if gain > 0.0:
        gains[copy] = gain
        copy += 1
    return copy, num_used


@njit(cache=True, nogil=True)
def walk(a, b, n, k, copies, used_at, used_work, used_tenant):
    """`fill` of column k at server n from the bench, into b.gains."""
    c = a.column_content[k]
    first_seg = a.server_seg[n]
    for t in range(a.content_service.shape[1]):
        if a.content_service[c, t] >= 0:
            b.seat[t] = a.seg_at[n, a.content_service[c, t]] - first_seg
    return fill(
        c,
        a.column_loaded[k],
        a.column_first[k],
        b.seat,
        a.content_service,
        a.content_work,
        a.content_worth,
        a.content_fresh,
        b.edge,
        b.q,
        b.room,
        b.start,
        b.at,
        b.stop,
        b.rest,
        b.rate,
        b.value,
        copies,
        -1.0,
        b.gains,
        used_at,
        used_work,
        used_tenant,
    )


@njit(cache=True, nogil=True)
def most_of_a_copy(c, loaded, content_service, content_work, content_worth, content_fresh, least_q, most):
    """No group with content c at the bench's server gains more; 0 where some tenant gains nothing."""
    top_rate = 0.0
    together = 0.0
    for t in range(content_service.shape[1]):
        service = content_service[c, t]
        if service < 0:
            break
        worth = content_worth[c, t]
        if not (loaded >> t) & 1:
            worth *= content_fresh[c, t]
        rate = (worth - least_q[service]) * content_work[c, t]
        if rate <= 0.0:
            return 0.0
        top_rate = max(top_rate, rate)
        together += most[service]
    return min(top_rate, together)


@njit(cache=True, nogil=True)
def best_copies(a, b, n, q, listed, first, last):
    """The best copies of every group size at pool q, into the bench, among its columns listed[first:last].

    Writes what each one's first copy gains into b.first_gain, in the same order; 0 where that was not worth finding.
    """
    devices = a.pool_devices[q]
    b.top_count[: devices + 1] = 0
    width = a.content_service.shape[1]
    services, works, worths = a.content_service.ravel(), a.content_work.ravel(), a.content_worth.ravel()
    fresh, content_devices, column_content = b.fresh, a.content_devices, a.column_content
    column_loaded, column_max, least_q, most = a.column_loaded, a.column_max, b.least_q, b.most
    top_gain, top_column, top_count, gains = b.top_gain, b.top_column, b.top_count, b.gains
    first_gain = b.first_gain
    first_seg = a.server_seg[n]
    content_service, content_work, content_worth, content_fresh = (
        a.content_service,
        a.content_work,
        a.content_worth,
        a.content_fresh,
    )
    column_first, seg_at, seat = a.column_first, a.seg_at, b.seat
    b_edge, b_q, b_room, b_start, b_at, b_stop, b_rest = b.edge, b.q, b.room, b.start, b.at, b.stop, b.rest
    b_rate, b_value, nothing, no_work = b.rate, b.value, b.nothing, b.no_work
    for j in range(first, last):
        k = listed[j]
        first_gain[j - first] = 0.0
        c = column_content[k]
        loaded = column_loaded[k]
        limit = 0.0  # most_of_a_copy, by hand: it is asked for every column
        together = 0.0
        for i in range(c * width, c * width + width):
            service = services[i]
            if service < 0:
                break
            worth = worths[i] if (loaded >> (i - c * width)) & 1 else fresh[i]
            rate = (worth - least_q[service]) * works[i]
            if rate <= 0.0:
                limit = 0.0
                break
            if rate > limit:
                limit = rate
            together += most[service]
        if together < limit:
            limit = together
        if limit <= 0.0:
            continue
        size = content_devices[c]
        cap = devices // size
        count = top_count[size]
        if count == cap and limit <= top_gain[size, count - 1]:
            continue
        for t in range(width):
            if content_service[c, t] >= 0:
                seat[t] = seg_at[n, content_service[c, t]] - first_seg
        num, _ = fill(
            c,
            loaded,
            column_first[k],
            seat,
            content_service,
            content_work,
            content_worth,
            content_fresh,
            b_edge,
            b_q,
            b_room,
            b_start,
            b_at,
            b_stop,
            b_rest,
            b_rate,
            b_value,
            min(cap, column_max[k]),
            top_gain[size, count - 1] if count == cap else -1.0,
            gains,
            nothing,
            no_work,
            nothing,
        )
        if num > 0:
            first_gain[j - first] = gains[0]
        for i in range(num):
            gain = gains[i]
            if count == cap and gain <= top_gain[size, count - 1]:
                break
            at = count if count < cap else cap - 1
            while at > 0 and top_gain[size, at - 1] < gain:
                top_gain[size, at] = top_gain[size, at - 1]
                top_column[size, at] = top_column[size, at - 1]
                at -= 1
            top_gain[size, at] = gain
            top_column[size, at] = k
            if count < cap:
                count += 1
        top_count[size] = count


@njit(cache=True, nogil=True)
def best_packing(b, devices):
    """The most that the best copies can earn on these devices; b.taken tells how."""
    b.packed[: devices + 1] = 0.0
    for size in range(1, devices + 1):
        count = b.top_count[size]
        if count == 0:
            continue
        for room in range(devices, 0, -1):
            best = b.packed[room]
            number = 0
            sum_ = 0.0
            for i in range(min(count, room // size)):
                sum_ += b.top_gain[size, i]
                if b.packed[room - (i + 1) * size] + sum_ > best:
                    best = b.packed[room - (i + 1) * size] + sum_
                    number = i + 1
            b.packed[room] = best
            b.taken[size, room] = number
    return b.packed[devices]


@njit(cache=True, nogil=True)
def unpack(b, devices, chosen, copies, num):
    """Append the columns of the best packing, each once, and how many copies of it. Returns their number so far."""
    room = devices
    for size in range(devices, 0, -1):
        if b.top_count[size] == 0:
            continue
        taken = b.taken[size, room]
        room -= taken * size
        first = num
        for i in range(taken):  # copies of one column may lie apart in the list
            k = b.top_column[size, i]
            at = first
            while at < num and chosen[at] != k:
                at += 1
            if at == num:
                chosen[num] = k
                copies[num] = 0
                num += 1
            copies[at] += 1
    return num


@njit(cache=True, nogil=True)
def price_servers(a, b, lo, hi, active_start, active, heat, pi, cost_there, cost_back, packing_value, pool_price):
    """The best packings of servers lo..hi under prices; returns the sum of their values.

    Fills `active` with the columns that came near the best here or lately (heat (K,) counts down); active_start
    (Q + 1,) tells where each pool's begin. Writes what each server's packing is worth (N,) and what the last device of
    each pool adds to it (Q,).
    """
    total = 0.0
    num_active = 0
    active_start[a.server_pool[lo]] = 0
    everything = a.every_column
    for n in range(lo, hi):
        packing_value[n] = 0.0
        sort_gains(a, b, n, a.offered, pi, cost_there, cost_back)
        for q in range(a.server_pool[n], a.server_pool[n + 1]):
            first = a.pool_column[q]
            best_copies(a, b, n, q, everything, first, a.pool_column[q + 1])
            for k in range(first, a.pool_column[q + 1]):
                size = a.content_devices[a.column_content[k]]
                bar = 0.0
                if b.top_count[size] == a.pool_devices[q] // size:
                    bar = NEAR * b.top_gain[size, b.top_count[size] - 1]
                if b.first_gain[k - first] > bar:
                    heat[k] = HOT
                elif heat[k] > 0:
                    heat[k] -= 1
                if heat[k] > 0:
                    active[num_active] = k
                    num_active += 1
            active_start[q + 1] = num_active
            devices = a.pool_devices[q]
            value = best_packing(b, devices)
            total += value
            packing_value[n] += value
            pool_price[q] = value - b.packed[devices - 1]
    return total
