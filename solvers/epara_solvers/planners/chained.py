"""The column engine on problems with chains over several servers.

1. Prices and a placement without chains, on all devices.
2. Chains that are worth more than what their devices and links earn under prices: those that a small integer program
   takes together, then any that still pay, one after the other.
3. The engine again, on what the chains leave; the best of all placements goes on. 2 and 3 under the prices of 1, under
   those that prove the least (prices that fit an edge without chains may value devices at nothing), and under those of
   what the best chains left.
4. While time remains: one chain less, or one more in place of those in its way, what is left solved anew from the
   prices so far; kept where the whole earns more. At most `MAX_TRIES`.

The bound is the lowest that any of the prices met on the way prove with `price_chains`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from epara_opt.formulation.compact import Column, chain_columns
from epara_opt.placement import Placement, value
from epara_opt.plan import Plan
from epara_solvers.columns.arrays import Ground, ground_of
from epara_solvers.columns.chained import ChainPrices, choose, inside_servers, net_gain, price_chains, together
from epara_solvers.columns.dual import Priced, Prices
from epara_solvers.columns.engine import Budget, solve
from epara_solvers.planners.chains import Room, offer, with_chains

FIRST_PART = 0.35  # of the time, without chains
VIEW_PART = 0.15  # beside chains chosen under one set of prices
TOGETHER_S, TOGETHER_PART = 2.0, 0.1  # at most, and of the time left, for choosing chains together
MAX_TRIES = 16
COUNTED_TRIES = 3  # under a budget of counts
LEAST_TRY_S = 0.3
SAFETY = 1.5  # times what a try took so far beside the engine's own time
LEAST_S = 0.03  # for the engine, to be worth starting it
TRIED_MORE = 8  # chains that the first choice left out, the nearest to paying first


@dataclass(frozen=True, slots=True, kw_only=True)
class SolvedWithChains:
    placement: Placement
    value: float
    priced_chains: ChainPrices  # what proves the bound
    priced: Priced | None  # at prices without chains; None where nothing runs inside servers


def solve_with_chains(
    ground: Ground,
    budget: Budget,
    *,
    seed: int,
    threads: int,
    start: Prices | None,
    in_force: Plan | None,
    gap: float,
    can_try: bool,
    clock: Callable[[], float] = time.monotonic,
) -> SolvedWithChains:
    """The engine for problems with chains. can_try: False leaves out step 4, where an exact search follows."""
    run = _Run(ground, budget, seed, threads, in_force, gap, clock)
    run.without_chains(start)
    run.under_all_prices()
    if can_try:
        run.try_others()
    return SolvedWithChains(placement=run.best, value=run.best_value, priced_chains=run.bound, priced=run.priced)


class _Run:
    def __init__(
        self,
        ground: Ground,
        budget: Budget,
        seed: int,
        threads: int,
        in_force: Plan | None,
        gap: float,
        clock: Callable[[], float],
    ) -> None:
        a = ground.arrays
        self._ground, self._problem, self._budget = ground, ground.problem, budget
        self._seed, self._threads, self._in_force, self._gap, self._clock = seed, threads, in_force, gap, clock
        self._ends_at = clock() + budget.time_limit_s
        self._counted = budget.steps is not None and budget.rounds is not None
        self.columns = chain_columns(self._problem)
        self.prices = Prices(np.zeros(len(a.offered)), np.zeros(len(a.link_width)))
        self.best = Placement(groups=(), flows=())
        self.best_value = 0.0
        self.taken: list[Column] = []
        at = clock()
        self.bound = price_chains(ground, self.columns, self.prices)
        self._around_s = 2.0 * (clock() - at)  # that a try takes beside the engine's own time; measured as it goes
        self._latest = self._view = self._best_left = self.bound
        self.priced: Priced | None = None

    def _left_s(self) -> float:
        return self._ends_at - self._clock()

    def _budget_of(self, part: float) -> Budget:
        return replace(self._budget, time_limit_s=max(LEAST_S, part * self._budget.time_limit_s))

    @property
    def _link_price(self) -> Mapping[tuple[str, str], float]:
        return dict(zip(self._ground.table.link_ends, self._view.prices.beta.tolist(), strict=True))

    def without_chains(self, start: Prices | None) -> None:
        """Step 1."""
        placement = Placement(groups=(), flows=())
        if len(self._ground.arrays.column_content):
            solved = solve(
                self._ground,
                self._budget_of(FIRST_PART),
                seed=self._seed,
                threads=self._threads,
                start=start,
                in_force=self._in_force,
                gap=self._gap,
                clock=self._clock,
            )
            self.prices, self.priced, placement = solved.prices, solved.priced, solved.placement
            self._prove(self.prices)
            self._view = self._best_left = self._latest
        self._keep(with_chains(self._problem, placement), [])

    def under_all_prices(self) -> None:
        """Steps 2 and 3."""
        seen: list[ChainPrices] = []
        for pick in (lambda: self._latest, lambda: self.bound, lambda: self._best_left):
            self._view = pick()
            if self._view in seen or self._closed():
                continue
            seen.append(self._view)
            limit_s = TOGETHER_S if self._counted else min(TOGETHER_S, TOGETHER_PART * self._left_s())
            view = self._view
            chosen = together(self._problem, self.columns, self._link_price, view.values, time_limit_s=limit_s)
            if self.beside_chains(chosen, slice_s=VIEW_PART * self._budget.time_limit_s):
                self._best_left = self._latest

    def beside_chains(self, first: Sequence[Column], never: Sequence[Column] = (), *, slice_s: float) -> bool:
        """Steps 2 and 3, with some chains taken first and others never. Whether it is the best so far.

        slice_s: for the engine, less where that would end late; without the time for it nothing is done.
        """
        started = self._clock()
        slice_s = min(slice_s, self._left_s() - SAFETY * self._around_s)
        if slice_s < LEAST_S and not self._counted:
            return False
        spent_s = 0.0
        chains, taken = choose(self._problem, self.columns, self._view, self._link_price, first=first, never=never)
        inside = Placement(groups=(), flows=())
        if self._some_device_is_left(chains):
            rest = ground_of(inside_servers(self._problem, chains))
            if len(rest.arrays.column_content):
                at = self._clock()
                solved = solve(
                    rest,
                    replace(self._budget, time_limit_s=max(LEAST_S, slice_s)),
                    seed=self._seed,
                    threads=self._threads,
                    start=self.prices,
                    in_force=self._in_force,
                    gap=self._gap,
                    clock=self._clock,
                )
                spent_s = self._clock() - at
                inside = solved.placement
                self._prove(solved.prices)
        both = Placement(
            groups=(*chains.groups, *inside.groups),
            flows=(*chains.flows, *(replace(f, group=f.group + len(chains.groups)) for f in inside.flows)),
        )
        kept = self._keep(with_chains(self._problem, both), taken)
        self._around_s = max(self._around_s, self._clock() - started - spent_s)
        return kept

    def try_others(self) -> None:
        """Step 4."""
        tries = COUNTED_TRIES if self._counted else MAX_TRIES
        done: set[tuple[int, ...]] = set()
        while tries > 0 and not self._closed():
            todo = [t for t in self._alternatives() if _key(t) not in done]
            if not todo:
                return
            improved = False
            for first, never in todo:
                late = self._left_s() < LEAST_TRY_S + SAFETY * self._around_s
                if tries == 0 or self._closed() or (late and not self._counted):
                    return
                tries -= 1
                done.add(_key((first, never)))
                slice_s = max(LEAST_TRY_S, self._left_s() / 4)
                if self.beside_chains(first, never, slice_s=slice_s):
                    improved = True
                    break
            if not improved:
                return

    def _alternatives(self) -> list[tuple[list[Column], list[Column]]]:
        """(taken first, never taken): chosen one after the other; those in use with one less, and with one more."""
        one_by_one: list[tuple[list[Column], list[Column]]] = [([], [])] if self.taken else []
        fewer = [([c for j, c in enumerate(self.taken) if j != i], [column]) for i, column in enumerate(self.taken)]
        empty = Room.beside(self._problem, Placement(groups=(), flows=()))
        nets: list[tuple[float, int]] = []
        for i, column in enumerate(self.columns):
            found = offer(self._problem, column, empty)
            if found is not None and column not in self.taken:
                nets.append((-net_gain(self._problem, found, self._view.values, {}, self._link_price), i))
        more = [([self.columns[i], *self.taken], list[Column]()) for _, i in sorted(nets)[:TRIED_MORE]]
        return (
            one_by_one
            + [x for pair in zip(fewer, more, strict=False) for x in pair]
            + fewer[len(more) :]
            + more[len(fewer) :]
        )

    def _some_device_is_left(self, chains: Placement) -> bool:
        given = sum(g.content.num_devices for g in chains.groups)
        return given < sum(p.count for s in self._problem.topology.servers.values() for p in s.devices)

    def _closed(self) -> bool:
        return self.best_value >= self.bound.bound * (1.0 - self._gap)

    def _prove(self, prices: Prices) -> None:
        found = price_chains(self._ground, self.columns, prices)
        self._latest = found
        if found.bound < self.bound.bound:
            self.bound = found

    def _keep(self, placement: Placement, taken: list[Column]) -> bool:
        reached = value(self._problem, placement)
        if reached <= self.best_value * (1.0 + 1e-9):
            return False
        self.best, self.best_value, self.taken = placement, reached, taken
        return True


def _key(alternative: tuple[Sequence[Column], Sequence[Column]]) -> tuple[int, ...]:
    first, never = alternative
    return (*sorted(c.index for c in first), -1, *sorted(c.index for c in never))
