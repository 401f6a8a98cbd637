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
from epara_solvers.simulate.outcome import outcomes, simulate_plan
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


def test_chains_over_servers_are_simulated_alike_and_deliver_while_they_are_not_overrun(
    chain_problem: Callable[[int], PlacementProblem],
) -> None:
    delivered = 0
    for seed in range(12):
        problem = chain_problem(seed)
        plan = planned(problem)
        chained = {r.service for r in plan.replicas if r.stages}
        arrivals = bursty(problem, seed, duration_s=6.0, cv=0.5)
        fleet = fleet_of(plan, problem.topology, problem.catalogue, arrivals.entries, problem.offered)
        first = first_routes(fleet, arrivals, planned_only=True)
        found = outcomes(fleet, arrivals, first)
        assert found.tolist() == simulate_plainly(fleet, arrivals, first).tolist()
        simulated = {s.service: s for s in simulate_plan(plan, problem, arrivals, planned_only=True).services}
        delivered += sum(simulated[name].on_time for name in chained)
    assert delivered > 0


def test_the_kernel_closes_windows_as_the_executors_do() -> None:
    assert kernel.SAFETY == batching.SAFETY


def test_a_replica_works_off_what_it_can_and_refuses_the_rest_at_once(hand) -> None:
    """Batch 1 in 40 ms, deadline 100 ms: of three at once two are on time; one that comes at 81 ms is again."""
    found = simulate_plan(hand.plan(batch=1), hand.problem, hand.arrivals([0.0, 0.001, 0.002, 0.0809]))
    assert [(s.offered, s.on_time, s.refused, s.late) for s in found.services] == [(4, 3, 1, 0)]
    assert found.goodput == pytest.approx(3 / hand.DURATION_S)
    assert found.on_time_share == 0.75


def test_what_comes_while_a_batch_runs_leaves_together_after_it(hand) -> None:
    """Batches of up to 4 take 40 ms: the first leaves alone, the next four together, the sixth would be late."""
    found = simulate_plan(hand.plan(batch=4), hand.problem, hand.arrivals([0.0, 0.01, 0.011, 0.012, 0.013, 0.014]))
    assert [(s.on_time, s.refused) for s in found.services] == [(5, 1)]


def test_what_the_plan_leaves_unserved_is_tried_unless_only_the_plan_counts(hand) -> None:
    plan = hand.plan(batch=1)
    half = replace(plan, routes=tuple(replace(r, rate=hand.RATE / 2) for r in plan.routes))
    arrivals = hand.arrivals([0.1 * k for k in range(40)])
    tried = simulate_plan(half, hand.problem, arrivals).services[0]
    kept = simulate_plan(half, hand.problem, arrivals, planned_only=True).services[0]
    assert (tried.on_time, tried.refused) == (40, 0)
    assert kept.on_time == int((arrivals.draw < 0.5).sum())


def test_origins_without_a_route_are_refused(hand) -> None:
    plan = replace(hand.plan(batch=1), routes=())
    found = simulate_plan(plan, hand.problem, hand.arrivals([0.0, 1.0]))
    assert (found.goodput, found.services[0].refused) == (0.0, 2)
