"""The best plan of pooled pipelines: prices of devices, then a small program over the pipelines that they leave.

Fractional shares make it a linear program with one row per pool, max sum_p x_p with sum_p cost_pg x_p <= count_g, whose
prices lambda bound every plan by U = sum_g count_g lambda_g. With whole shares n >= 1 on its stages a pipeline loses

    loss_p(n) = sum_i lambda_{g(i)} n_i / shares_i - min_i n_i rate_i  >=  0

and a plan serves at most U less what its pipelines lose. So a pipeline whose least loss exceeds U - value is in no plan
better than `value`: of thousands some dozens remain, and a mixed-integer program over them finds the best plan of all:

    maximize    sum_p x_p
    subject to  staff[p, i]     x_p <= rate_pi n_pi                        n_pi whole
                filled[g, k]    sum_{p, i at place k} n_pi / shares_pi <= d_gk    d_gk whole (one place if mixed)
                pool[g]         sum_k d_gk <= count_g
"""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from ortools.math_opt.python import mathopt

from epara_solvers.layers.pooled import Pipeline, PooledModel, Staffed, pipelines, priced_bound, served

FEW = 16  # pipelines of the first program, which finds a plan to beat
SCALE = 1000.0  # requests/s per unit of x: figures near 1
SAME = 1e-9  # relative


@dataclass(frozen=True, slots=True, kw_only=True)
class PooledPlan:
    """A plan, what it serves, and what no plan exceeds."""

    plan: tuple[Staffed, ...]
    requests_per_s: float
    bound_requests_per_s: float  # by the last program; no more than what the prices prove
    prices: tuple[float, ...]  # per pool: they prove `fractional_bound` (pooled.priced_bound)
    fractional_bound_requests_per_s: float  # with fractions of shares, too
    considered: int  # pipelines on time
    left: int  # pipelines that the prices left to the last program


def solve(model: PooledModel, *, time_limit_s: float = 60.0, clock: Callable[[], float] = time.monotonic) -> PooledPlan:
    """The best plan, or the best one found in time, with a bound."""
    started = clock()
    known = list(pipelines(model))
    prices = device_prices(model, known)
    fractional = priced_bound(model, prices, known)
    losses = [least_loss(model, prices, line) for line in known]
    order = sorted(range(len(known)), key=lambda i: losses[i])
    plan, _ = _program(model, [known[i] for i in order[:FEW]], (time_limit_s + started - clock()) / 4)
    value = served(model, plan)
    left = [known[i] for i in order if losses[i] <= (fractional - value) * (1 + SAME) + SAME * fractional]
    better, bound = _program(model, left, time_limit_s + started - clock())
    if served(model, better) > value:
        plan, value = better, served(model, better)
    return PooledPlan(
        plan=tuple(plan),
        requests_per_s=value,
        bound_requests_per_s=max(value, min(bound, fractional)),
        prices=prices,
        fractional_bound_requests_per_s=fractional,
        considered=len(known),
        left=len(left),
    )


def device_prices(model: PooledModel, known: Sequence[Pipeline]) -> tuple[float, ...]:
    """Per pool, the requests/s that one more device is worth if shares may be fractions; the best bound's prices."""
    program = mathopt.Model()
    prices = [program.add_variable(lb=0.0) for _ in model.pools]
    for line in known:
        terms = [SCALE * line.devices_per_request(g) * price for g, price in enumerate(prices)]
        program.add_linear_constraint(mathopt.fast_sum(terms) >= 1.0)
    program.minimize(mathopt.fast_sum([pool.count * p for pool, p in zip(model.pools, prices, strict=True)]))
    result = mathopt.solve(program, mathopt.SolverType.GLOP)
    found = [SCALE * max(0.0, v) for v in result.variable_values(prices)]
    dear = (sum(p * line.devices_per_request(g) for g, p in enumerate(found)) for line in known)
    cheapest = min(dear, default=1.0)  # 1 but for the last digits: then no pipeline gains at these prices
    return tuple(p / cheapest for p in found)


def least_loss(model: PooledModel, prices: Sequence[float], line: Pipeline) -> float:
    """The least that it loses with whole shares on every stage; infinite where its devices are not there.

    For every number of shares on the stage that limits it, the others have as few as keep up.
    """
    least = math.inf
    pairs = list(zip(line.stages, line.requests_per_s, strict=True))
    for limiting, rate in pairs:
        shares = np.arange(1, model.pools[limiting.pool].count * limiting.shares + 1)
        pace = shares * rate
        cost = -pace
        for stage, other in pairs:
            staff = shares if stage is limiting else np.ceil(pace / other * (1 - SAME))
            cost = cost + prices[stage.pool] * staff / stage.shares
        least = min(least, float(cost.min(initial=math.inf)))
    return least


def _program(model: PooledModel, lines: Sequence[Pipeline], time_limit_s: float) -> tuple[list[Staffed], float]:
    """The best plan of these pipelines, as far as time allows, and what none of theirs exceeds."""
    if not lines:
        return [], 0.0
    program = mathopt.Model()
    paces = [program.add_variable(lb=0.0) for _ in lines]
    staff: list[list[mathopt.Variable]] = []
    parts: dict[tuple[int, int], list[mathopt.LinearTerm]] = {}
    for line, pace in zip(lines, paces, strict=True):
        row: list[mathopt.Variable] = []
        for place, (stage, rate) in enumerate(zip(line.stages, line.requests_per_s, strict=True)):
            n = program.add_integer_variable(lb=0.0, ub=model.pools[stage.pool].count * stage.shares)
            program.add_linear_constraint(pace - rate / SCALE * n <= 0.0)
            parts.setdefault((stage.pool, 0 if model.mixed_devices else place), []).append(n / stage.shares)
            row.append(n)
        staff.append(row)
    devices: dict[int, list[mathopt.Variable]] = {}
    for (pool, _), terms in parts.items():
        whole = program.add_integer_variable(lb=0.0, ub=model.pools[pool].count)
        program.add_linear_constraint(mathopt.fast_sum(terms) - whole <= 0.0)
        devices.setdefault(pool, []).append(whole)
    for pool, numbers in devices.items():
        program.add_linear_constraint(mathopt.fast_sum(numbers) <= model.pools[pool].count)
    program.maximize(mathopt.fast_sum(paces))
    parameters = mathopt.SolveParameters(
        time_limit=datetime.timedelta(seconds=max(0.01, time_limit_s)),
        relative_gap_tolerance=SAME,
        absolute_gap_tolerance=0.0,
        random_seed=1,
    )
    result = mathopt.solve(program, mathopt.SolverType.HIGHS, params=parameters)
    bound = result.termination.objective_bounds.dual_bound * SCALE
    if not result.has_primal_feasible_solution():
        return [], bound
    numbers = [tuple(round(v) for v in result.variable_values(row)) for row in staff]
    return [Staffed(line, row) for line, row in zip(lines, numbers, strict=True) if min(row) > 0], bound
