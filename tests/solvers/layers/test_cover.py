"""What weights prove, against looking at every split; nothing false passes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from epara_solvers.layers import cover as cover_module
from epara_solvers.layers.bound import Prover
from epara_solvers.layers.check import proves
from epara_solvers.layers.cover import (
    MARGIN,
    Certificate,
    NodeClass,
    cheapest_cover,
    classes_of,
    shortfall,
    work_bound,
    work_certificate,
)
from epara_solvers.layers.problem import LayerSplit

from epara_opt.errors import InputError

T4 = NodeClass(rates=(300.0, 200.0, 90.0), count=2)
L4 = NodeClass(rates=(400.0, 250.0), count=1)


def every_cover(classes: tuple[NodeClass, ...], table: tuple[tuple[float, ...], ...], bound: float) -> float:
    """The least weight, by trying every choice of every node."""
    nodes = [c for c, node in enumerate(classes) for _ in range(node.count)]
    least = math.inf
    for ks in itertools.product(*(range(-1, len(classes[c].rates)) for c in nodes)):
        chosen = [(c, k) for c, k in zip(nodes, ks, strict=True) if k >= 0]
        if sum(classes[c].rates[k] for c, k in chosen) > bound * (1 + MARGIN):
            least = min(least, sum(table[c][k] for c, k in chosen))
    return least


@pytest.mark.parametrize("seed", range(20))
def test_the_cheapest_cover_is_that_of_trying_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    classes = tuple(
        NodeClass(rates=tuple(rng.choice([0.0, 30.0, 50.0, 80.0, 120.0], 3).tolist()), count=int(rng.integers(1, 3)))
        for _ in range(3)
    )
    table = tuple(tuple(rng.choice([0.0, 0.25, 0.5, 1.0], 3).tolist()) for _ in classes)
    for bound in (20.0, 50.0, 110.0, 160.0, 1e4):
        weight, pattern = cheapest_cover(classes, table, bound)
        assert weight == every_cover(classes, table, bound)
        assert math.isinf(weight) or weight == sum(n * table[c][k - 1] for (c, k), n in pattern.items())


def test_a_search_that_is_cut_short_claims_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    table = ((1.0, 0.7, 0.4), (1.1, 0.9))
    exact, _ = cheapest_cover((T4, L4), table, 510.0)
    monkeypatch.setattr(cover_module, "MAX_BRANCHES", 0)
    early, _ = cheapest_cover((T4, L4), table, 510.0)
    assert 0.0 < early < exact


@pytest.mark.parametrize("tight_links", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_no_bound_below_the_best_flow_is_proved(
    seed: int, tight_links: bool, tiny_split: Callable[..., LayerSplit], best_flow: Callable[[LayerSplit], float]
) -> None:
    problem = tiny_split(seed, tight_links=tight_links)
    best, classes = best_flow(problem), classes_of(problem)
    prover = Prover(classes, problem.num_layers)
    work = work_bound(classes, problem.num_layers)
    assert best <= work * (1 + 1e-9)
    assert proves(problem, work_certificate(classes, problem.num_layers))
    for part in np.linspace(0.3, 1.2, 7):
        found = prover.prove(part * work)
        assert found is None or best <= found.bound_tokens_per_s * (1 + 1e-6)
        assert found is None or proves(problem, found)
    assert best == 0.0 or prover.prove(best * (1 - 1e-6)) is None


@pytest.mark.parametrize("seed", range(30))
def test_weights_at_random_prove_nothing_false(
    seed: int, tiny_split: Callable[..., LayerSplit], best_flow: Callable[[LayerSplit], float]
) -> None:
    problem = tiny_split(seed % 5)
    rng, classes, best = np.random.default_rng(seed), classes_of(problem), best_flow(problem)
    for _ in range(40):
        made = Certificate(
            bound_tokens_per_s=best * float(rng.uniform(0.5, 1.0 - 1e-6)),
            prices=tuple(rng.choice([0.0, 0.5, 1.0], problem.num_layers).tolist()),
            weights=tuple(tuple(rng.choice([0.0, 0.25, 0.5, 1.0], len(c.rates)).tolist()) for c in classes),
        )
        assert not proves(problem, made)


def test_runs_of_four_take_three_nodes_for_ten_layers() -> None:
    """By work two and a half nodes would do; equal prices on every fourth layer see that three are needed."""
    classes = (NodeClass(rates=(1.0, 1.0, 1.0, 1.0), count=5),)
    assert work_bound(classes, 10) == 2.0
    found = Prover(classes, 10).prove(1.0)
    assert found is not None
    assert shortfall(classes, found) > 0.1
    assert shortfall(classes, replace(found, prices=(1.0,) * 10)) <= MARGIN


def test_two_slow_nodes_or_a_fast_one_is_found_by_the_program() -> None:
    """Helix's single10 in small: nodes that fall below the bound with three layers count half there."""
    classes = (NodeClass(rates=(2.0, 1.0, 0.99), count=2),)
    found = Prover(classes, 4).prove(1.0)
    assert found is not None
    assert work_bound(classes, 4) > 1.48


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prices": (1.0, -1.0, 1.0, 1.0, 1.0)}, "certificate.prices: expected finite and >= 0, got -1.0"),
        ({"prices": (1.0,) * 4}, "certificate.prices: expected a price for every layer, got 4"),
        ({"weights": ((math.nan,),)}, "certificate.weights"),
        ({"weights": ()}, "certificate.weights: expected a weight for every class"),
        ({"bound_tokens_per_s": math.nan}, "bound_tokens_per_s: expected >= 0, got nan"),
    ],
)
def test_numbers_that_are_no_certificate_are_refused(
    change: dict[str, object], words: str, tiny_split: Callable[..., LayerSplit]
) -> None:
    problem = tiny_split(1)
    good = work_certificate(classes_of(problem), problem.num_layers)
    with pytest.raises(InputError, match=words):
        proves(problem, replace(good, **change))  # pyright: ignore[reportArgumentType]
