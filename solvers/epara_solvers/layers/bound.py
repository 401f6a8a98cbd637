"""Covering weights found by linear programs: the tightest bound that `cover` can prove.

For a bound B, with weights w_t per table t (a table serves one or more layers), p_t the least weight of a cover, u_c what a
node of class c brings at most:

    minimize    sum_c count_c u_c
    subject to  run[c, k, s]      sum_{x in [s, s + k)} w_{t(x)}(c, k) <= u_c
                cover[t, P]       sum_{(c, k) in P} P(c, k) w_t(c, k)  >= p_t     for every P with rates above B
                scale             sum_x p_{t(x)} = 1

Below 1, it proves B. Covers are found as they are needed (`cover.cheapest_cover`), starting from those of equal nodes.
One table for all layers is small and often enough: layers then count alike. A table for every layer (and its mirror
image) sees that runs are whole and end where the model does: three nodes of four layers do not hold ten twice over.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ortools.math_opt.python import mathopt

from epara_solvers.layers.cover import MARGIN, Certificate, NodeClass, Pattern, Table, cheapest_cover, shortfall

MAX_ROUNDS = 200
VIOLATED = 1e-7  # in parts of 1, the weight of all layers' covers


def alike(num_layers: int) -> tuple[int, ...]:
    """One table for all layers."""
    return (0,) * num_layers


def mirrored(num_layers: int) -> tuple[int, ...]:
    """A table for every layer and its mirror image: where a split exists so does its reverse."""
    return tuple(min(x, num_layers - 1 - x) for x in range(num_layers))


@dataclass(slots=True)
class _Program:
    model: mathopt.Model
    weight: dict[tuple[int, int, int], mathopt.Variable]  # (table, class, k)
    least: list[mathopt.Variable]  # per table
    brought: list[mathopt.Variable]  # per class

    def add_cover(self, t: int, pattern: Pattern) -> None:
        terms = [n * self.weight[t, c, k] for (c, k), n in pattern.items()]
        self.model.add_linear_constraint(mathopt.fast_sum(terms) - self.least[t] >= 0.0)


def prove(
    classes: Sequence[NodeClass],
    table_of_layer: tuple[int, ...],
    bound: float,
    *,
    seconds_left: Callable[[], float] = lambda: math.inf,
) -> Certificate | None:
    """A certificate that no flow exceeds `bound`; None if these tables have none, or time is over."""
    program = _program(classes, table_of_layer)
    num_tables = max(table_of_layer) + 1
    for t in range(num_tables):
        for pattern in _plain_covers(classes, bound):
            program.add_cover(t, pattern)
    solver = mathopt.IncrementalSolver(program.model, mathopt.SolverType.GLOP)
    for _ in range(MAX_ROUNDS):
        if seconds_left() <= 0.0:
            return None
        limit = min(seconds_left(), 3600.0)
        result = solver.solve(params=mathopt.SolveParameters(time_limit=datetime.timedelta(seconds=limit)))
        if result.termination.reason is not mathopt.TerminationReason.OPTIMAL or result.objective_value() > 1 - MARGIN:
            return None
        tables = _tables(classes, program, result, num_tables)
        found = Certificate(bound_tokens_per_s=bound, tables=tables, table_of_layer=table_of_layer)
        least = result.variable_values(program.least)
        covers = [cheapest_cover(classes, table, bound) for table in tables]
        missed = [
            t for t, (w, pattern) in enumerate(covers) if pattern and w < least[t] - VIOLATED / len(table_of_layer)
        ]
        if shortfall(classes, found) > MARGIN:
            return found
        if not missed:
            return None
        for t in missed:
            program.add_cover(t, covers[t][1])
    return None


def _program(classes: Sequence[NodeClass], table_of_layer: tuple[int, ...]) -> _Program:
    num_layers, num_tables = len(table_of_layer), max(table_of_layer) + 1
    model = mathopt.Model()
    weight = {
        (t, c, k): model.add_variable(lb=0.0)
        for t in range(num_tables)
        for c, node in enumerate(classes)
        for k in range(1, len(node.rates) + 1)
    }
    least = [model.add_variable(lb=0.0) for _ in range(num_tables)]
    brought = [model.add_variable(lb=0.0) for _ in classes]
    for c, node in enumerate(classes):
        for k in range(1, len(node.rates) + 1):
            runs = {tuple(sorted(table_of_layer[s : s + k])) for s in range(num_layers - k + 1)}
            for run in sorted(runs):
                terms = [weight[t, c, k] for t in run]
                model.add_linear_constraint(mathopt.fast_sum(terms) - brought[c] <= 0.0)
    model.add_linear_constraint(mathopt.fast_sum([least[t] for t in table_of_layer]) == 1.0)
    model.minimize(mathopt.fast_sum([node.count * brought[c] for c, node in enumerate(classes)]))
    return _Program(model, weight, least, brought)


def _plain_covers(classes: Sequence[NodeClass], bound: float) -> list[Pattern]:
    """As many equal nodes as it takes."""
    covers: list[Pattern] = []
    for c, node in enumerate(classes):
        for k, rate in enumerate(node.rates, start=1):
            if rate > 0.0 and rate * node.count > bound * (1 + MARGIN):
                needed = math.floor(bound * (1 + MARGIN) / rate) + 1
                covers.append({(c, k): min(needed, node.count)})
    return covers


def _tables(
    classes: Sequence[NodeClass], program: _Program, result: mathopt.SolveResult, num_tables: int
) -> tuple[Table, ...]:
    value = result.variable_values()
    return tuple(
        tuple(
            tuple(max(0.0, value[program.weight[t, c, k]]) for k in range(1, len(node.rates) + 1))
            for c, node in enumerate(classes)
        )
        for t in range(num_tables)
    )
