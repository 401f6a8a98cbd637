"""The exact planner: greedy incumbent, mixed-integer program, any back end, and an honest account of both.

The plan is the better of incumbent and solver. Its bound is the back end's, at most the value of serving all that
is offered, and lifted to the objective where tolerances put it below. Why the search stopped is the back end's
word, never derived from what was found.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np

from epara_opt.formulation.compact import Encoded, encode
from epara_opt.formulation.decode import decode, encode_placement
from epara_opt.formulation.program import FloatArray, MilpBackend, MilpProgram, MilpResult, SearchStop
from epara_opt.placement import Placement, assemble, served, value
from epara_opt.plan import Plan, Stop
from epara_opt.problem import PlacementProblem
from epara_opt.unserved import explain_unserved
from epara_solvers.planners.chains import with_chains
from epara_solvers.planners.greedy import greedy, repack
from epara_solvers.planners.options import Ground
from epara_solvers.planners.spread import spread
from epara_solvers.process import IsolatedBackend

INCUMBENT_PART = 0.15  # of the time limit, at most, for greedy and its improvement
PATIENCE_PER_SITE = 5  # rounds of improvement in vain: small problems end by it, and so alike every time
RESERVE_S = 0.3  # kept back for decoding and assembling
PRICING_S = 5.0  # at most, for the reasons' prices
ALL_SERVED = 1e-6  # relative
TOLERANCE = 1e-6  # relative and absolute: by so much solvers may break rows, and so understate a bound
SEED = 1
USUAL, FAR = 64.0, 256.0  # largest coefficient of an objective, and how many times more or less may stay as it is

STOPS = {
    SearchStop.OPTIMAL: Stop.OPTIMAL,
    SearchStop.GAP_LIMIT: Stop.GAP_LIMIT,
    SearchStop.TIME_LIMIT: Stop.TIME_LIMIT,
    SearchStop.INFEASIBLE: Stop.SOLVER_FAILED,  # the empty placement is always feasible, so these two are wrong
    SearchStop.UNBOUNDED: Stop.SOLVER_FAILED,
    SearchStop.FAILED: Stop.SOLVER_FAILED,
}

Prices = Callable[[MilpProgram, float], Mapping[str, float] | None]  # duals by row name, within some seconds


def no_prices(program: MilpProgram, time_limit_s: float) -> None:
    """Where GLOP is not installed: reasons then say what the placement shows, without prices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a search ended with."""

    placement: Placement
    stop: Stop
    dual_bound: float | None
    notes: tuple[str, ...] = ()


class ExactPlanner:
    """A planner around any MilpBackend. Keeps the back end's process warm between plans; `close` ends it."""

    def __init__(
        self,
        backend: MilpBackend,
        *,
        prices: Prices = no_prices,
        gap: float = 1e-4,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._backend = backend
        self._prices = prices
        self._gap = gap
        self._clock = clock
        self._wall = wall

    @property
    def name(self) -> str:
        return self._backend.name

    def close(self) -> None:
        if isinstance(self._backend, IsolatedBackend):
            self._backend.close()

    def plan(
        self, problem: PlacementProblem, *, generation: int, time_limit_s: float, in_force: Plan | None = None
    ) -> Plan:
        started = self._clock()
        made_at = datetime.fromtimestamp(self._wall(), UTC).isoformat(timespec="seconds")

        def left_s() -> float:
            return time_limit_s - (self._clock() - started)

        encoded: Encoded | None = None
        if not problem.demand:
            found = Outcome(placement=Placement(groups=(), flows=()), stop=Stop.NO_DEMAND, dual_bound=0.0)
        else:
            incumbent = self._incumbent(problem, time_limit_s, left_s)
            if is_all_earned(problem, incumbent):
                everything = max(all_served(problem), value(problem, incumbent))
                found = Outcome(placement=incumbent, stop=Stop.OPTIMAL, dual_bound=everything)
            else:
                encoded = encode(problem)
                found = self._searched(problem, encoded, incumbent, left_s() - RESERVE_S)
        placement = spread(problem, found.placement, time_is_up=lambda: left_s() < RESERVE_S)
        prices: Mapping[str, float] | None = None
        if encoded is not None and left_s() > RESERVE_S and not is_all_served(problem, placement):
            prices = self._prices(encoded.program, min(PRICING_S, left_s() - RESERVE_S))
        return assemble(
            problem,
            placement,
            generation=generation,
            solver=self.name,
            stop=found.stop,
            dual_bound=found.dual_bound,
            wall_s=self._clock() - started,
            unserved=explain_unserved(problem, placement, prices),
            in_force=in_force,
            notes=found.notes,
            made_at=made_at,
        )

    def improve(self, problem: PlacementProblem, incumbent: Placement, *, time_limit_s: float) -> Outcome:
        """Search from a placement of somebody else's; never worse than it."""
        started = self._clock()
        if isinstance(self._backend, IsolatedBackend):
            self._backend.warm_up()
        encoded = encode(problem)
        return self._searched(problem, encoded, incumbent, time_limit_s - (self._clock() - started))

    def _incumbent(self, problem: PlacementProblem, time_limit_s: float, left_s: Callable[[], float]) -> Placement:
        """The better of both greedy rules, improved. Meanwhile the back end's process starts."""
        if isinstance(self._backend, IsolatedBackend):
            self._backend.warm_up()

        def time_is_up() -> bool:
            return left_s() < time_limit_s * (1.0 - INCUMBENT_PART)

        ground = Ground.of(problem)
        boards = [greedy(ground, per_device=rule, time_is_up=time_is_up) for rule in (True, False)]
        best = max(boards, key=lambda b: b.value)
        repack(
            best, time_is_up=time_is_up, rng=np.random.default_rng(SEED), patience=PATIENCE_PER_SITE * len(ground.sites)
        )
        return with_chains(problem, best.placement(), time_is_up=time_is_up)

    def _searched(
        self, problem: PlacementProblem, encoded: Encoded, incumbent: Placement, time_limit_s: float
    ) -> Outcome:
        scale = scale_of(encoded.program.objective)
        result = self._backend.solve(
            replace(encoded.program, objective=encoded.program.objective * scale),
            time_limit_s=max(0.05, time_limit_s),
            gap=self._gap,
            warm_start=encode_placement(encoded, incumbent),
        )
        placement, notes = incumbent, _notes(self.name, result)
        if result.x is not None:
            decoded = decode(encoded, result.x)
            if value(problem, decoded) >= value(problem, incumbent):
                placement = decoded
        bound, stop = None if result.dual_bound is None else result.dual_bound / scale, STOPS[result.stop]
        reached = value(problem, placement)
        if bound is not None and reached > bound * (1.0 + TOLERANCE) + TOLERANCE / scale:
            # More than tolerances explain: the program lost a placement, so nothing it says is proven.
            notes = (*notes, f"{self.name} bounds {bound:.6g} what reaches {reached:.6g}: its bound is dropped")
            bound, stop = None, Stop.SOLVER_FAILED
        elif bound is not None:
            bound = max(min(bound, all_served(problem)), reached)
        return Outcome(placement=placement, stop=stop, dual_bound=bound, notes=notes)


def scale_of(objective: FloatArray) -> float:
    """A power of two that brings the largest coefficient near `USUAL` where it is far from it.

    Solvers' tolerances on reduced costs are absolute: of services worth 1e-9 each, HiGHS and SCIP once proved bounds
    4 % below the optimum, and CBC did where some are worth a million.
    """
    most = float(np.abs(objective).max(initial=0.0))
    if most == 0.0 or 1.0 / FAR <= most / USUAL <= FAR:
        return 1.0
    return 2.0 ** round(math.log2(USUAL / most))


def _notes(name: str, result: MilpResult) -> tuple[str, ...]:
    if STOPS[result.stop] is Stop.SOLVER_FAILED:
        said = f"said {result.stop.value}" if result.stop is not SearchStop.FAILED else "failed"
        return (f"{name} {said} ({result.detail}); this plan is the greedy rule's",)
    if result.x is None:
        return (f"{name} found no placement in time; this plan is the greedy rule's",)
    return ()


def all_served(problem: PlacementProblem) -> float:
    """What serving all that is offered for the whole cycle would be worth: a bound that needs no solver."""
    return sum(problem.service(d.service).weight * d.offered for d in problem.demand)


def is_all_earned(problem: PlacementProblem, placement: Placement) -> bool:
    return value(problem, placement) >= all_served(problem) * (1.0 - ALL_SERVED)


def is_all_served(problem: PlacementProblem, placement: Placement) -> bool:
    done = served(placement)
    return all(done.get((d.service, d.origin), 0.0) >= d.offered * (1.0 - ALL_SERVED) for d in problem.demand)
