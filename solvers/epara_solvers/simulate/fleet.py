"""A plan's replicas in arrays, as the simulation reads them. What it keeps of the executors, and what it simplifies:

- A request tries a route of its origin, drawn in proportion to the plan's rates, then the others in turn (at most
  MAX_TRIES), as the executors' handler does; each admits it only if it would be on time (`policy.admission`). Where
  none does it is refused. Knowledge is fresh; peers without a route are not asked.
- The network's time is taken off the deadline instead of being waited for: arrivals of different origins are
  independent, and a shift by milliseconds changes no distribution. So one clock serves all servers.
- Tenants of one group take turns at batch boundaries, the most urgent first; batches form by `policy.batching`, except
  that none is sent ahead of time to a busy worker. A batch takes what its profile says for its actual size, linear
  between measured points; the next may start after the profile's interval (pipelines: before it ends).
- A stream keeps the routes that `policy.routing.StreamTable` would give it.
- Text generation runs in batch x pp slots: a generation takes a free slot, or the one that is free soonest, first come
  first served, and lasts n prefill + O step(n) with n the slots taken when it starts (per pipeline stage). Its answer
  is due after wait + prefill (first token) or wait + all of it, as in `domain.performance`. Time per token is a law of
  the configuration, which the checker keeps; here it is not looked at.
- Where generations share a group with others, steps and batches interleave too finely to follow: each tenant is as much
  slower as the others' planned part of the time.
- A chain over several servers takes what it takes when full, whatever the size of its batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from epara_opt.chains import chain_performance
from epara_opt.control.routing import stages_of
from epara_opt.domain.performance import evaluate
from epara_opt.domain.profile import Curve, Profile, ProfileCatalogue
from epara_opt.domain.service import Service
from epara_opt.domain.topology import Topology
from epara_opt.plan import Plan, Replica, Route
from epara_opt.policy.routing import SmoothWeighted
from epara_solvers.simulate.arrivals import Arrivals

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

SLACK_S = 1e-9  # instants are sums of floats; a deadline is met within this
LEAST_PART = 0.05  # of its group's time, that a tenant always has
TURNS = 64  # frames after which a stream's turns over several routes begin anew


class FleetArrays(NamedTuple):
    """R replicas by group and id, G groups, E entries of demand, W routes by entry. A tuple: kernels take it whole."""

    group_first: I64  # (G + 1,)
    group: I64  # (R,)
    slots: I64  # (R,) of a generation; 0: batches
    max_rows: I64  # (R,) batch x frames; the slots of a generation
    frames: I64  # (R,)
    window_s: F64  # (R,)
    batch_s: F64  # (R,) a full batch
    curve_first: I64  # (R,) index of what a batch of 0 items takes; of n items: n further
    answer_s: F64  # batch: first stage to last; generation: until the answer that counts
    hold_s: F64  # batch: until the next may start; generation: of its slot
    queue_first: I64  # (R + 1,) room for what waits
    route_first: I64  # (E + 1,)
    route_replica: I64  # (W,)
    route_slack_s: F64  # (W,) deadline less the network's time


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """A plan ready to be simulated, for the entries of demand named."""

    entries: tuple[tuple[str, str], ...]
    replicas: tuple[str, ...]  # ids, in the order of the arrays
    arrays: FleetArrays
    rates: tuple[tuple[float, ...], ...]  # (E,) of the entry's routes, work per second
    offered: tuple[float, ...]  # (E,) work per second


def fleet_of(
    plan: Plan,
    topology: Topology,
    catalogue: ProfileCatalogue,
    entries: Sequence[tuple[str, str]],
    offered: Mapping[tuple[str, str], float],
) -> Fleet:
    """The arrays of a plan. Every replica must have a profile (the checker has seen to it)."""
    replicas = sorted(plan.replicas, key=lambda r: (r.group, r.id))
    index = {r.id: i for i, r in enumerate(replicas)}
    groups = sorted({r.group for r in replicas})
    number = {g: i for i, g in enumerate(groups)}
    group = np.array([number[r.group] for r in replicas], dtype=np.int64)
    parts = _parts(plan, topology, catalogue)
    rows = [_row(r, topology, catalogue, parts) for r in replicas]
    routes: dict[tuple[str, str], list[Route]] = {}
    for route in plan.routes:
        routes.setdefault((route.service, route.origin), []).append(route)
    mine = [sorted(routes.get(e, ()), key=lambda x: x.replica) for e in entries]
    flat = [x for xs in mine for x in xs]
    slack_s = np.array([(topology.services[x.service].deadline_ms - x.network_ms) / 1000.0 for x in flat])
    target = np.array([index[x.replica] for x in flat], dtype=np.int64)
    lengths = [len(r.answer_s) for r in rows]
    arrays = FleetArrays(
        group_first=np.searchsorted(group, np.arange(len(groups) + 1)),
        group=group,
        slots=np.array([r.slots for r in rows], dtype=np.int64),
        max_rows=np.array([r.max_rows for r in rows], dtype=np.int64),
        frames=np.array([r.frames for r in rows], dtype=np.int64),
        window_s=np.array([r.window_s for r in rows], dtype=np.float64),
        batch_s=np.array([r.answer_s[-1] for r in rows], dtype=np.float64),
        curve_first=_starts(lengths)[:-1],
        answer_s=np.array([s for r in rows for s in r.answer_s], dtype=np.float64),
        hold_s=np.array([s for r in rows for s in r.hold_s], dtype=np.float64),
        queue_first=_starts(_queue_rooms(rows, target, slack_s)),
        route_first=_starts([len(xs) for xs in mine]),
        route_replica=target,
        route_slack_s=slack_s,
    )
    return Fleet(
        entries=tuple(entries),
        replicas=tuple(index),
        arrays=arrays,
        rates=tuple(tuple(x.rate for x in xs) for xs in mine),
        offered=tuple(offered.get(e, 0.0) for e in entries),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    slots: int
    max_rows: int
    frames: int
    window_s: float
    answer_s: tuple[float, ...]  # by items, from 0
    hold_s: tuple[float, ...]


def _row(r: Replica, topology: Topology, catalogue: ProfileCatalogue, parts: Mapping[str, float]) -> _Row:
    service = topology.services[r.service]
    if r.stages:
        return _chain_row(r, service, topology, catalogue)
    profile = catalogue.shapes(service.model.profile_name, r.device_type)[r.tp, r.pp]
    slower = 1.0 / max(LEAST_PART, 1.0 - parts.get(r.id, 0.0))
    if profile.generates:
        answer_s, hold_s = _generation_s(service, profile, r, slower)
        return _Row(
            slots=r.batch * r.pp, max_rows=r.batch * r.pp, frames=1, window_s=0.0, answer_s=answer_s, hold_s=hold_s
        )
    items = range(1, r.batch * r.frames + 1)
    return _Row(
        slots=0,
        max_rows=r.batch * r.frames,
        frames=r.frames,
        window_s=(r.frames - 1) / service.fps if service.fps else 0.0,
        answer_s=(0.0, *(_at(profile.latency_ms, n) * slower / 1000.0 for n in items)),
        hold_s=(0.0, *(_at(profile.interval_ms, n) * slower / 1000.0 for n in items)),
    )


def _chain_row(r: Replica, service: Service, topology: Topology, catalogue: ProfileCatalogue) -> _Row:
    """A chain as full as it may be: its first stage takes the next batch, or slot, as often as its rate says."""
    found, _ = chain_performance(topology, catalogue, service, stages_of(r), r.config)
    whole, rows = found.whole, r.batch * r.frames
    generates = whole.tpot_ms > 0
    slots = max(1, round(whole.work_per_s * whole.batch_ms / 1000.0)) if generates else 0
    answer_s = (whole.response_ms if generates else whole.batch_ms) / 1000.0
    hold_s = whole.batch_ms / 1000.0 if generates else rows / (whole.work_per_s * service.events_per_work)
    items = slots or rows
    return _Row(
        slots=slots,
        max_rows=items,
        frames=1 if generates else r.frames,
        window_s=(r.frames - 1) / service.fps if service.fps else 0.0,
        answer_s=(0.0, *[answer_s] * items),
        hold_s=(0.0, *[hold_s] * items),
    )


def _generation_s(
    service: Service, profile: Profile, r: Replica, slower: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """By slots taken: seconds to the answer that counts, and for which the slot is held."""
    prefill_ms = profile.prefill_ms.at(service.request.prompt_tokens)
    answer, hold = [0.0], [0.0]
    for taken in range(1, r.batch * r.pp + 1):
        n = math.ceil(taken / r.pp)
        step_ms = _at(profile.decode_step_ms, n)
        whole_ms = n * prefill_ms + service.request.output_tokens * step_ms
        wait_ms = max(prefill_ms, step_ms)
        answer.append((wait_ms + (whole_ms if service.ttft_ms is None else prefill_ms)) * slower / 1000.0)
        hold.append(whole_ms * slower / 1000.0)
    return tuple(answer), tuple(hold)


def _at(curve: Curve, items: int) -> float:
    """Below what was measured a batch takes as long as the smallest measured one."""
    return curve.at(max(items, curve.x[0]))


def _parts(plan: Plan, topology: Topology, catalogue: ProfileCatalogue) -> dict[str, float]:
    """By replica of a group in which something generates: the others' planned part of its time."""
    rate: dict[str, float] = {}
    for x in plan.routes:
        rate[x.replica] = rate.get(x.replica, 0.0) + x.rate
    by_group: dict[str, list[Replica]] = {}
    for r in plan.replicas:
        by_group.setdefault(r.group, []).append(r)
    parts: dict[str, float] = {}
    for members in by_group.values():
        if len(members) == 1:
            continue
        profiles = {
            r.id: catalogue.shapes(topology.services[r.service].model.profile_name, r.device_type)[r.tp, r.pp]
            for r in members
        }
        if not any(p.generates for p in profiles.values()):
            continue
        busy = {
            r.id: rate.get(r.id, 0.0) / evaluate(topology.services[r.service], profiles[r.id], r.config).work_per_s
            for r in members
        }
        parts |= {r.id: sum(busy.values()) - busy[r.id] for r in members}
    return parts


def _queue_rooms(rows: Sequence[_Row], target: I64, slack_s: F64) -> list[int]:
    """Rows that admission could ever let wait: what a full replica does within the longest slack, twice over."""
    longest = np.zeros(len(rows))
    np.maximum.at(longest, target, slack_s)
    return [
        r.slots if r.slots else 2 * r.max_rows * (1 + math.ceil(float(s) / r.answer_s[-1])) + 2
        for r, s in zip(rows, longest, strict=True)
    ]


def _starts(lengths: Sequence[int]) -> I64:
    return np.concatenate(([0], np.cumsum(np.array(lengths, dtype=np.int64)))).astype(np.int64)


def first_routes(fleet: Fleet, arrivals: Arrivals, *, planned_only: bool) -> I64:
    """(N,) the route that each arrival tries first; -1: none.

    planned_only: what the plan leaves unserved is refused at the door; else it is tried too, as executors do.
    """
    first = np.full(len(arrivals), -1, dtype=np.int64)
    starts = fleet.arrays.route_first
    order, ends = arrivals.by_entry, arrivals.entry_ends
    for e, rates in enumerate(fleet.rates):
        mine = order[ends[e] : ends[e + 1]]
        if not rates or not len(mine):
            continue
        whole = max(sum(rates), fleet.offered[e]) if planned_only else sum(rates)
        if arrivals.stream[mine[0]] >= 0:
            _route_streams(first, mine, arrivals, int(starts[e]), rates, planned_only=planned_only)
            continue
        upto = np.cumsum(np.array(rates)) / whole
        if whole <= sum(rates):
            upto[-1] = 1.0
        chosen = np.searchsorted(upto, arrivals.draw[mine], side="right")
        first[mine] = np.where(chosen < len(rates), starts[e] + chosen, -1)
    return first


def _route_streams(
    first: I64, mine: I64, arrivals: Arrivals, start: int, rates: Sequence[float], *, planned_only: bool
) -> None:
    """As policy.routing.StreamTable assigns them, in the order of their numbers; rates in streams."""
    free = list(rates)
    streams = arrivals.stream[mine]
    for s in np.unique(streams).tolist():
        frames = mine[streams == s]
        need, shares = 1.0, dict[int, float]()
        for k in sorted(range(len(free)), key=lambda k: (-free[k], k)):
            share = min(need, free[k]) if free[k] > 0 else (need if not shares else 0.0)
            if need <= 1e-6 or share <= 0:
                break
            if planned_only and free[k] <= 1e-9:
                break
            shares[k] = share
            need -= share
        for k, share in shares.items():
            free[k] -= share
        if not shares:
            continue
        if planned_only and need > 1e-6:
            shares[-1 - start] = need  # that part of its frames has no route
        turns = SmoothWeighted({str(k): w for k, w in shares.items()})
        chosen = [int(turns.choose() or 0) for _ in range(TURNS if len(shares) > 1 else 1)]
        first[frames] = start + np.resize(np.array(chosen, dtype=np.int64), len(frames))
