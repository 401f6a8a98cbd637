"""EPARA's placement rule, our reading of it: place what adds most goodput, again and again.

EPARA (arXiv 2511.00603) says that it places "submodularly"; its text was not at hand. We read: repeatedly add the
(server, content, resident) with the largest marginal priced goodput, given the demand, devices and bandwidth that
are left. `per_device` divides the gain by the devices it takes, the rule for packing under a budget.

Goodput as a function of the *set* of placed groups is monotone and, with demand re-routed at best after each
addition, submodular: one more group is worth less the more others stand. Then greedy by gain reaches 1/2 of the
optimum under the servers' device counts when all groups are of one size (a partition matroid; Fisher, Nemhauser,
Wolsey 1978), and (1 - 1/e) under a single count. With groups of several sizes neither holds as it stands, and we
do not re-route after each addition, so we claim no bound: the plan says HEURISTIC.

Lazily evaluated after Minoux (1978): a gain computed earlier is at least what it is now, so only the top of a heap
needs to be computed anew. The heap holds servers, not candidates: all of a server's candidates are scored together.

`repack` then improves what greedy left, until its deadline: it empties a few neighbouring servers, fills them
again by the same rule with some noise, and keeps the better (ruin and recreate; Schrimpf et al. 2000).
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np

from epara_opt.placement import Placement, assemble
from epara_opt.plan import Plan, Stop
from epara_opt.problem import PlacementProblem
from epara_opt.unserved import explain_unserved
from epara_solvers.planners.board import Board, Move
from epara_solvers.planners.chains import with_chains
from epara_solvers.planners.options import Ground, Site
from epara_solvers.planners.spread import spread

STALE = 1e-9  # relative: a recomputed score this close to the old one is the same

Until = Callable[[], bool]  # whether time is up


def fill(board: Board, sites: list[Site], *, per_device: bool, time_is_up: Until, lean: dict[str, float]) -> None:
    """Place greedily on these sites until nothing gains. lean: factor on a server's scores, 1 where absent."""
    heap: list[tuple[float, int, int, Move]] = []  # (-score, site, moves made when it was computed, move)
    made = 0

    def push(order: int) -> None:
        found = board.best(sites[order], per_device=per_device)
        if found is not None:
            heapq.heappush(heap, (-found[0] * lean.get(sites[order].server, 1.0), order, made, found[1]))

    for order in range(len(sites)):
        if time_is_up():
            break
        push(order)
    while heap and not time_is_up():
        _, order, as_of, move = heapq.heappop(heap)
        if as_of == made:
            board.make(move)
            made += 1
        push(order)


def greedy(ground: Ground, *, per_device: bool, time_is_up: Until = lambda: False) -> Board:
    """The rule, run to its end."""
    board = Board(ground)
    fill(board, list(ground.sites), per_device=per_device, time_is_up=time_is_up, lean={})
    return board


def repack(board: Board, *, time_is_up: Until, rng: np.random.Generator, patience: int) -> int:
    """Improve a placement in place; how many rounds found something better. Never makes it worse.

    patience: ends after so many rounds in a row that found nothing.
    """
    sites = list(board.ground.sites)
    near = _neighbours(board.ground)
    improved = in_vain = 0
    while sites and in_vain < patience and not time_is_up():
        in_vain += 1
        centre = int(rng.integers(len(sites)))
        size = int(rng.integers(1, min(5, len(sites)) + 1))
        chosen = near[centre][:size]
        names = {sites[i].server for i in chosen}
        before = board.value
        kept_share = rng.uniform(0.0, 0.6)
        taken = [n for n, m in board.moves.items() if m.site.server in names and rng.random() >= kept_share]
        old = [board.take_back(n) for n in taken]
        fresh = set(board.moves)
        lean = {sites[i].server: float(rng.uniform(0.8, 1.25)) for i in chosen}
        order = [sites[i] for i in rng.permutation(chosen)]
        fill(board, order, per_device=bool(rng.random() < 0.8), time_is_up=time_is_up, lean=lean)
        if board.value > before * (1 + STALE):
            improved, in_vain = improved + 1, 0
            continue
        for number in [n for n in board.moves if n not in fresh]:
            board.take_back(number)
        for move in old:
            board.make(move)
    return improved


def _neighbours(ground: Ground) -> list[list[int]]:
    """For each site the others, nearest first."""
    table: list[list[int]] = []
    for site in ground.sites:
        far = [ground.problem.path(site.server, other.server) for other in ground.sites]
        rtt = [p.rtt_ms if p is not None else float("inf") for p in far]
        table.append(sorted(range(len(rtt)), key=lambda i: (rtt[i], i)))
    return table


class GreedyPlanner:
    """The greedy rule as a planner. Ends by itself; the time limit only cuts it short."""

    def __init__(
        self,
        *,
        per_device: bool = False,
        notes: tuple[str, ...] = (),  # for every plan, e.g. why it is greedy that plans
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._per_device = per_device
        self._notes = notes
        self._clock = clock
        self._wall = wall

    @property
    def name(self) -> str:
        return "greedy-density" if self._per_device else "greedy"

    def plan(
        self, problem: PlacementProblem, *, generation: int, time_limit_s: float, in_force: Plan | None = None
    ) -> Plan:
        started = self._clock()
        made_at = datetime.fromtimestamp(self._wall(), UTC).isoformat(timespec="seconds")
        late = False

        def time_is_up() -> bool:
            nonlocal late
            late = late or self._clock() - started >= time_limit_s
            return late

        if problem.demand:
            placement = greedy(Ground.of(problem), per_device=self._per_device, time_is_up=time_is_up).placement()
            placement = with_chains(problem, placement, time_is_up=time_is_up)
            stop = Stop.TIME_LIMIT if late else Stop.HEURISTIC
            placement = spread(problem, placement, time_is_up=time_is_up)
        else:
            placement, stop = Placement(groups=(), flows=()), Stop.NO_DEMAND
        return assemble(
            problem,
            placement,
            generation=generation,
            solver=self.name,
            stop=stop,
            dual_bound=0.0 if stop is Stop.NO_DEMAND else None,
            wall_s=self._clock() - started,
            unserved=explain_unserved(problem, placement, None),
            in_force=in_force,
            notes=self._notes,
            made_at=made_at,
        )
