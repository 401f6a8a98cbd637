"""Seeded tiny problems, small enough to look at every split, and the answer of looking."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from epara_solvers.layers.check import flow_of
from epara_solvers.layers.problem import SINK, SOURCE, LayerLink, LayerNode, LayerSplit


@pytest.fixture(scope="session")
def tiny_split() -> Callable[..., LayerSplit]:
    return make_tiny_split


@pytest.fixture(scope="session")
def best_flow() -> Callable[[LayerSplit], float]:
    return look_at_every_split


def make_tiny_split(seed: int, *, tight_links: bool = False, nodes: int = 3, layers: int = 5) -> LayerSplit:
    """Rates fall with the layers, not always; every third seed has two nodes alike; tight links are missing or slow."""
    rng = np.random.default_rng(seed)
    speeds = [
        tuple(
            float(rate)
            for rate in rng.uniform(50, 300)
            / np.arange(1, most + 1) ** rng.uniform(0.8, 1.3)
            * rng.uniform(0.8, 1.2, most)
        )
        for most in rng.integers(1, 5, nodes)
    ]
    if seed % 3 == 0:
        speeds[1] = speeds[0]
    ids = [f"n{i}" for i in range(nodes)]
    links = tuple(
        LayerLink(origin=a, target=b, max_tokens_per_s=float(rng.uniform(10, 200)) if tight_links else 1e6)
        for a, b in itertools.product((SOURCE, *ids), (*ids, SINK))
        if a != b and (a, b) != (SOURCE, SINK) and not (tight_links and rng.random() < 0.2)
    )
    made = tuple(LayerNode(id=i, layers_to_tokens_per_s=s) for i, s in zip(ids, speeds, strict=True))
    return LayerSplit(num_layers=layers, nodes=made, links=links)


def look_at_every_split(problem: LayerSplit) -> float:
    runs = [
        [(s, s + k) for k in range(1, problem.max_layers(i) + 1) for s in range(problem.num_layers - k + 1)]
        for i in range(len(problem.nodes))
    ]
    whole = set(range(problem.num_layers))
    return max(
        (
            flow_of(problem, chosen)
            for chosen in itertools.product(*runs)
            if whole == {x for start, end in chosen for x in range(start, end)}  # else nothing flows
        ),
        default=0.0,
    )
