"""Make before break as a rule: planners keep it, exact ones meet the optimum, no transition stops anything."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from epara_solvers.brute import optimum
from epara_solvers.columns.engine import Budget
from epara_solvers.planners.columns import ColumnPlanner
from epara_solvers.planners.exact import ExactPlanner
from epara_solvers.planners.greedy import GreedyPlanner
from epara_solvers.process import IsolatedBackend
from epara_solvers.simulate.planner import RefiningPlanner

from epara_opt.certify import certify
from epara_opt.control.fake_planner import small_edge
from epara_opt.control.regroup import regrouped
from epara_opt.control.transition import stages
from epara_opt.domain.profile import ProfileCatalogue, ProfileRow
from epara_opt.domain.service import Demand
from epara_opt.domain.topology import DevicePool
from epara_opt.errors import NoPlanError, PlanRejected
from epara_opt.plan import ActionKind, Plan
from epara_opt.problem import PlacementProblem, PlanningRules, Resident, build_problem
from epara_opt.units import GIB
from epara_opt.verify import verify

Make = Callable[[int], PlacementProblem]


def ruled(free: PlacementProblem) -> PlacementProblem:
    """The same edge and residents, these with larger batches and so more memory, where nothing may stop first."""
    rules = replace(free.rules, make_before_break=True)
    made = build_problem(free.topology, free.catalogue, rules=rules, demand=free.demand)
    rng = random.Random(len(free.residents))
    grown: list[Resident] = []
    for r in free.residents:
        times = free.topology.device_types[r.device_type].memory_bytes * rng.uniform(0.4, 1.0) / r.memory_bytes
        grown.append(replace(r, memory=tuple((s, int(num_bytes * max(1.0, times))) for s, num_bytes in r.memory)))
    return replace(made, residents=tuple(grown))


def looked_through(make: Make, wanted: int) -> Iterator[tuple[int, PlacementProblem, float, float]]:
    """Seeds with residents that brute force can look through: the problem under the rule, its optimum, that without."""
    found = seed = 0
    while found < wanted:
        free = make(seed)
        seed += 1
        if not free.residents:
            continue
        problem = ruled(free)
        try:
            best, free_best = optimum(problem, max_placements=20_000)[0], optimum(free, max_placements=20_000)[0]
        except NoPlanError:
            continue
        found += 1
        yield seed - 1, problem, best, free_best


def checked(plan: Plan, problem: PlacementProblem) -> Plan:
    verify(plan, problem.topology, problem.catalogue, problem=problem)
    return plan


def test_the_rule_is_kept_by_all_and_met_exactly(tiny_problem: Make) -> None:
    exact = ExactPlanner(IsolatedBackend("mathopt-highs"), gap=0.0)
    engine = ColumnPlanner(exact=None, threads=1, budget=Budget(steps=60, rounds=200))
    binds, reached, wanted = 0, 0.0, 0.0
    try:
        for seed, problem, best, free_best in looked_through(tiny_problem, 30):
            binds += best < free_best * (1.0 - 1e-6)
            tolerance = 1e-5 * max(1.0, best)
            plan = checked(exact.plan(problem, generation=2, time_limit_s=60), problem)
            assert plan.objective == pytest.approx(best, abs=tolerance), seed
            assert checked(GreedyPlanner().plan(problem, generation=2, time_limit_s=60), problem).objective <= (
                best + tolerance
            ), seed
            plan = checked(engine.plan(problem, generation=2, time_limit_s=60), problem)
            assert plan.objective <= best + tolerance, seed
            assert plan.dual_bound is not None
            assert plan.dual_bound >= best - tolerance, seed
            if plan.certificate is not None:
                assert certify(plan, problem) >= best - tolerance
            reached += plan.objective
            wanted += best
    finally:
        exact.close()
    assert binds >= 5
    assert reached >= 0.97 * wanted


def test_what_is_too_much_already_may_leave_and_gets_nothing_on_top(tiny_problem: Make) -> None:
    """After `memory_gib` was lowered under what runs."""
    planners = (GreedyPlanner(), ColumnPlanner(threads=1, budget=Budget(steps=30, rounds=60)))
    placed = 0
    for seed in range(40):
        problem = ruled(tiny_problem(seed))
        types = problem.topology.device_types
        over = [
            replace(r, memory=tuple((s, 2 * types[r.device_type].memory_bytes) for s, _ in r.memory))
            for r in problem.residents
        ]
        problem = replace(problem, residents=tuple(over))
        full = {place for r in over for place in r.places}
        for planner in planners if over else ():
            plan = checked(planner.plan(problem, generation=2, time_limit_s=60), problem)
            here = [r for r in plan.replicas if {p[:3] for p in r.places} & full]
            assert not here
            placed += len(plan.replicas)
    assert placed > 5


def test_a_running_group_of_several_devices_takes_nobody_in_where_both_would_not_fit(make_pair) -> None:
    """The cycle gives such a group a new id (control.regroup): the old and the new stand beside each other."""
    for gib, joins in ((1.2, False), (0.9, True)):
        problem, in_force = make_pair(gib)
        for planner in (GreedyPlanner(), RefiningPlanner(GreedyPlanner(), refine_s=600.0, max_steps=40)):
            plan = checked(planner.plan(problem, generation=2, time_limit_s=60, in_force=in_force), problem)
            pushed = regrouped(plan, in_force, problem)
            verify(pushed, problem.topology, problem.catalogue, problem=problem)
            steps = stages(in_force, pushed, problem.topology, problem.catalogue)
            assert not any(s.detail == "make room" for s in steps)
            assert ({r.service for r in plan.replicas} == {"a", "b"}) is joins


@pytest.fixture
def make_pair() -> Callable[[float], tuple[PlacementProblem, Plan]]:
    """One server with two devices of 3 GiB, two services that need both of them and so much on each; `a` runs."""

    def make(gib: float) -> tuple[PlacementProblem, Plan]:
        small, _ = small_edge()
        label = small.services["label"]
        names = ("a", "b")
        topology = replace(
            small,
            device_types={"gpu": replace(small.device_types["gpu"], memory_bytes=3 * GIB)},
            servers={"a": replace(small.servers["a"], devices=(DevicePool(type="gpu", count=2),))},
            links=(),
            services={n: replace(label, name=n, model=replace(label.model, source=f"models/{n}")) for n in names},
            demand=(),
        )
        rows = [
            ProfileRow(
                model=f"models/{n}",
                device_type="gpu",
                tp=tp,
                batch=1,
                latency_ms=10.0,
                memory_bytes=int((gib if tp == 2 else 4.0) * GIB),
                load_s=3.0,
                source="by hand",
            )
            for n in names
            for tp in (1, 2)
        ]
        catalogue = ProfileCatalogue.from_rows(rows)
        rules = PlanningRules(make_before_break=True)

        def asked(b: float) -> list[Demand]:
            return [Demand(service=n, origin="a", offered=rate) for n, rate in (("a", 20.0), ("b", b))]

        first = build_problem(topology, catalogue, rules=rules, demand=asked(0.0))
        in_force = GreedyPlanner().plan(first, generation=1, time_limit_s=10)
        return build_problem(topology, catalogue, rules=rules, demand=asked(20.0), in_force=in_force), in_force

    return make


@pytest.mark.parametrize("planner", ["greedy", "columns"])
def test_no_transition_makes_room_first(tiny_problem: Make, planner: str) -> None:
    """From real plans in force: without the rule some transitions stop something first, with it none."""
    made = GreedyPlanner() if planner == "greedy" else ColumnPlanner(threads=1, budget=Budget(steps=30, rounds=60))
    rng = random.Random(7)
    made_room = {True: 0, False: 0}
    moved = 0
    for seed in range(60):
        first = tiny_problem(seed)
        start = build_problem(first.topology, first.catalogue, rules=first.rules)
        in_force = made.plan(start, generation=1, time_limit_s=60)
        later = [replace(d, offered=max(1.0, round(d.offered * rng.choice((0.0, 0.3, 3.0))))) for d in start.demand]
        for beside in (False, True):
            problem = build_problem(
                first.topology,
                first.catalogue,
                rules=replace(first.rules, make_before_break=beside),
                demand=later,
                in_force=in_force,
            )
            plan = checked(made.plan(problem, generation=2, time_limit_s=60, in_force=in_force), problem)
            steps = stages(in_force, plan, first.topology, first.catalogue)
            makes_room = any(s.detail == "make room" for s in steps)
            made_room[beside] += makes_room
            if makes_room:  # the checker says the same
                strict = replace(problem, rules=replace(problem.rules, make_before_break=True))
                with pytest.raises(PlanRejected, match=r"until the switch \(make_before_break\)"):
                    verify(plan, problem.topology, problem.catalogue, problem=strict)
            moved += beside and any(s.kind is ActionKind.PREPARE for s in steps)
    assert made_room[True] == 0
    assert made_room[False] > 5
    assert moved > 10
