"""Prices and weights found by linear programs: the tightest bound that `cover` can prove.

For a bound B and prices p with sum 1, with m = 1 and u_c what a node of class c brings at most:

    minimize    sum_c count_c u_c
    subject to  run[c, k]    P_k w(c, k) <= u_c
                cover[C]     sum_{(c, k) in C} C(c, k) w(c, k) >= 1     for every C with rates above B

Below 1, it proves B. Covers are found as they are needed (`cover.cheapest_cover`) and kept: what is above a bound is
above every lower one. The prices matter only through P_k. Tried are equal ones, equal ones on every d-th layer, and
after each those that are best for the weights at hand, from another small program:

    minimize    sum_c count_c u_c
    subject to  run[c, k, s]    w(c, k) sum_{x in [s, s + k)} p_x <= u_c
                scale           sum_x p_x = 1,    p_x = p_{num_layers - 1 - x}
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Sequence

from ortools.math_opt.python import mathopt

from epara_solvers.layers.cover import (
    MARGIN,
    Certificate,
    NodeClass,
    Pattern,
    Table,
    cheapest_cover,
    dearest_runs,
    shortfall,
)

MAX_ROUNDS = 400  # of finding covers
MAX_TURNS = 4  # of prices and weights, each best for the other
VIOLATED = 1e-7


def _unlimited() -> float:
    return math.inf


class Prover:
    """Proves bounds for one problem; remembers covers."""

    def __init__(self, classes: Sequence[NodeClass], num_layers: int) -> None:
        self.classes, self.num_layers = tuple(classes), num_layers
        self.longest = max(len(c.rates) for c in classes)
        self._covers: list[Pattern] = []

    def prove(self, bound: float, *, seconds_left: Callable[[], float] = _unlimited) -> Certificate | None:
        """A certificate that no flow exceeds `bound`; None if none was found, or time is over."""
        for step in range(1, min(self.longest, self.num_layers) + 1):
            prices = _every(step, self.num_layers)
            for _ in range(MAX_TURNS if step == 1 else 1):
                weights = self._weights(dearest_runs(prices, self.longest), bound, step == 1, seconds_left)
                if weights is None:
                    return None
                found = Certificate(bound_tokens_per_s=bound, prices=prices, weights=weights)
                if shortfall(self.classes, found) > MARGIN:
                    return found
                prices = self._prices(weights, seconds_left)
                if prices is None:
                    return None
                found = Certificate(bound_tokens_per_s=bound, prices=prices, weights=weights)
                if shortfall(self.classes, found) > MARGIN:
                    return found
        return None

    def _weights(
        self, dearest: Sequence[float], bound: float, thorough: bool, seconds_left: Callable[[], float]
    ) -> Table | None:
        """The best weights for these prices of runs, or any that prove the bound. Unless thorough, it ends where they
        cannot."""
        model = mathopt.Model()
        weight = [[model.add_variable(lb=0.0, ub=1.0) for _ in node.rates] for node in self.classes]
        brought = [model.add_variable(lb=0.0) for _ in self.classes]
        for row, most in zip(weight, brought, strict=True):
            for price, w in zip(dearest, row, strict=False):
                model.add_linear_constraint(price * w - most <= 0.0)
        model.minimize(mathopt.fast_sum([c.count * u for c, u in zip(self.classes, brought, strict=True)]))

        def add(cover: Pattern) -> None:
            model.add_linear_constraint(mathopt.fast_sum([n * weight[c][k - 1] for (c, k), n in cover.items()]) >= 1.0)

        for cover in self._known(bound):
            add(cover)
        solver = mathopt.IncrementalSolver(model, mathopt.SolverType.GLOP)
        table: Table | None = None
        for _ in range(MAX_ROUNDS):
            result = _solved(solver, seconds_left)
            if result is None:
                return None
            values = result.variable_values()
            table = tuple(tuple(max(0.0, values[w]) for w in row) for row in weight)
            least, cover = cheapest_cover(self.classes, table, bound)
            if least >= 1.0 - VIOLATED or not cover or _total(table, cover) >= 1.0 - VIOLATED:
                break
            if result.objective_value() < least * (1 - 2 * MARGIN):
                break  # proves it as it is
            if result.objective_value() > 1.0 and not thorough:
                break  # more covers only cost more
            self._covers.append(cover)
            add(cover)
        return table

    def _known(self, bound: float) -> list[Pattern]:
        """Covers found before, and as many equal nodes as it takes."""
        above = bound * (1 + MARGIN)
        known = [p for p in self._covers if sum(n * self.classes[c].rates[k - 1] for (c, k), n in p.items()) > above]
        for c, node in enumerate(self.classes):
            for k, rate in enumerate(node.rates, start=1):
                if rate * node.count > above:
                    known.append({(c, k): min(math.floor(above / rate) + 1, node.count)})
        return known

    def _prices(self, weights: Table, seconds_left: Callable[[], float]) -> tuple[float, ...] | None:
        """The best prices for these weights."""
        model, num = mathopt.Model(), self.num_layers
        half = [model.add_variable(lb=0.0) for _ in range((num + 1) // 2)]
        price = [half[min(x, num - 1 - x)] for x in range(num)]
        brought = [model.add_variable(lb=0.0) for _ in weights]
        for row, most in zip(weights, brought, strict=True):
            largest = 0.0
            for k in range(len(row), 0, -1):
                if row[k - 1] <= largest:  # a longer run weighs as much
                    continue
                largest = row[k - 1]
                for s in range((num - k) // 2 + 1):
                    run = mathopt.fast_sum(price[s : s + k])
                    model.add_linear_constraint(largest * run - most <= 0.0)
        model.add_linear_constraint(mathopt.fast_sum(price) == 1.0)
        model.minimize(mathopt.fast_sum([c.count * u for c, u in zip(self.classes, brought, strict=True)]))
        result = _solved(mathopt.IncrementalSolver(model, mathopt.SolverType.GLOP), seconds_left)
        if result is None:
            return None
        return tuple(max(0.0, v) for v in result.variable_values(price))


def _every(step: int, num_layers: int) -> tuple[float, ...]:
    """Equal prices on every `step`-th layer, with sum 1."""
    some = [1.0 if x % step == step - 1 else 0.0 for x in range(num_layers)]
    return tuple(x / sum(some) for x in some)


def _total(table: Table, cover: Pattern) -> float:
    return sum(n * table[c][k - 1] for (c, k), n in cover.items())


def _solved(solver: mathopt.IncrementalSolver, seconds_left: Callable[[], float]) -> mathopt.SolveResult | None:
    """None unless GLOP reached its optimum in time."""
    left_s = min(seconds_left(), 3600.0)
    if left_s <= 0.0:
        return None
    result = solver.solve(params=mathopt.SolveParameters(time_limit=datetime.timedelta(seconds=left_s)))
    return result if result.termination.reason is mathopt.TerminationReason.OPTIMAL else None
