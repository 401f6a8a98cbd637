"""The column planner: the column engine, and on small problems an exact search from where it stands.

Every plan carries the prices that prove its bound (see epara_opt.certify). The next plan starts from the prices and the
replicas of the one in force: its bound is good at once, and what need not move does not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np

from epara_opt.certify import certificate_of, rounded
from epara_opt.placement import Placement, assemble, value, within_moves
from epara_opt.plan import Certificate, Plan, Stop
from epara_opt.problem import PlacementProblem
from epara_opt.unserved import explain_unserved
from epara_solvers.columns.arrays import Ground, ground_of
from epara_solvers.columns.dual import Priced, Pricer, Prices
from epara_solvers.columns.engine import Budget, Solved, solve
from epara_solvers.planners.chained import solve_with_chains
from epara_solvers.planners.exact import ExactPlanner, all_served
from epara_solvers.planners.spread import spread

EXACT_COLUMNS = 4_000  # up to which general solvers still find something that repacking does not (measured)
TINY_COLUMNS = 300  # up to which they prove optimality in a second
ENGINE_PART = 0.35  # of the time limit, before an exact search takes over
TINY_S = 0.3  # for the engine, where the exact search will prove the rest
RESERVE_S = 0.2
POST_S_PER_SERVER = 0.004  # kept back for decoding, proving, explaining and assembling: measured at 1,000 servers
POST_PER_GROUND = 8.0  # the same in units of what the arrays took to lay out: on a busy machine all of it takes longer,
MOST_POST = 3.0  # though not more often than so
SPREAD_PART, SPREAD_S = 0.05, 0.5  # of the time limit, and at most, kept back to use idle devices
SPREAD_SERVERS = 150  # beyond it no work is moved to idle devices: every move looks at every group
LATE_S, LATE_PART = 0.5, 1.05  # a plan that takes longer than both over its limit says so
CLOSED = 1e-6  # relative: bound and value have met
CONVERGED = 1e-4


Searched = tuple[Placement, Certificate, Mapping[str, float] | None]  # what was found, its proof, worth of scarce rows


class ColumnPlanner:
    """A planner of any size. exact: what takes over on small problems; None: the engine alone."""

    name = "columns"

    def __init__(
        self,
        *,
        exact: ExactPlanner | None = None,
        threads: int = 2,
        seed: int = 1,
        gap: float = CONVERGED,
        budget: Budget | None = None,  # by counts instead of the clock, so that runs can be repeated
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._exact = exact
        self._threads, self._seed, self._gap, self._budget = threads, seed, gap, budget
        self._clock, self._wall = clock, wall

    def close(self) -> None:
        if self._exact is not None:
            self._exact.close()

    def plan(
        self, problem: PlacementProblem, *, generation: int, time_limit_s: float, in_force: Plan | None = None
    ) -> Plan:
        started = self._clock()
        made_at = datetime.fromtimestamp(self._wall(), UTC).isoformat(timespec="seconds")
        ground = ground_of(problem)
        post_s = reserve_s(ground.num_servers, self._clock() - started)
        spread_s = min(SPREAD_S, SPREAD_PART * time_limit_s) if ground.num_servers <= SPREAD_SERVERS else 0.0

        def left_s() -> float:
            return time_limit_s - (self._clock() - started) - post_s - spread_s

        notes: tuple[str, ...] = ()
        certificate: Certificate | None = None
        prices: Mapping[str, float] | None = None
        if not problem.demand:
            placement, stop, bound = Placement(groups=(), flows=()), Stop.NO_DEMAND, 0.0
        elif not problem.chains.contents and not len(ground.arrays.column_content):
            placement, stop, bound = Placement(groups=(), flows=()), Stop.OPTIMAL, 0.0
            certificate = certificate_of(problem, {}, {}, bound=0.0)
        else:
            searched = self._with_chains if problem.chains.contents else self._inside_servers
            placement, certificate, prices = searched(ground, left_s(), in_force)
            bound = min(certificate.bound, all_served(problem))
            stop = self._stop(value(problem, placement), bound)
            open_ = stop is Stop.TIME_LIMIT or (stop is Stop.GAP_LIMIT and self._gap <= CONVERGED)
            if open_ and self._is_small(ground) and left_s() > RESERVE_S:
                placement, stop, bound, notes = self._finish(problem, placement, bound, left_s())
            bound = max(bound, value(problem, placement))
            if ground.num_servers <= SPREAD_SERVERS:
                placement = spread(problem, placement, time_is_up=lambda: left_s() + spread_s <= 0.0)
        made = assemble(
            problem,
            placement,
            generation=generation,
            solver=self.name,
            stop=stop,
            dual_bound=bound,
            wall_s=0.0,
            unserved=explain_unserved(problem, placement, prices),
            in_force=in_force,
            notes=notes,
            made_at=made_at,
            certificate=certificate,
        )
        wall_s = self._clock() - started
        return replace(made, wall_s=wall_s, notes=(*made.notes, *_late(wall_s, time_limit_s)))

    def _inside_servers(self, ground: Ground, left_s: float, in_force: Plan | None) -> Searched:
        solved = solve(
            ground,
            self._budget or Budget(time_limit_s=self._engine_s(ground, left_s)),
            seed=self._seed,
            threads=self._threads,
            start=prices_of(ground, in_force),
            in_force=in_force,
            gap=self._gap,
        )
        prices = scarcity_prices(ground, solved.prices, solved.priced)
        return solved.placement, prove(ground, solved.prices, threads=self._threads), prices

    def _with_chains(self, ground: Ground, left_s: float, in_force: Plan | None) -> Searched:
        small = self._is_small(ground)
        found = solve_with_chains(
            ground,
            self._budget or Budget(time_limit_s=self._engine_s(ground, left_s)),
            seed=self._seed,
            threads=self._threads,
            start=prices_of(ground, in_force),
            in_force=in_force,
            gap=self._gap,
            can_try=not small,
        )
        placement = within_moves(ground.problem, found.placement)
        prices = None if found.priced is None else scarcity_prices(ground, found.priced_chains.prices, found.priced)
        return placement, found.priced_chains.certificate(ground.problem, ground.table.link_ends), prices

    def _is_small(self, ground: Ground) -> bool:
        columns = len(ground.arrays.column_content) + len(ground.problem.chains.contents)
        return self._exact is not None and columns <= EXACT_COLUMNS

    def _engine_s(self, ground: Ground, left_s: float) -> float:
        if not self._is_small(ground):
            return max(0.05, left_s)
        part_s = max(0.05, ENGINE_PART * left_s)
        return min(part_s, TINY_S) if len(ground.arrays.column_content) <= TINY_COLUMNS else part_s

    def _stop(self, reached: float, bound: float) -> Stop:
        if reached >= bound * (1.0 - CLOSED):
            return Stop.OPTIMAL
        return Stop.GAP_LIMIT if reached >= bound * (1.0 - self._gap) else Stop.TIME_LIMIT

    def _finish(
        self, problem: PlacementProblem, placement: Placement, bound: float, time_limit_s: float
    ) -> tuple[Placement, Stop, float, tuple[str, ...]]:
        """An exact search from the engine's placement; both bounds hold, so the lower one does."""
        assert self._exact is not None
        found = self._exact.improve(problem, placement, time_limit_s=time_limit_s)
        bound = bound if found.dual_bound is None else min(bound, found.dual_bound)
        reached = value(problem, found.placement)
        stop = found.stop if found.stop is Stop.OPTIMAL else self._stop(reached, bound)
        proved = found.dual_bound is not None and found.dual_bound <= bound
        notes = (f"{self._exact.name} went on from the engine's placement",) if proved else ()
        return found.placement, stop, bound, (*notes, *found.notes)


def reserve_s(num_servers: int, ground_s: float) -> float:
    """What is kept back of a time limit for all that follows the search, where the arrays took so long to lay out."""
    usual_s = POST_S_PER_SERVER * num_servers
    return RESERVE_S + min(MOST_POST * usual_s, max(usual_s, POST_PER_GROUND * ground_s))


def _late(wall_s: float, time_limit_s: float) -> tuple[str, ...]:
    """What is said of a limit that was not kept: an edge takes its time to be laid out, proved and explained."""
    if wall_s <= max(time_limit_s + LATE_S, time_limit_s * LATE_PART):
        return ()
    return (
        f"the time limit of {time_limit_s:g} s is less than this edge takes on this machine: {wall_s:.1f} s, "
        f"most of it to lay it out, to prove the bound and to say why demand is left over",
    )


def prices_of(ground: Ground, in_force: Plan | None) -> Prices | None:
    """Prices of an earlier plan on this problem; demand that is new since costs what its service does on average."""
    if in_force is None or in_force.certificate is None:
        return None
    certificate = in_force.certificate
    priced = {(part.service, part.origin): 0.0 for part in (*in_force.routes, *in_force.unserved)}
    priced |= {(s, o): p for s, prices in certificate.demand.items() for o, p in prices.items()}
    totals: dict[str, tuple[float, int]] = {}
    for (service, _), price in priced.items():
        total, number = totals.get(service, (0.0, 0))
        totals[service] = (total + price, number + 1)
    means = {service: total / number for service, (total, number) in totals.items()}
    pi = [priced.get((d.service, d.origin), means.get(d.service, 0.0)) for d in ground.problem.demand]
    beta = [certificate.links.get(a, {}).get(b, 0.0) for a, b in ground.table.link_ends]
    return Prices(np.clip(np.array(pi), 0.0, ground.arrays.worth), np.maximum(0.0, np.array(beta, dtype=np.float64)))


def prove(ground: Ground, prices: Prices, *, threads: int) -> Certificate:
    """The certificate of prices, its bound worked out from the figures that it stores."""
    stored = Prices(
        np.array([rounded(p) for p in prices.pi.tolist()]), np.array([rounded(p) for p in prices.beta.tolist()])
    )
    pricer = Pricer(ground, threads=threads)
    bound = pricer(stored).bound
    pricer.close()
    return certificate_of(
        ground.problem,
        {(d.service, d.origin): p for d, p in zip(ground.problem.demand, stored.pi.tolist(), strict=True)},
        dict(zip(ground.table.link_ends, stored.beta.tolist(), strict=True)),
        bound=bound,
    )


def scarcity_prices(ground: Ground, prices: Prices, priced: Priced) -> dict[str, float]:
    """What one more device of a pool, and a whole link's bandwidth again, would be worth, by row name."""
    found = {
        f"devices[{server},{device_type}]": worth
        for (server, device_type), worth in zip(ground.pools, priced.pool_price.tolist(), strict=True)
    }
    worths = (prices.beta * ground.arrays.link_width).tolist()
    found |= {f"link[{a}->{b}]": w for (a, b), w in zip(ground.table.link_ends, worths, strict=True) if w > 0.0}
    return found


__all__ = ["ColumnPlanner", "Solved", "prices_of", "prove", "scarcity_prices"]
