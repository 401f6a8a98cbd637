"""The greedy rule's bookkeeping, and the search that improves on it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from epara_solvers.planners.board import Board
from epara_solvers.planners.greedy import GreedyPlanner, greedy, repack
from epara_solvers.planners.options import Ground

from epara_opt.placement import value
from epara_opt.plan import Stop
from epara_opt.problem import PlacementProblem

SEEDS = range(0, 40, 2)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_board_is_worth_what_its_placement_is(seed: int, tiny_problem: Callable[[int], PlacementProblem]) -> None:
    problem = tiny_problem(seed)
    board = greedy(Ground.of(problem), per_device=False)
    assert board.value == pytest.approx(value(problem, board.placement()))


@pytest.mark.parametrize("seed", SEEDS)
def test_taking_every_move_back_leaves_the_board_as_it_was(
    seed: int, tiny_problem: Callable[[int], PlacementProblem]
) -> None:
    ground = Ground.of(tiny_problem(seed))
    board = greedy(ground, per_device=True)
    for number in list(board.moves)[::-1]:
        board.take_back(number)
    assert np.allclose(board.demand_left, ground.offered)
    assert np.allclose(board.link_left, ground.link_width)
    assert board.devices_left == Board(ground).devices_left


@pytest.mark.parametrize("seed", SEEDS)
def test_repacking_never_makes_a_placement_worse(seed: int, tiny_problem: Callable[[int], PlacementProblem]) -> None:
    board = greedy(Ground.of(tiny_problem(seed)), per_device=False)
    before = board.value
    repack(board, time_is_up=lambda: False, rng=np.random.default_rng(seed), patience=5)
    assert board.value >= before * (1 - 1e-9)


def test_equal_seeds_repack_equally(tiny_problem: Callable[[int], PlacementProblem]) -> None:
    found: list[float] = []
    for _ in range(2):
        board = greedy(Ground.of(tiny_problem(3)), per_device=False)
        repack(board, time_is_up=lambda: False, rng=np.random.default_rng(9), patience=10)
        found.append(board.value)
    assert found[0] == found[1]


def test_greedy_without_time_says_so_and_places_nothing_wrong(tiny_problem: Callable[[int], PlacementProblem]) -> None:
    now = iter(range(1000))
    planner = GreedyPlanner(clock=lambda: float(next(now)), wall=lambda: 0.0)
    plan = planner.plan(tiny_problem(3), generation=2, time_limit_s=1.0)
    assert plan.stop is Stop.TIME_LIMIT
    assert plan.made_at == "1970-01-01T00:00:00+00:00"
