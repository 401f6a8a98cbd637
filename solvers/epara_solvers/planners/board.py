"""A placement in the making: what is placed, and what demand, devices and links are left."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from epara_opt.formulation.program import FloatArray
from epara_opt.placement import Flow, PlacedGroup, Placement
from epara_opt.problem import Content, Resident
from epara_solvers.planners.options import NOTHING, Ground, Site

TRIED_EXACTLY = 6  # candidates of a site with the best scores, whose gain is worked out with shared links


@dataclass(frozen=True, slots=True)
class Move:
    """One group that could be placed now, and what it would carry."""

    site: Site
    content: Content
    resident: Resident | None
    carried: tuple[tuple[int, float], ...]  # index of the site's edge, work
    gain: float

    exceeded: int  # levels of the pool that are too little for it

    @property
    def pool(self) -> tuple[str, str]:
        return self.site.server, self.content.device_type


class Board:
    """Moves can be made and taken back in any order: each leaves what it took as it found it."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.demand_left: FloatArray = ground.offered.copy()
        self.link_left: FloatArray = ground.link_width.copy()
        self.devices_left = {
            (s.name, p.type): p.count for s in ground.problem.topology.servers.values() for p in s.devices
        }
        self._room = {pool: np.array(levels.devices) for pool, levels in ground.problem.levels.items()}  # per level
        self.moves: dict[int, Move] = {}  # by number, in the order made
        self._made = 0
        self._kept: set[str] = set()  # residents in use
        self._moves_left = math.inf if ground.problem.moves_allowed is None else ground.problem.moves_allowed

    @property
    def value(self) -> float:
        return sum(m.gain for m in self.moves.values())

    def best(self, site: Site, *, per_device: bool) -> tuple[float, Move] | None:
        """The site's best move now, and its score; None where nothing can be gained."""
        caps = site.caps(self.demand_left, self.link_left)
        before = np.concatenate(([0.0], np.cumsum(caps)))
        found: tuple[float, Move] | None = None
        for options in site.options:
            if options.resident is not None and options.resident.group in self._kept:
                continue
            free = self.devices_left[site.server, options.device_type]
            scores = np.where(options.num_devices <= free, options.scores(before), 0.0)
            if (room := self._room.get((site.server, options.device_type))) is not None:
                least = np.concatenate(([free], np.minimum.accumulate(room)))
                scores = np.where(options.num_devices <= least[options.exceeded], scores, 0.0)
            if self._moves_left < 1:
                scores = np.where(options.is_move, 0.0, scores)
            if per_device:
                scores = scores / options.num_devices
            for i in _largest(scores, TRIED_EXACTLY):
                if scores[i] <= 0.0 or (found is not None and scores[i] <= found[0]):
                    break
                move = self._move(site, options.contents[i], options.resident, int(options.exceeded[i]))
                score = move.gain / move.content.num_devices if per_device else move.gain
                if score > 0.0 and (found is None or score > found[0]):
                    found = (score, move)
        return found

    def _move(self, site: Site, content: Content, resident: Resident | None, exceeded: int) -> Move:
        """Fill one group: tenants by value per time, each from its nearest origins outward."""
        problem = self.ground.problem
        values = [problem.service(t.service).weight * problem.earning_share(t, resident) for t in content.tenants]
        order = sorted(range(len(values)), key=lambda i: -values[i] * content.tenants[i].work_per_s)
        time_left, gain = 1.0, 0.0
        carried: list[tuple[int, float]] = []
        link_left: dict[int, float] = {}
        for i in order:
            tenant = content.tenants[i]
            start, end = site.segment[tenant.service]
            room = time_left * tenant.work_per_s
            for e in range(end - 1, start - 1, -1):  # sorted by slack: the nearest come last
                if site.edges[e].slack_ms < tenant.response_ms or room <= 0.0:
                    break
                d = int(site.origin_index[e])
                rate = min(room, float(self.demand_left[d]))
                hops = [(int(h), float(b)) for h, b in zip(site.hop[e], site.bytes_per_work[e], strict=True)]
                for h, b in hops:
                    rate = min(rate, max(0.0, link_left.get(h, float(self.link_left[h]))) / b)
                if rate <= NOTHING * float(self.ground.offered[d]):
                    continue
                for h, b in hops:
                    link_left[h] = link_left.get(h, float(self.link_left[h])) - rate * b
                carried.append((e, rate))
                room -= rate
                gain += values[i] * rate
            time_left = max(0.0, room / tenant.work_per_s)
        return Move(site=site, content=content, resident=resident, carried=tuple(carried), gain=gain, exceeded=exceeded)

    def make(self, move: Move) -> None:
        self._take(move, 1.0)
        self._occupy(move, 1)
        self._moves_left -= self.ground.problem.is_move(move.content, move.resident)
        if move.resident is not None:
            self._kept.add(move.resident.group)
        self.moves[self._made] = move
        self._made += 1

    def take_back(self, number: int) -> Move:
        move = self.moves.pop(number)
        self._take(move, -1.0)
        self._occupy(move, -1)
        self._moves_left += self.ground.problem.is_move(move.content, move.resident)
        if move.resident is not None:
            self._kept.discard(move.resident.group)
        return move

    def _occupy(self, move: Move, sign: int) -> None:
        self.devices_left[move.pool] -= sign * move.content.num_devices
        if move.exceeded:
            self._room[move.pool][: move.exceeded] -= sign * move.content.num_devices

    def _take(self, move: Move, sign: float) -> None:
        site = move.site
        for e, rate in move.carried:
            self.demand_left[site.origin_index[e]] -= sign * rate
            if site.hop.shape[1]:
                np.subtract.at(self.link_left, site.hop[e], sign * rate * site.bytes_per_work[e])

    def placement(self) -> Placement:
        groups: list[PlacedGroup] = []
        flows: list[Flow] = []
        for move in self.moves.values():
            flows.extend(Flow(edge=move.site.edges[e], group=len(groups), rate=rate) for e, rate in move.carried)
            groups.append(PlacedGroup(server=move.site.server, content=move.content, resident=move.resident))
        return Placement(groups=tuple(groups), flows=tuple(flows))


def _largest(scores: FloatArray, count: int) -> list[int]:
    """Indexes of the largest scores, best first; equal ones in their order, so that a run can be repeated."""
    if len(scores) > 4 * count:
        bar = np.partition(scores, len(scores) - count)[len(scores) - count]
        near = np.flatnonzero(scores >= bar)[: 4 * count]
    else:
        near = np.arange(len(scores))
    return near[np.argsort(-scores[near], kind="stable")][:count].tolist()
