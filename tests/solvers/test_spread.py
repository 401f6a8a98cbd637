"""Work on devices that would stay idle: what it may change and what it may not."""

from collections.abc import Callable

import pytest
from epara_solvers.brute import optimum
from epara_solvers.planners.greedy import GreedyPlanner
from epara_solvers.planners.spread import spread

from epara_opt.importers.catalogue import shipped_topologies
from epara_opt.placement import Placement, assemble, link_use, link_widths, value
from epara_opt.plan import Stop
from epara_opt.problem import PlacementProblem, build_problem
from epara_opt.topology import load_topology
from epara_opt.unserved import explain_unserved
from epara_opt.verify import verify

SEEDS = range(40)


def never() -> bool:
    return False


@pytest.fixture(scope="module")
def demo() -> PlacementProblem:
    """Four devices, and demand that one of them could serve."""
    loaded = load_topology(shipped_topologies() / "demo.yaml")
    return build_problem(loaded.topology, loaded.catalogue, rules=loaded.rules)


def optimal(problem: PlacementProblem) -> Placement:
    return optimum(problem)[1]


@pytest.mark.parametrize("seed", SEEDS)
def test_value_devices_and_links_stay_within_what_they_were(
    seed: int, tiny_problem: Callable[[int], PlacementProblem]
) -> None:
    problem = tiny_problem(seed)
    before = optimal(problem)
    after = spread(problem, before, time_is_up=never)
    assert value(problem, after) == pytest.approx(value(problem, before), rel=1e-9)
    widths = link_widths(problem.topology)
    assert all(load <= widths[hop] * (1 + 1e-9) for hop, load in link_use(problem, after.flows).items())
    plan = assemble(
        problem,
        after,
        generation=9,
        solver="spread",
        stop=Stop.HEURISTIC,
        dual_bound=None,
        wall_s=0.0,
        unserved=explain_unserved(problem, after, None),
    )
    verify(plan, problem.topology, problem.catalogue, problem=problem)


def test_idle_devices_are_used_and_services_get_a_second_server(demo: PlacementProblem) -> None:
    plan = GreedyPlanner().plan(demo, generation=1, time_limit_s=10)
    assert len({(r.server, d) for r in plan.replicas for d in r.devices}) == 4
    assert len({r.server for r in plan.replicas}) == 3


def test_the_same_placement_is_spread_the_same_way(demo: PlacementProblem) -> None:
    first, second = (GreedyPlanner().plan(demo, generation=1, time_limit_s=10) for _ in range(2))
    assert (first.replicas, first.routes) == (second.replicas, second.routes)


def test_nothing_that_runs_is_moved_when_the_demand_is_the_same(demo: PlacementProblem) -> None:
    first = GreedyPlanner().plan(demo, generation=1, time_limit_s=10)
    again = build_problem(demo.topology, demo.catalogue, rules=demo.rules, in_force=first)
    second = GreedyPlanner().plan(again, generation=2, time_limit_s=10, in_force=first)
    assert {r.group for r in second.replicas} <= {r.group for r in first.replicas}


def test_without_time_nothing_moves(demo: PlacementProblem) -> None:
    one = Placement(groups=(), flows=())
    assert spread(demo, one, time_is_up=lambda: True) is one
    unreached = build_problem(demo.topology, demo.catalogue, rules=demo.rules, demand=())
    assert spread(unreached, one, time_is_up=never) is one


def test_time_that_runs_out_while_a_shift_is_looked_for_ends_it(demo: PlacementProblem) -> None:
    """On a hundred servers one look at every group took longer than all of the time that was left."""
    before = optimal(demo)
    calls = 0

    def after_two() -> bool:
        nonlocal calls
        calls += 1
        return calls > 2

    assert len(before.groups) > 1
    assert spread(demo, before, time_is_up=after_two) is before
    assert calls == 3
