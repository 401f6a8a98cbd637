"""Splits that break a law are refused at birth, with the place, the law and the value."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from epara_solvers.layers.problem import SINK, SOURCE, LayerLink, LayerNode, LayerSplit

from epara_opt.errors import InputError

NODE = LayerNode(id="a", layers_to_tokens_per_s=(10.0, 4.0))
IN = LayerLink(origin=SOURCE, target="a", max_tokens_per_s=6.0)
OUT = LayerLink(origin="a", target=SINK, max_tokens_per_s=5.0)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LayerNode(id=SOURCE, layers_to_tokens_per_s=(1.0,)), "nodes.id: expected a name other than"),
        (lambda: LayerNode(id="a", layers_to_tokens_per_s=()), "nodes.a.layers_to_tokens_per_s: expected >= 1 rate"),
        (
            lambda: LayerNode(id="a", layers_to_tokens_per_s=(1.0, math.nan)),
            r"\[2\]: expected finite and >= 0, got nan",
        ),
        (lambda: LayerLink(origin="a", target="a", max_tokens_per_s=1.0), "links.a->a: expected from one node"),
        (lambda: LayerLink(origin=SINK, target="a", max_tokens_per_s=1.0), "links.sink->a: expected from one node"),
        (lambda: LayerLink(origin="a", target="b", max_tokens_per_s=-1.0), "max_tokens_per_s: expected finite"),
        (lambda: LayerSplit(num_layers=0, nodes=(NODE,), links=()), "num_layers: expected >= 1, got 0"),
        (lambda: LayerSplit(num_layers=1, nodes=(), links=()), "nodes: expected >= 1"),
        (lambda: LayerSplit(num_layers=1, nodes=(NODE, NODE), links=()), r"nodes\[1\].id: expected every name once"),
        (lambda: LayerSplit(num_layers=1, nodes=(NODE,), links=(IN, IN)), r"links\[1\]: expected every direction once"),
        (
            lambda: LayerSplit(
                num_layers=1, nodes=(NODE,), links=(LayerLink(origin="a", target="z", max_tokens_per_s=1.0),)
            ),
            r"links\[0\]: expected ends among the nodes, got z",
        ),
    ],
)
def test_what_breaks_a_law_is_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()


@pytest.mark.parametrize("intervals", [(), ((0, 3),), ((1, 1),), ((-1, 1),), ((2, 4),)])
def test_runs_outside_the_model_or_the_memory_are_refused(intervals: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(InputError, match="intervals"):
        LayerSplit(num_layers=3, nodes=(NODE,), links=(IN, OUT)).check(intervals)


def test_a_node_passes_no_more_than_its_links_bring_and_take() -> None:
    other = LayerNode(id="b", layers_to_tokens_per_s=(9.0, 9.0, 9.0))
    between = LayerLink(origin="a", target="b", max_tokens_per_s=3.0)
    problem = LayerSplit(num_layers=3, nodes=(NODE, other), links=(IN, OUT, between))
    # a: one layer begins or ends the model or neither, nothing comes to it but from the source; b has no way out
    assert problem.reachable_rates() == ((3.0, 3.0), (0.0, 0.0, 0.0))
