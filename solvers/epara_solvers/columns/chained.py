"""Chains over several servers in the column engine: what their devices are worth, and which to take.

Services on chains run nowhere else, so they share no demand with what runs inside servers: they meet only at devices
and links. Given prices of demand and links (from `columns.dual`), a pool loses V_q(G) - V_q(G - x) by giving up x
devices. Which chains pay for that is a linear program:

    max  sum_ce gain_ce y_ce - sum_c kept_c z_c - sum_qi slope_qi x_qi
    demand[d]   sum_ce y_ce <= offered_d                          dual pi_d
    devices[q]  sum_c k_cq z_c <= sum_i x_qi                      dual sigma_q
    link[h]     what z keeps and y puts on h <= width_h           where asked for
    work[c]     sum_e y_ce <= work_c z_c,   0 <= z_c <= u_c,   0 <= x_qi <= length_qi

with the convex hull of the losses in pieces i, gain_ce what a unit of work over edge e earns after link prices, and
kept_c the price of the bandwidth between its stages. Its duals are the best prices of chains' demand and of devices
that there are for the given prices of the rest, so one program stands in place of subgradient steps over sigma; the
certificate (see epara_opt.certify) needs nothing of it but them.

With whole z the program chooses chains together, where one after the other would take what fits first.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from epara_solvers.columns.arrays import F64, Ground
from epara_solvers.columns.dual import Prices
from epara_solvers.columns.pools import pool_values
from epara_solvers.planners.chains import Offer, Room, add, offer

from epara_opt.certify import certificate_of, chain_gains, rounded
from epara_opt.formulation.compact import Column
from epara_opt.placement import Placement, link_reserved, link_use, link_widths
from epara_opt.plan import Certificate
from epara_opt.problem import PlacementProblem

if TYPE_CHECKING:
    from ortools.math_opt.python import mathopt
else:
    try:
        from ortools.math_opt.python import mathopt
    except ImportError:  # an extra of the planner: without it prices stay as they are, and chains are chosen one by one
        mathopt = None

HAS_MATHOPT = bool(mathopt)
Pool = tuple[str, str]
LP_LIMIT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChainPrices:
    """Prices with chains, rounded as certificates store them, and the bound that they prove."""

    prices: Prices
    devices: Mapping[Pool, float]
    values: Mapping[Pool, F64]  # (G + 1,) what a pool that chains may use earns on so many devices
    bound: float

    def certificate(self, problem: PlacementProblem, ends: Sequence[tuple[str, str]]) -> Certificate:
        demand = zip(problem.demand, self.prices.pi.tolist(), strict=True)
        return certificate_of(
            problem,
            {(d.service, d.origin): p for d, p in demand},
            dict(zip(ends, self.prices.beta.tolist(), strict=True)),
            devices=self.devices,
            bound=self.bound,
        )


def price_chains(ground: Ground, columns: Sequence[Column], prices: Prices) -> ChainPrices:
    """The best prices of devices and of chains' demand beside these of all else, and their bound.

    Also with link prices raised by what chains would pay for bandwidth beyond them, where that proves less.
    """
    found, dearer = _priced(ground, columns, prices)
    if dearer.any():
        other, _ = _priced(ground, columns, Prices(prices.pi, prices.beta + dearer))
        found = min(found, other, key=lambda f: f.bound)
    return found


def _priced(ground: Ground, columns: Sequence[Column], prices: Prices) -> tuple[ChainPrices, F64]:
    """Prices and bound for fixed link prices, and the duals of links (H,) beyond these."""
    problem = ground.problem
    in_chains = np.array([d.service in problem.chains.services for d in problem.demand], dtype=np.bool_)
    pi = np.where(in_chains, 0.0, [rounded(p) for p in prices.pi.tolist()])
    beta = np.array([rounded(p) for p in prices.beta.tolist()], dtype=np.float64)
    found = pool_values(ground, Prices(pi, beta))
    every = {pool: found[q, : ground.arrays.pool_devices[q] + 1] for q, pool in enumerate(ground.pools)}
    used = {pool for c in columns for pool in c.content.pools_at(c.server)}
    counts = {(s.name, p.type): p.count for s in problem.topology.servers.values() for p in s.devices}
    values = {pool: every.get(pool, np.zeros(counts[pool] + 1)) for pool in sorted(used)}
    link_price = dict(zip(ground.table.link_ends, beta.tolist(), strict=True))
    duals, sigma, _ = _duals(problem, columns, link_price, values, {})
    widths = dict(zip(ground.table.link_ends, ground.table.link_width.tolist(), strict=True))
    *_, dearer = _duals(problem, columns, link_price, values, widths)
    for i, d in enumerate(problem.demand):
        if in_chains[i]:
            pi[i] = rounded(duals.get((d.service, d.origin), 0.0))
    priced = Prices(pi, beta)
    devices = {pool: rounded(price) for pool, price in sigma.items()}
    total = float(pi @ ground.arrays.offered + beta @ ground.arrays.link_width)
    total += sum(float(worth[-1]) for pool, worth in every.items() if pool not in used)
    for pool, worth in values.items():
        total += float(np.max(worth[::-1] + devices[pool] * np.arange(len(worth))))
    made = ChainPrices(prices=priced, devices=devices, values=values, bound=0.0)
    certificate = made.certificate(problem, ground.table.link_ends)
    for column, gains in chain_gains(problem, certificate):
        rent = sum(number * devices[pool] for pool, number in column.content.pools_at(column.server).items())
        total += sum(gain - rent for gain in gains if gain > rent)
    return replace(made, bound=total), np.array([dearer.get(end, 0.0) for end in ground.table.link_ends])


@dataclass(slots=True)
class _Program:
    """The module's program as MathOpt has it."""

    model: mathopt.Model
    copies: list[mathopt.Variable]  # z, by column
    demand: dict[tuple[str, str], mathopt.LinearConstraint]
    devices: dict[Pool, mathopt.LinearConstraint]
    links: dict[tuple[str, str], mathopt.LinearConstraint]  # parts of their width


def _program(
    problem: PlacementProblem,
    columns: Sequence[Column],
    link_price: Mapping[tuple[str, str], float],
    values: Mapping[Pool, F64],
    widths: Mapping[tuple[str, str], float],
    *,
    whole: bool,
) -> _Program:
    """widths: of the links that are rows, in bytes/s. whole: z is integer."""
    made = _Program(mathopt.Model(), [], {}, {}, {})
    model, objective = made.model, mathopt.LinearSum(())
    for pool, worth in values.items():
        made.devices[pool] = model.add_linear_constraint(ub=0.0)
        for length, slope in hull(worth[-1] - worth[::-1]):
            x = model.add_variable(lb=0.0, ub=length)
            made.devices[pool].set_coefficient(x, -1.0)
            objective -= slope * x
    for column in columns:
        (tenant,), (earning,) = column.content.tenants, column.earning
        z = model.add_variable(lb=0.0, ub=float(column.max_groups), is_integer=whole)
        made.copies.append(z)
        objective -= sum(load * link_price.get(hop, 0.0) for hop, load in column.content.reserved) * z
        for pool, number in column.content.pools_at(column.server).items():
            made.devices[pool].set_coefficient(z, float(number))
        for hop, load in column.content.reserved:
            if hop in widths:
                _row(made, hop).set_coefficient(z, load / widths[hop])
        work = model.add_linear_constraint(ub=0.0)
        work.set_coefficient(z, -tenant.work_per_s)
        worth_of_work = problem.service(tenant.service).weight * earning
        for edge in problem.edges_by_service_server.get((tenant.service, column.server), ()):
            gain = worth_of_work - sum(load * link_price.get(hop, 0.0) for hop, load in problem.link_loads(edge))
            if edge.slack_ms < tenant.response_ms or gain <= 0.0:
                continue
            key = (edge.service, edge.origin)
            if key not in made.demand:
                made.demand[key] = model.add_linear_constraint(ub=problem.offered[key])
            y = model.add_variable(lb=0.0)
            work.set_coefficient(y, 1.0)
            made.demand[key].set_coefficient(y, 1.0)
            for hop, load in problem.link_loads(edge):
                if hop in widths:
                    _row(made, hop).set_coefficient(y, load / widths[hop])
            objective += gain * y
    model.maximize(objective)
    return made


def _row(made: _Program, hop: tuple[str, str]) -> mathopt.LinearConstraint:
    if hop not in made.links:
        made.links[hop] = made.model.add_linear_constraint(ub=1.0)
    return made.links[hop]


def _duals(
    problem: PlacementProblem,
    columns: Sequence[Column],
    link_price: Mapping[tuple[str, str], float],
    values: Mapping[Pool, F64],
    widths: Mapping[tuple[str, str], float],
) -> tuple[dict[tuple[str, str], float], dict[Pool, float], dict[tuple[str, str], float]]:
    """Prices of chains' demand, of devices, and of a byte/s beyond link prices: the duals of the module's program;
    zeros where it was not solved."""
    if not HAS_MATHOPT:
        return {}, dict.fromkeys(values, 0.0), {}
    made = _program(problem, columns, link_price, values, widths, whole=False)
    limit = mathopt.SolveParameters(threads=1, time_limit=datetime.timedelta(seconds=LP_LIMIT_S))
    result = mathopt.solve(made.model, mathopt.SolverType.GLOP, params=limit)
    if not result.has_dual_feasible_solution():
        return {}, dict.fromkeys(values, 0.0), {}
    return (
        {key: max(0.0, result.dual_values(row)) for key, row in made.demand.items()},
        {pool: max(0.0, result.dual_values(row)) for pool, row in made.devices.items()},
        {hop: max(0.0, result.dual_values(row)) / widths[hop] for hop, row in made.links.items()},
    )


def together(
    problem: PlacementProblem,
    columns: Sequence[Column],
    link_price: Mapping[tuple[str, str], float],
    values: Mapping[Pool, F64],
    *,
    time_limit_s: float,
) -> list[Column]:
    """The whole chains that the module's program takes, each as often as it does; none where it found nothing."""
    if not HAS_MATHOPT:
        return []
    made = _program(problem, columns, link_price, values, link_widths(problem.topology), whole=True)
    limit = mathopt.SolveParameters(time_limit=datetime.timedelta(seconds=max(0.05, time_limit_s)))
    result = mathopt.solve(made.model, mathopt.SolverType.HIGHS, params=limit)
    if not result.has_primal_feasible_solution():
        return []
    return [c for c, z in zip(columns, made.copies, strict=True) for _ in range(round(result.variable_values(z)))]


def hull(losses: F64) -> list[tuple[int, float]]:
    """Pieces (length, slope) of the largest convex function at most `losses` (G + 1,), from 0 on."""
    kept = [0]
    for x in range(1, len(losses)):
        while len(kept) > 1:
            a, b = kept[-2], kept[-1]
            if (losses[b] - losses[a]) * (x - a) < (losses[x] - losses[a]) * (b - a):
                break
            kept.pop()
        kept.append(x)
    return [(b - a, float(losses[b] - losses[a]) / (b - a)) for a, b in pairwise(kept)]


def choose(
    problem: PlacementProblem,
    columns: Sequence[Column],
    priced: ChainPrices,
    link_price: Mapping[tuple[str, str], float],
    *,
    first: Sequence[Column] = (),
    never: Sequence[Column] = (),
) -> tuple[Placement, list[Column]]:
    """Chains alone: those that gain more than their devices and links earn otherwise, the best per device first.

    first: taken before any other, where they fit; never: not taken.
    """
    placement, taken = Placement(groups=(), flows=()), list[Column]()
    wanted = list(first)
    while True:
        room = Room.beside(problem, placement)
        given = _given(placement)
        if wanted:
            column = wanted.pop(0)
            found = offer(problem, column, room)
            best = (column, found) if found is not None else None
            if best is None:
                continue
        else:
            best = None
            most = 0.0
            for column in columns:
                found = offer(problem, column, room) if column not in never else None
                if found is None:
                    continue
                net = net_gain(problem, found, priced.values, given, link_price) / found.group.content.num_devices
                if net > most:
                    best, most = (column, found), net
        if best is None:
            return placement, taken
        placement = add(placement, best[1])
        taken.append(best[0])


def _given(placement: Placement) -> dict[Pool, int]:
    """Devices that chains have taken."""
    given: dict[Pool, int] = {}
    for group in placement.groups:
        for pool, number in group.pools.items():
            given[pool] = given.get(pool, 0) + number
    return given


def net_gain(
    problem: PlacementProblem,
    found: Offer,
    values: Mapping[Pool, F64],
    given: Mapping[Pool, int],
    link_price: Mapping[tuple[str, str], float],
) -> float:
    """What a chain gains less what its devices, beyond those already given, and its bandwidth earn inside servers."""
    net = found.gain
    for pool, number in found.group.pools.items():
        left = len(values[pool]) - 1 - given.get(pool, 0)
        net -= float(values[pool][left] - values[pool][left - number])
    net -= sum(load * link_price.get(hop, 0.0) for hop, load in found.group.content.reserved)
    for flow in found.flows:
        net -= flow.rate * sum(load * link_price.get(hop, 0.0) for hop, load in problem.link_loads(flow.edge))
    return net


def inside_servers(problem: PlacementProblem, chains: Placement) -> PlacementProblem:
    """The problem of what runs inside servers on the devices and bandwidth that chains leave."""
    given = _given(chains)
    servers = {
        s.name: replace(
            s,
            devices=tuple(
                replace(p, count=p.count - given.get((s.name, p.type), 0))
                for p in s.devices
                if p.count > given.get((s.name, p.type), 0)
            ),
        )
        for s in problem.topology.servers.values()
    }
    width = problem.table.link_width.copy()
    place = {end: i for i, end in enumerate(problem.table.link_ends)}
    for used in (link_reserved(chains.groups), link_use(problem, chains.flows)):
        for hop, load in used.items():
            width[place[hop]] = max(0.0, width[place[hop]] - load)
    # A link that is full must still have a width to divide by; nothing fits through this one.
    width = np.maximum(width, 1e-9 * problem.table.link_width)
    moved = sum(problem.is_move(g.content, g.resident) for g in chains.groups)
    allowed = problem.rules.max_moves
    rules = problem.rules if allowed is None else replace(problem.rules, max_moves=max(0, allowed - moved))
    return replace(
        problem,
        topology=replace(problem.topology, servers=servers),
        table=replace(problem.table, link_width=width),
        rules=rules,
    )
