"""The search against looking at every split, its kernel against networkx, and the checker against false claims."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from epara_solvers.layers import kernel
from epara_solvers.layers.check import check, flow_of
from epara_solvers.layers.problem import SINK, SOURCE, LayerLink, LayerNode, LayerSplit
from epara_solvers.layers.search import Ground, solve

from epara_opt.errors import PlanRejected


@pytest.mark.parametrize("tight_links", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_the_best_of_all_splits_is_found_and_never_exceeded(
    seed: int, tight_links: bool, tiny_split: Callable[..., LayerSplit], best_flow: Callable[[LayerSplit], float]
) -> None:
    problem = tiny_split(seed, tight_links=tight_links)
    found, best = solve(problem, rounds=8, seed=seed), best_flow(problem)
    check(problem, found.intervals, found.flow_tokens_per_s, found.certificate)
    assert found.flow_tokens_per_s == pytest.approx(best, rel=1e-9)
    assert found.bound_tokens_per_s >= best * (1 - 1e-9)


@pytest.mark.parametrize("seed", range(12))
def test_the_kernel_finds_the_flow_that_networkx_finds(seed: int, tiny_split: Callable[..., LayerSplit]) -> None:
    problem = tiny_split(seed, tight_links=True, nodes=9, layers=6)
    rng, ground = np.random.default_rng(seed), Ground(problem)
    for _ in range(20):
        size = rng.integers(1, ground.most + 1)
        start = rng.choice([0, 2, 4], len(size)) if rng.random() < 0.7 else rng.integers(0, 6, len(size))
        start = np.minimum(start, 6 - size)
        flow = kernel.max_flow(start, size, ground.rates, ground.source, ground.sink, ground.link, 6)
        intervals = tuple(zip(start.tolist(), (start + size).tolist(), strict=True))
        assert flow == pytest.approx(flow_of(problem, intervals), abs=1e-6)


def test_two_slow_nodes_share_what_one_fast_node_takes_alone() -> None:
    """No chain is faster than 10 tokens/s; side by side the slow ones make 20."""
    fast = LayerNode(id="fast", layers_to_tokens_per_s=(40.0, 20.0))
    slow = [LayerNode(id=f"slow{i}", layers_to_tokens_per_s=(11.0, 10.0)) for i in range(2)]
    nodes = (slow[0], fast, slow[1])
    ids = [n.id for n in nodes]
    ends = [(a, b) for a in (SOURCE, *ids) for b in (*ids, SINK) if a != b and (a, b) != (SOURCE, SINK)]
    links = tuple(LayerLink(origin=a, target=b, max_tokens_per_s=1e3) for a, b in ends)
    found = solve(LayerSplit(num_layers=4, nodes=nodes, links=links), rounds=8)
    assert found.flow_tokens_per_s == 20.0
    assert found.gap < 1e-8


def test_where_nothing_can_flow_the_answer_is_nothing_for_certain() -> None:
    alone = LayerNode(id="a", layers_to_tokens_per_s=(5.0,))
    links = (
        LayerLink(origin=SOURCE, target="a", max_tokens_per_s=9.0),
        LayerLink(origin="a", target=SINK, max_tokens_per_s=9.0),
    )
    problem = LayerSplit(num_layers=2, nodes=(alone,), links=links)
    found = solve(problem, rounds=2)
    assert (found.flow_tokens_per_s, found.bound_tokens_per_s) == (0.0, 0.0)
    check(problem, found.intervals, 0.0, found.certificate)


def test_the_same_seed_and_rounds_give_the_same_split(tiny_split: Callable[..., LayerSplit]) -> None:
    problem = tiny_split(4, tight_links=True, nodes=6, layers=9)
    first, second = (solve(problem, rounds=5, seed=3) for _ in range(2))
    assert first == second


def test_the_clock_ends_the_search(tiny_split: Callable[..., LayerSplit]) -> None:
    """A clock that jumps: what is there is returned, whole and checked."""
    problem, ticks = tiny_split(5, tight_links=True, nodes=6, layers=9), iter(range(0, 10**9, 40))
    found = solve(problem, time_limit_s=60.0, clock=lambda: float(next(ticks)))
    assert found.rounds <= 1
    check(problem, found.intervals, found.flow_tokens_per_s, found.certificate)


def test_false_claims_are_rejected(tiny_split: Callable[..., LayerSplit]) -> None:
    problem = tiny_split(2)
    found = solve(problem, rounds=8)
    flow, good = found.flow_tokens_per_s, found.certificate
    with pytest.raises(PlanRejected, match="flow_tokens_per_s: claimed"):
        check(problem, found.intervals, flow * 1.01, good)
    with pytest.raises(PlanRejected, match="the weights do not prove"):
        check(problem, found.intervals, flow, replace(good, bound_tokens_per_s=0.9 * flow))
    with pytest.raises(PlanRejected, match="the weights do not prove"):
        check(problem, found.intervals, flow, replace(good, weights=tuple((1.0,) * len(r) for r in good.weights)))
