"""The compiled simulation against the plain one, and both against queues that can be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from epara_solvers.planners.greedy import GreedyPlanner
from epara_solvers.simulate import kernel
from epara_solvers.simulate.arrivals import Arrivals, drawn
from epara_solvers.simulate.fleet import first_routes, fleet_of
from epara_solvers.simulate.outcome import outcomes
from epara_solvers.simulate.plain import simulate_plainly

from epara_opt.plan import Plan
from epara_opt.policy import batching
from epara_opt.problem import PlacementProblem


def bursty(problem: PlacementProblem, seed: int, *, duration_s: float, cv: float = 2.0) -> Arrivals:
    demand = [replace(d, burstiness_cv=cv) for d in problem.demand]
    return drawn(demand, problem.topology.services, duration_s=duration_s, rng=np.random.default_rng(seed))


def planned(problem: PlacementProblem) -> Plan:
    return GreedyPlanner().plan(problem, generation=99, time_limit_s=5.0)


@pytest.mark.parametrize("planned_only", [False, True])
@pytest.mark.parametrize("seed", range(24))
def test_compiled_and_plain_simulation_agree_on_every_single_arrival(
    tiny_problem: Callable[[int], PlacementProblem], seed: int, planned_only: bool
) -> None:
    problem = tiny_problem(seed)
    arrivals = bursty(problem, seed, duration_s=6.0)
    fleet = fleet_of(planned(problem), problem.topology, problem.catalogue, arrivals.entries, problem.offered)
    first = first_routes(fleet, arrivals, planned_only=planned_only)
    assert outcomes(fleet, arrivals, first).tolist() == simulate_plainly(fleet, arrivals, first).tolist()


def test_all_of_the_tiny_edges_together_show_every_outcome_and_every_kind_of_replica(
    tiny_problem: Callable[[int], PlacementProblem],
) -> None:
    seen: set[int] = set()
    kinds: set[str] = set()
    for seed in range(24):
        problem = tiny_problem(seed)
        arrivals = bursty(problem, seed, duration_s=6.0)
        fleet = fleet_of(planned(problem), problem.topology, problem.catalogue, arrivals.entries, problem.offered)
        seen |= set(outcomes(fleet, arrivals, first_routes(fleet, arrivals, planned_only=False)).tolist())
        f = fleet.arrays
        kinds |= {"slots"} if (f.slots > 0).any() else set()
        kinds |= {"window"} if (f.window_s > 0).any() else set()
        kinds |= {"company"} if (np.diff(f.group_first) > 1).any() else set()
        kinds |= {"pipeline"} if (f.hold_s < f.answer_s - 1e-9).any() else set()
    assert seen == {kernel.ON_TIME, kernel.REFUSED, kernel.LATE}
    assert kinds == {"slots", "window", "company", "pipeline"}


def test_the_kernel_closes_windows_as_the_executors_do() -> None:
    assert kernel.SAFETY == batching.SAFETY
