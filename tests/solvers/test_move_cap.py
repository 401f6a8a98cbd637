"""The column planner under a cap on moves: it is kept, and the bound holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from epara_solvers.columns.engine import Budget
from epara_solvers.planners.columns import ColumnPlanner

from epara_opt.certify import certify
from epara_opt.problem import PlacementProblem
from epara_opt.verify import verify


@pytest.mark.parametrize("max_moves", [0, 1])
def test_the_column_planner_keeps_the_cap(tiny_problem: Callable[[int], PlacementProblem], max_moves: int) -> None:
    planner = ColumnPlanner(exact=None, budget=Budget(steps=40, rounds=64))
    busy = [p for p in map(tiny_problem, range(30)) if p.residents][:8]
    cut = 0
    for free in busy:
        capped = replace(free, rules=replace(free.rules, max_moves=max_moves))
        plan = planner.plan(capped, generation=2, time_limit_s=20)
        verify(plan, capped.topology, capped.catalogue, problem=capped)
        if plan.certificate is not None:
            assert certify(plan, capped) >= plan.objective * (1.0 - 1e-6)
        cut += plan.objective < planner.plan(free, generation=2, time_limit_s=20).objective * (1.0 - 1e-6)
    assert cut > 0
