"""Covering weights: why no split can carry more than a bound. No solver, no compiled code.

Whatever the split, every layer's holders carry the whole flow F between them: if F > B, then the reachable rates of the
nodes that hold a layer add up to more than B. Give a node n that holds layer x in a run of k a weight w_x(n, k) >= 0, any,
and let

    m_x = the least weight of nodes (each at most once, with one k) whose rates add up to more than B

Then F > B needs sum_x m_x of weight, while node n, wherever its run lies, brings at most the largest
sum_{x in run} w_x(n, k). If all nodes together bring less than sum_x m_x, no flow exceeds B. Nothing about how the
weights were found needs to be trusted.

w = rate gives the bound by work, sum_n max_k k rate_n(k) / num_layers. w = 1 for a rate above B, 1/2 below it says that a
layer needs one node that carries everything or two that do not; such roundings (dual feasible functions of the covering
knapsack) are what linear relaxations of the flow program miss.

Nodes with the same reachable rates share their weights: they form a class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from epara_opt.errors import InputError, Violation
from epara_solvers.layers.problem import LayerSplit

MARGIN = 1e-9  # relative, by which a claim must hold, and by which rates must exceed a bound to count as above it

MAX_BRANCHES = 20_000

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
    tables: tuple[Table, ...]  # weights, all >= 0
    table_of_layer: tuple[int, ...]  # (num_layers,) index into tables


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
    return Certificate(
        bound_tokens_per_s=bound, tables=(tuple(c.rates for c in classes),), table_of_layer=(0,) * num_layers
    )


def shortfall(classes: Sequence[NodeClass], certificate: Certificate) -> float:
    """The part of the weight needed for more than the bound that nodes cannot bring; > MARGIN proves the bound.

    Infinite where no nodes together have rates above it. Raises InputError for weights that are none.
    """
    num_layers = len(certificate.table_of_layer)
    for t in certificate.table_of_layer:
        if not 0 <= t < len(certificate.tables):
            law = f"expected indexes below {len(certificate.tables)}"
            raise InputError(Violation(path="certificate.table_of_layer", law=law, value=str(t)))
    for table in certificate.tables:
        _check(classes, table)
    least = [cheapest_cover(classes, t, certificate.bound_tokens_per_s)[0] for t in certificate.tables]
    needed = sum(least[t] for t in certificate.table_of_layer)
    if math.isinf(needed):
        return math.inf
    brought = 0.0
    for c, node in enumerate(classes):
        most = 0.0
        for k in range(1, min(num_layers, len(node.rates)) + 1):
            weights = [certificate.tables[t][c][k - 1] for t in certificate.table_of_layer]
            most = max(most, max(sum(weights[s : s + k]) for s in range(num_layers - k + 1)))
        brought += node.count * most
    return (needed - brought) / needed if needed > 0 else 0.0


def _check(classes: Sequence[NodeClass], table: Table) -> None:
    if [len(row) for row in table] != [len(c.rates) for c in classes]:
        law = "expected a weight for every class and number of layers"
        raise InputError(Violation(path="certificate.tables", law=law, value=str([len(row) for row in table])))
    for row in table:
        for weight in row:
            if not (math.isfinite(weight) and weight >= 0):
                law = "expected finite and >= 0"
                raise InputError(Violation(path="certificate.tables", law=law, value=str(weight)))


def cheapest_cover(classes: Sequence[NodeClass], table: Table, bound: float) -> tuple[float, Pattern]:
    """The least weight of nodes whose rates add up to more than `bound`, and such nodes; infinite if there are none.

    Depth first over (class, k) by weight per rate, most nodes first. The weight of what is missing, bought at the best
    rate still on offer, bounds a branch. A rate that another k of the class exceeds at no more weight is passed over.
    After MAX_BRANCHES what is open counts with its bound: the weight returned is then too low, which keeps claims true.
    """
    above = bound * (1 + MARGIN)
    offers = sorted((table[c][k] / min(r, above), c, k, table[c][k], r) for c, k, r in _undominated(classes, table))
    free, best, found, opened, left_open = [c.count for c in classes], math.inf, Pattern(), 0, math.inf
    chosen: list[tuple[int, int, int]] = []

    def branch(first: int, missing: float, weight: float) -> None:
        nonlocal best, found, opened, left_open
        if missing < 0:
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


def _undominated(classes: Sequence[NodeClass], table: Table) -> list[tuple[int, int, float]]:
    kept: list[tuple[int, int, float]] = []
    for c, node in enumerate(classes):
        best = -math.inf  # the largest rate at this weight or less
        for _, rate, k in sorted((table[c][k], -rate, k) for k, rate in enumerate(node.rates)):
            if -rate > max(best, 0.0):
                best = -rate
                kept.append((c, k, -rate))
    return kept
