"""Placements in arrays: build one server after another, take servers apart, build them again, keep what is better.

Building a server: again and again the column of highest gain per device goes onto free devices and is filled with
demand and bandwidth that are left, until nothing gains. Gains are measured at `theta` times the prices: at 1 a server
leaves to others what they make more of (the prices of `dual`), at 0 it takes all it can; a pass at 0 always follows,
so that nothing that earns stays idle.

Repacking (ruin and recreate, Schrimpf et al. 2000): some servers near one demand are emptied and built anew in random
order, with a random theta and noise on the gains; the result stays if it earns no less.

Compiled, one thread per state; random numbers come from a splitmix64 state, so a seed and a count of rounds decide all.
"""

# pyright: basic
# Kernels have no annotations: numba infers the types of what it is given, the arrays of columns.arrays.

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from epara_solvers.columns.arrays import Arrays
from epara_solvers.columns.pricing import earns, fill, walk
from epara_solvers.random_state import below, unit
from numba import njit

MAX_FLOWS = 96  # edges that one group serves; the rest of its reach is left to others
NOTHING = 1e-9  # relative: less work than this part of a demand is not worth a flow
NO_CAP = 1 << 60  # on moves
MAX_RUINED = 6  # servers taken apart in one round


class Packing(NamedTuple):
    """A placement in the making. X slots: a pool of G devices holds at most G groups."""

    pool_slot: npt.NDArray[np.int64]  # (Q + 1,)
    column: npt.NDArray[np.int64]  # (X,) -1: empty
    num_flows: npt.NDArray[np.int64]  # (X,)
    flow_edge: npt.NDArray[np.int32]  # (X, F)
    flow_tenant: npt.NDArray[np.int8]  # (X, F)
    flow_rate: npt.NDArray[np.float64]  # (X, F) work
    gain: npt.NDArray[np.float64]  # (X,) what the group earns
    demand_left: npt.NDArray[np.float64]  # (D,)
    link_left: npt.NDArray[np.float64]  # (H,)
    devices_left: npt.NDArray[np.int64]  # (Q,)
    class_left: npt.NDArray[np.int64]  # (R,)
    level_left: npt.NDArray[np.int64]  # devices above each level of each pool: see Arrays.level_start
    moves_left: npt.NDArray[np.int64]  # (1,)


def empty_packing(a: Arrays, moves_allowed: int | None = None) -> Packing:
    """Nothing placed."""
    slots = np.concatenate(([0], np.cumsum(a.pool_devices))).astype(np.int64)
    num, width = int(slots[-1]), MAX_FLOWS
    return Packing(
        pool_slot=slots,
        column=np.full(num, -1, dtype=np.int64),
        num_flows=np.zeros(num, dtype=np.int64),
        flow_edge=np.zeros((num, width), dtype=np.int32),
        flow_tenant=np.zeros((num, width), dtype=np.int8),
        flow_rate=np.zeros((num, width)),
        gain=np.zeros(num),
        demand_left=a.offered.copy(),
        link_left=a.link_width.copy(),
        devices_left=a.pool_devices.copy(),
        class_left=a.class_size.copy(),
        level_left=a.level_devices.copy(),
        moves_left=np.array([NO_CAP if moves_allowed is None else moves_allowed], dtype=np.int64),
    )


def spare_packing(num_slots: int) -> Packing:
    """Slots alone, to copy others into."""
    nothing, none = np.zeros(0), np.zeros(0, dtype=np.int64)
    return Packing(
        pool_slot=none,
        column=np.full(num_slots, -1, dtype=np.int64),
        num_flows=np.zeros(num_slots, dtype=np.int64),
        flow_edge=np.zeros((num_slots, MAX_FLOWS), dtype=np.int32),
        flow_tenant=np.zeros((num_slots, MAX_FLOWS), dtype=np.int8),
        flow_rate=np.zeros((num_slots, MAX_FLOWS)),
        gain=np.zeros(num_slots),
        demand_left=nothing,
        link_left=nothing,
        devices_left=none,
        class_left=none,
        level_left=none,
        moves_left=none,
    )


def copy_packing(s: Packing) -> Packing:
    """An independent copy."""
    return Packing._make(part.copy() for part in s)


@njit(cache=True, nogil=True)
def room_on_path(room, there, back, first, last, path_hop, path_back, link_left):
    """Work, at most `room`, that a path could still carry."""
    for h in range(first, last):
        if there > 0.0:
            room = min(room, link_left[path_hop[h]] / there)
        if back > 0.0:
            room = min(room, link_left[path_back[h]] / back)
    return room


@njit(cache=True, nogil=True)
def sort_rooms(a, b, s, n, theta, pi, cost_there, cost_back):
    """As pricing.sort_gains, with what is left on each edge, links included, at theta times the prices."""
    num = 0
    first_seg = a.server_seg[n]
    edge_demand, edge_path, seg_start, offered = a.edge_demand, a.edge_path, a.seg_start, a.offered
    path_start, path_hop, path_back = a.path_start, a.path_hop, a.path_back
    demand_left, link_left = s.demand_left, s.link_left
    b_edge, b_q, b_room = b.edge, b.q, b.room
    b.least_q[:] = np.inf
    b.most[:] = 0.0
    for seg in range(first_seg, a.server_seg[n + 1]):
        service = a.seg_service[seg]
        begin = num
        b.start[seg - first_seg] = begin
        limit = a.service_worth[service]
        there, back = a.there[service], a.back[service]
        whisper = 1e-9 * limit  # of the network's cost even at theta 0, so that equal gains prefer short ways
        most = 0.0
        for e in range(seg_start[seg], seg_start[seg + 1]):
            d = edge_demand[e]
            least = NOTHING * offered[d]
            if demand_left[d] <= least:
                continue
            p = edge_path[e]
            first, last = path_start[p], path_start[p + 1]
            q = theta * (pi[d] + there * cost_there[p] + back * cost_back[p]) + whisper * (last - first)
            if q >= limit:
                continue
            room = room_on_path(demand_left[d], there, back, first, last, path_hop, path_back, link_left)
            if room <= least:
                continue
            at = num
            while at > begin and b_q[at - 1] > q:
                b_q[at] = b_q[at - 1]
                b_edge[at] = b_edge[at - 1]
                b_room[at] = b_room[at - 1]
                at -= 1
            b_q[at] = q
            b_edge[at] = e
            b_room[at] = room
            most += (limit - q) * room
            num += 1
        if num > begin:
            b.least_q[service] = b_q[begin]
            b.most[service] = most
    b.start[a.server_seg[n + 1] - first_seg] = num
    return num


@njit(cache=True, nogil=True)
def book(a, s, x, sign):
    """Take what slot x serves from what is left (sign 1), or give it back (-1)."""
    edge_demand, edge_path, edge_service = a.edge_demand, a.edge_path, a.edge_service
    path_start, path_hop, path_back, there, back = a.path_start, a.path_hop, a.path_back, a.there, a.back
    demand_left, link_left, flow_edge, flow_rate = s.demand_left, s.link_left, s.flow_edge, s.flow_rate
    for f in range(s.num_flows[x]):
        e = flow_edge[x, f]
        work = sign * flow_rate[x, f]
        demand_left[edge_demand[e]] -= work
        p, service = edge_path[e], edge_service[e]
        for h in range(path_start[p], path_start[p + 1]):
            link_left[path_hop[h]] -= work * there[service]
            link_left[path_back[h]] -= work * back[service]


@njit(cache=True, nogil=True)
def occupy(a, s, q, k, sign):
    """Take what a group of column k takes of pool q, and of what is counted (sign 1), or give it back (-1)."""
    size = sign * a.content_devices[a.column_content[k]]
    s.devices_left[q] -= size
    if a.column_class[k] >= 0:
        s.class_left[a.column_class[k]] -= sign
    first = a.level_start[q]
    for level in range(first, first + a.column_exceeds[k]):
        s.level_left[level] -= size
    s.moves_left[0] -= sign * a.column_moves[k]


@njit(cache=True, nogil=True)
def room_beside(level_left, first, exceeds, room):
    """Devices, at most `room`, above the first `exceeds` levels of a pool."""
    for level in range(first, first + exceeds):
        room = min(room, level_left[level])
    return room


@njit(cache=True, nogil=True)
def has_room(a, s, q, k):
    """Whether one more group of column k may stand in pool q. `choose` does the same by hand: it asks too often to
    hand everything over each time."""
    kind = a.column_class[k]
    if (kind >= 0 and s.class_left[kind] == 0) or a.column_moves[k] > s.moves_left[0]:
        return False
    room = room_beside(s.level_left, a.level_start[q], a.column_exceeds[k], s.devices_left[q])
    return a.content_devices[a.column_content[k]] <= room


@njit(cache=True, nogil=True)
def clear_slot(a, s, q, x):
    """Empty a slot; what it served is left again."""
    k = s.column[x]
    if k < 0:
        return
    book(a, s, x, -1.0)
    occupy(a, s, q, k, -1)
    s.column[x] = -1
    s.num_flows[x] = 0
    s.gain[x] = 0.0


@njit(cache=True, nogil=True)
def copy_slot(source, at, target, to):
    """What one slot holds, into another packing's."""
    target.column[to] = source.column[at]
    target.gain[to] = source.gain[at]
    num = source.num_flows[at]
    target.num_flows[to] = num
    for f in range(num):
        target.flow_edge[to, f] = source.flow_edge[at, f]
        target.flow_tenant[to, f] = source.flow_tenant[at, f]
        target.flow_rate[to, f] = source.flow_rate[at, f]


@njit(cache=True, nogil=True)
def restore_slot(a, s, q, x, spare, at):
    """Put back what `spare` holds at `at` into the empty slot x."""
    copy_slot(spare, at, s, x)
    k = s.column[x]
    if k < 0:
        return
    book(a, s, x, 1.0)
    occupy(a, s, q, k, 1)


@njit(cache=True, nogil=True)
def fill_slot(a, b, s, n, q, x, k):
    """Put a group of column k into an empty slot and fill it from the bench. Returns what it earns.

    The bench's rooms may be older than what is left; those of the services it serves are brought up to date.
    """
    _, num_used = walk(a, b, n, k, 1, b.used_at, b.used_work, b.used_tenant)
    edge_demand, edge_path, offered = a.edge_demand, a.edge_path, a.offered
    path_start, path_hop, path_back = a.path_start, a.path_hop, a.path_back
    demand_left, link_left, b_edge, b_room = s.demand_left, s.link_left, b.edge, b.room
    used_at, used_work, used_tenant = b.used_at, b.used_work, b.used_tenant
    flow_edge, flow_tenant, flow_rate = s.flow_edge, s.flow_tenant, s.flow_rate
    c = a.column_content[k]
    gain = 0.0
    num = 0
    for i in range(num_used):
        if num == flow_edge.shape[1]:
            break
        e = b_edge[used_at[i]]
        d, p, t = edge_demand[e], edge_path[e], used_tenant[i]
        service = a.content_service[c, t]
        there, back = a.there[service], a.back[service]
        first, last = path_start[p], path_start[p + 1]
        work = min(used_work[i], demand_left[d])
        work = room_on_path(work, there, back, first, last, path_hop, path_back, link_left)
        if work <= NOTHING * offered[d]:
            b_room[used_at[i]] = 0.0
            continue
        demand_left[d] -= work
        for h in range(first, last):
            link_left[path_hop[h]] -= work * there
            link_left[path_back[h]] -= work * back
        flow_edge[x, num] = e
        flow_tenant[x, num] = t
        flow_rate[x, num] = work
        num += 1
        gain += work * earns(a, k, t)
    if num == 0:
        return 0.0
    s.column[x] = k
    s.num_flows[x] = num
    s.gain[x] = gain
    occupy(a, s, q, k, 1)
    return gain


@njit(cache=True, nogil=True)
def refresh(a, b, s, n, k):
    """Bring the bench's rooms of the services of column k up to what is left."""
    c = a.column_content[k]
    edge_demand, edge_path, offered = a.edge_demand, a.edge_path, a.offered
    path_start, path_hop, path_back = a.path_start, a.path_hop, a.path_back
    demand_left, link_left, b_edge, b_room, b_q = s.demand_left, s.link_left, b.edge, b.room, b.q
    for t in range(a.content_service.shape[1]):
        service = a.content_service[c, t]
        if service < 0:
            break
        seg = a.seg_at[n, service] - a.server_seg[n]
        there, back, limit = a.there[service], a.back[service], a.service_worth[service]
        most = 0.0
        at = b.start[seg]
        least = np.inf
        for i in range(b.start[seg], b.start[seg + 1]):
            e = b_edge[i]
            d, p = edge_demand[e], edge_path[e]
            room = demand_left[d]
            if room > NOTHING * offered[d]:
                first, last = path_start[p], path_start[p + 1]
                room = room_on_path(room, there, back, first, last, path_hop, path_back, link_left)
            b_room[i] = room if room > NOTHING * offered[d] else 0.0
            if b_room[i] > 0.0:
                most += (limit - b_q[i]) * b_room[i]
                least = min(least, b_q[i])
                at += 1
        b.least_q[service] = least
        b.most[service] = most


@njit(cache=True, nogil=True)
def choose(a, b, s, n, list_start, listed, noise, rng):
    """The pool and column of highest gain per device at server n, among those listed; (-1, -1) where nothing gains."""
    width = a.content_service.shape[1]
    services, works, worths = a.content_service.ravel(), a.content_work.ravel(), a.content_worth.ravel()
    fresh, content_devices, column_content = b.fresh, a.content_devices, a.column_content
    column_loaded, column_class, class_left = a.column_loaded, a.column_class, s.class_left
    column_moves, column_exceeds, moves = a.column_moves, a.column_exceeds, s.moves_left[0]
    least_q, most, gains = b.least_q, b.most, b.gains
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
    best_k, best_q, best_score = -1, -1, 0.0
    for q in range(a.server_pool[n], a.server_pool[n + 1]):
        left = s.devices_left[q]
        if left == 0:
            continue
        for j in range(list_start[q], list_start[q + 1]):
            k = listed[j]
            c = column_content[k]
            size = content_devices[c]
            if size > left or (column_class[k] >= 0 and class_left[column_class[k]] == 0) or column_moves[k] > moves:
                continue
            if column_exceeds[k] > 0 and size > room_beside(s.level_left, a.level_start[q], column_exceeds[k], left):
                continue
            loaded = column_loaded[k]
            limit = 0.0  # pricing.most_of_a_copy, by hand
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
            if limit <= 0.0 or limit * (1.0 + noise) <= best_score * size:
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
                1,
                -1.0,
                gains,
                nothing,
                no_work,
                nothing,
            )
            if num == 0:
                continue
            score = gains[0] / size
            if noise > 0.0:
                score *= 1.0 + noise * (2.0 * unit(rng) - 1.0)
            if score > best_score:
                best_k, best_q, best_score = k, q, score
    return best_q, best_k


@njit(cache=True, nogil=True)
def build_server(a, b, s, n, list_start, listed, theta, noise, rng, pi, cost_there, cost_back):
    """Fill the free devices of server n; see the module. Returns what the new groups earn."""
    free = 0
    for q in range(a.server_pool[n], a.server_pool[n + 1]):
        free += s.devices_left[q]
    if free == 0 or sort_rooms(a, b, s, n, theta, pi, cost_there, cost_back) == 0:
        return 0.0
    earned = 0.0
    in_vain = 0
    while free > 0 and in_vain < 3:
        q, k = choose(a, b, s, n, list_start, listed, noise, rng)
        if k < 0:
            break
        x = s.pool_slot[q]
        while s.column[x] >= 0:
            x += 1
        gain = fill_slot(a, b, s, n, q, x, k)
        refresh(a, b, s, n, k)
        if gain <= 0.0:
            in_vain += 1  # shared links were narrower than each edge alone
            continue
        free -= a.content_devices[a.column_content[k]]
        earned += gain
    return earned


@njit(cache=True, nogil=True)
def put(a, s, q, k, edges, tenants, rates):
    """A group of column k in a free slot of pool q, serving these edges as far as demand, links and its time allow.

    Stays empty where it would serve nothing.
    """
    c = a.column_content[k]
    busy = 0.0
    for i in range(len(edges)):
        busy += rates[i] / a.content_work[c, tenants[i]]
    part = 1.0 if busy <= 1.0 else 1.0 / busy
    x = s.pool_slot[q]
    while s.column[x] >= 0:
        x += 1
    num = 0
    gain = 0.0
    for i in range(len(edges)):
        e = edges[i]
        d, p, service = a.edge_demand[e], a.edge_path[e], a.edge_service[e]
        there, back = a.there[service], a.back[service]
        first, last = a.path_start[p], a.path_start[p + 1]
        work = min(part * rates[i], s.demand_left[d])
        work = room_on_path(work, there, back, first, last, a.path_hop, a.path_back, s.link_left)
        if work <= NOTHING * a.offered[d] or num == s.flow_edge.shape[1]:
            continue
        s.demand_left[d] -= work
        for h in range(first, last):
            s.link_left[a.path_hop[h]] -= work * there
            s.link_left[a.path_back[h]] -= work * back
        s.flow_edge[x, num] = e
        s.flow_tenant[x, num] = tenants[i]
        s.flow_rate[x, num] = work
        num += 1
        gain += work * earns(a, k, tenants[i])
    if num == 0:
        return
    s.column[x] = k
    s.num_flows[x] = num
    s.gain[x] = gain
    occupy(a, s, q, k, 1)


@njit(cache=True, nogil=True)
def construct(a, b, s, order, list_start, listed, theta, noise, rng, pi, cost_there, cost_back):
    """Build these servers in order at theta of the columns listed, then again at 0 of all. Returns the gain."""
    earned = 0.0
    for n in order:
        earned += build_server(a, b, s, n, list_start, listed, theta, noise, rng, pi, cost_there, cost_back)
    for n in order:
        earned += build_server(a, b, s, n, a.pool_column, a.every_column, 0.0, 0.0, rng, pi, cost_there, cost_back)
    return earned


@njit(cache=True, nogil=True)
def priced_gain(a, s, n, pi, cost_there, cost_back):
    """What the groups of server n earn, less the price of what they use."""
    total = 0.0
    for q in range(a.server_pool[n], a.server_pool[n + 1]):
        for x in range(s.pool_slot[q], s.pool_slot[q + 1]):
            total += s.gain[x]
            for f in range(s.num_flows[x]):
                e = s.flow_edge[x, f]
                p, service = a.edge_path[e], a.edge_service[e]
                total -= s.flow_rate[x, f] * (
                    pi[a.edge_demand[e]] + a.there[service] * cost_there[p] + a.back[service] * cost_back[p]
                )
    return total


@njit(cache=True, nogil=True)
def regrets(a, s, packing_value, pi, cost_there, cost_back, regret):
    """Writes how far every server is from its best packing under these prices (N,)."""
    for n in range(len(regret)):
        regret[n] = packing_value[n] - priced_gain(a, s, n, pi, cost_there, cost_back)


@njit(cache=True, nogil=True)
def repack(
    a,
    b,
    s,
    spare,
    rounds,
    region,
    mine,
    list_start,
    listed,
    demand_start,
    demand_edge,
    edge_server,
    packing_value,
    regret,
    rng,
    pi,
    cost_there,
    cost_back,
    heat,
    stop,
):
    """`rounds` of ruin and recreate on s; stop[0] > 0 ends it. Returns (rounds done, improvements, gained).

    spare: a Packing's slots of MAX_RUINED servers, to undo from. demand_edge: edges of each demand, nearest first.
    region: (N,) only servers of region `mine` are taken apart.
    heat: a loss of so much is accepted with probability 1 / e (simulated annealing); 0 accepts none.
    """
    num_demands = len(a.offered)
    ruined = np.zeros(MAX_RUINED, dtype=np.int64)
    order = np.zeros(MAX_RUINED, dtype=np.int64)
    gained = 0.0
    improved = 0
    for round_ in range(rounds):
        if stop[0] > 0:
            return round_, improved, gained
        centre = -1
        if unit(rng) < 0.6:  # where the bound says that most is to be had
            centre = below(rng, len(regret))
            for _ in range(3):
                other = below(rng, len(regret))
                if region[other] == mine and (region[centre] != mine or regret[other] > regret[centre]):
                    centre = other
            first, last = a.seg_start[a.server_seg[centre]], a.seg_start[a.server_seg[centre + 1]]
            d = a.edge_demand[first + below(rng, last - first)]
        else:  # or where demand is left
            d = below(rng, num_demands)
            for _ in range(3):
                if s.demand_left[d] > 1e-3 * a.offered[d]:
                    break
                d = below(rng, num_demands)
        near = demand_start[d + 1] - demand_start[d]
        if near == 0:
            continue
        want = 1 + below(rng, MAX_RUINED - 1)
        reach = min(near, want + 1 + below(rng, 8))
        num = 0
        if centre >= 0 and region[centre] == mine:
            ruined[0] = centre
            num = 1
        for _ in range(3 * want if num < want else 0):
            n = edge_server[demand_edge[demand_start[d] + below(rng, reach)]]
            known = region[n] != mine
            for i in range(num):
                known = known or ruined[i] == n
            if not known:
                ruined[num] = n
                num += 1
                if num == want:
                    break
        if num == 0:
            continue
        keep = 0.6 * unit(rng) if unit(rng) < 0.5 else 0.0
        before = 0.0
        saved = 0
        for i in range(num):
            n = ruined[i]
            for q in range(a.server_pool[n], a.server_pool[n + 1]):
                for x in range(s.pool_slot[q], s.pool_slot[q + 1]):
                    copy_slot(s, x, spare, saved)
                    saved += 1
                    before += s.gain[x]
                    if s.column[x] >= 0 and unit(rng) >= keep:
                        clear_slot(a, s, q, x)
        pick = unit(rng)
        theta = 0.0 if pick < 0.2 else (0.9 if pick < 0.6 else 0.9 * unit(rng))
        noise = 0.0 if unit(rng) < 0.3 else 0.4 * unit(rng)
        order[:num] = ruined[:num]
        for i in range(num - 1, 0, -1):
            j = below(rng, i + 1)
            order[i], order[j] = order[j], order[i]
        construct(a, b, s, order[:num], list_start, listed, theta, noise, rng, pi, cost_there, cost_back)
        after = 0.0
        for i in range(num):
            n = ruined[i]
            for q in range(a.server_pool[n], a.server_pool[n + 1]):
                for x in range(s.pool_slot[q], s.pool_slot[q + 1]):
                    after += s.gain[x]
        if after >= before + heat * np.log(unit(rng) + 1e-300):
            improved += after > before * (1.0 + 1e-12)
            gained += after - before
            for i in range(num):
                n = ruined[i]
                regret[n] = packing_value[n] - priced_gain(a, s, n, pi, cost_there, cost_back)
            continue
        for i in range(num):
            n = ruined[i]
            for q in range(a.server_pool[n], a.server_pool[n + 1]):
                for x in range(s.pool_slot[q], s.pool_slot[q + 1]):
                    clear_slot(a, s, q, x)
        saved = 0
        for i in range(num):
            n = ruined[i]
            for q in range(a.server_pool[n], a.server_pool[n + 1]):
                for x in range(s.pool_slot[q], s.pool_slot[q + 1]):
                    restore_slot(a, s, q, x, spare, saved)
                    saved += 1
    return rounds, improved, gained
