"""Covering weights: why no split can carry more than a bound. No solver, no compiled code.

Whatever the split, the holders of every layer carry the whole flow F between them: if F > B, the reachable rates of the
nodes that hold a layer add up to more than B. Give every layer x a price p_x >= 0, and a node of class c with a run of
k layers a weight w(c, k) >= 0, any. Let

    m   = the least weight of nodes (each once, with one k) whose rates add up to more than B
    P_k = the highest price of k consecutive layers

Then F > B needs m sum_x p_x of price times weight, while a node brings at most max_k w(c, k) P_k, wherever its run
lies. If all nodes together bring less than is needed, no flow exceeds B. Nothing about how prices and weights were
found needs to be trusted.

p = 1 and w = rate give the bound by work, sum_n max_k k rate_n(k) / num_layers. w = 1 for a rate above B and 1/2
below it says that a layer needs one node that carries everything or two that do not; such roundings (dual feasible
functions of the covering knapsack) are what linear relaxations of the flow program miss. Prices on every fourth layer
say that runs of four are whole: ten layers take three of them.

Nodes with the same reachable rates share their weights: they form a class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from epara_opt.errors import InputError, Violation
from epara_solvers.layers.problem import LayerSplit

MARGIN = 1e-9  # relative, by which a claim must hold, and by which rates must exceed a bound to count as above it
MAX_BRANCHES = 20_000  # of one search for the cheapest cover
TINY = 1e-300  # more than a bound of 0

Table = tuple[tuple[float, ...], ...]  # [class][k - 1] weights
Pattern = dict[tuple[int, int], int]  # (class, k) -> nodes


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeClass:
    """Nodes that are alike."""

    rates: tuple[float, ...]  # [k - 1] reachable tokens/s
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """Claims that no split's flow exceeds the bound (by more than a part of MARGIN)."""

    bound_tokens_per_s: float
    prices: tuple[float, ...]  # (num_layers,) >= 0
    weights: Table  # >= 0, by the order of `classes_of`


def classes_of(problem: LayerSplit) -> tuple[NodeClass, ...]:
    """In the order of their first nodes."""
    counts: dict[tuple[float, ...], int] = {}
    for rates in problem.reachable_rates():
        counts[rates] = counts.get(rates, 0) + 1
    return tuple(NodeClass(rates=rates, count=n) for rates, n in counts.items())


def work_bound(classes: Sequence[NodeClass], num_layers: int) -> float:
    """What the nodes could do in all, per layer."""
    return sum(c.count * max(k * r for k, r in enumerate(c.rates, start=1)) for c in classes) / num_layers


def work_certificate(classes: Sequence[NodeClass], num_layers: int) -> Certificate:
    bound = work_bound(classes, num_layers) * (1 + 4 * MARGIN)
    weights = tuple(c.rates for c in classes)
    return Certificate(bound_tokens_per_s=bound, prices=(1.0,) * num_layers, weights=weights)


def dearest_runs(prices: Sequence[float], longest: int) -> list[float]:
    """[k - 1]: the highest price of k consecutive layers, k up to `longest`."""
    num = len(prices)
    return [max(math.fsum(prices[s : s + k]) for s in range(num - k + 1)) for k in range(1, longest + 1)]


def shortfall(classes: Sequence[NodeClass], certificate: Certificate) -> float:
    """The part of what more than the bound needs that nodes cannot bring; > MARGIN proves the bound.

    Infinite where no nodes together have rates above it. Raises InputError for prices and weights that are none.
    """
    _check(classes, certificate)
    least, _ = cheapest_cover(classes, certificate.weights, certificate.bound_tokens_per_s)
    needed = least * math.fsum(certificate.prices)
    if not (math.isfinite(needed) and needed > 0.0):
        return math.inf if math.isinf(least) else 0.0
    dearest = dearest_runs(certificate.prices, max(len(c.rates) for c in classes))
    brought = math.fsum(
        node.count * max(w * p for w, p in zip(row, dearest, strict=False))
        for node, row in zip(classes, certificate.weights, strict=True)
    )
    return (needed - brought) / needed


def _check(classes: Sequence[NodeClass], certificate: Certificate) -> None:
    shape = [len(row) for row in certificate.weights]
    if shape != [len(c.rates) for c in classes]:
        law = "expected a weight for every class and number of layers"
        raise InputError(Violation(path="certificate.weights", law=law, value=str(shape)))
    named = {"prices": certificate.prices, "weights": [w for row in certificate.weights for w in row]}
    for path, numbers in named.items():
        for number in numbers:
            if not (math.isfinite(number) and number >= 0):
                law = "expected finite and >= 0"
                raise InputError(Violation(path=f"certificate.{path}", law=law, value=str(number)))
    if not certificate.bound_tokens_per_s >= 0:
        law, value = "expected >= 0", str(certificate.bound_tokens_per_s)
        raise InputError(Violation(path="certificate.bound_tokens_per_s", law=law, value=value))


def cheapest_cover(classes: Sequence[NodeClass], table: Table, bound: float) -> tuple[float, Pattern]:
    """The least weight of nodes whose rates add up to more than `bound`, and such nodes; infinite if there are none.

    Depth first over (class, k) by weight per rate, most nodes first. The weight of what is missing, bought at the best
    rate still on offer, bounds a branch. A rate that another k of the class exceeds at no more weight is passed over.
    After MAX_BRANCHES what is open counts with its bound: the weight returned is then too low, which keeps claims true.
    """
    above = max(bound * (1 + MARGIN), TINY)
    offers = sorted((table[c][k] / r, c, k, table[c][k], r) for c, k, r in _undominated(classes, table, above))
    free, best, found, opened, left_open = [c.count for c in classes], math.inf, Pattern(), 0, math.inf
    chosen: list[tuple[int, int, int]] = []

    def branch(first: int, missing: float, weight: float) -> None:
        nonlocal best, found, opened, left_open
        if missing <= 0:
            if weight < best:
                best, found = weight, {(c, k + 1): n for c, k, n in chosen}
            return
        opened += 1
        for i in range(first, len(offers)):
            at_least, c, k, each, rate = offers[i]
            if weight + missing * at_least >= best:
                return
            if opened > MAX_BRANCHES:
                left_open = min(left_open, weight + missing * at_least)
                return
            for n in range(min(free[c], math.floor(missing / rate) + 1), 0, -1):
                free[c] -= n
                chosen.append((c, k, n))
                branch(i + 1, missing - n * rate, weight + n * each)
                chosen.pop()
                free[c] += n

    branch(0, above, 0.0)
    return min(best, left_open), found


def _undominated(classes: Sequence[NodeClass], table: Table, above: float) -> list[tuple[int, int, float]]:
    """(class, k - 1, rate): rates count up to `above`, which is all that is asked for; those of 0 are left out."""
    kept: list[tuple[int, int, float]] = []
    for c, node in enumerate(classes):
        best = 0.0  # the largest rate at this weight or less
        for _, rate, k in sorted((table[c][k], -min(rate, above), k) for k, rate in enumerate(node.rates)):
            if -rate > best:
                best = -rate
                kept.append((c, k, best))
    return kept
