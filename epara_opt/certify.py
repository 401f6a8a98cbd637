"""Certificates: prices from which anybody can recompute a plan's upper bound. No solver, no compiled code.

Give every unit of demand a price pi >= 0 and every byte per second of a directed link a price beta >= 0. Then

    U = sum_d pi_d offered_d + sum_h beta_h width_h + sum_n V_n

is at least the value of every placement: its value, plus the price of the demand and bandwidth it leaves over, is what
its servers earn after paying for what they use, and a server n earns at most V_n. Whatever the prices, U is a bound;
good ones make it tight. Nothing about how they were found needs to be trusted.

V_n sums over the server's pools. There, k groups of one column (a content, new or on residents that are alike) have k
of time for their tenants, who take the edge of highest gain per time first, each edge up to what is offered there: the
fractional knapsack, so no k groups of that content earn more. What the k-th copy adds falls with k. Copies of different
columns are valued as if they did not share demand, which only raises V_n. So per number of devices the best few copies
of a pool are enough, and a knapsack over numbers of devices packs them.

Chains over several servers take devices of pools q at a price sigma_q >= 0 each, absent: 0. In place of what those
pools earn on all their G_q devices stands the most that they earn by both, and what chains earn above prices:

    sum_q max_{0 <= x <= G_q} (packing_q(G_q - x) + sigma_q x)
        + sum_c sum_{i <= u_c} max(0, gain_ci - sum_q sigma_q k_cq)

Chain c takes k_cq devices of q; gain_ci is what its i-th copy adds, falling with i, after the prices of demand and of
the bandwidth it keeps; u_c is the most copies that devices and demand allow. No placement earns more: let chains take
x_q of a pool's devices. What they earn is at most their gains above the price of what they take, plus sum_q sigma_q
x_q, and the pools earn at most packing_q(G_q - x_q). Valid for any sigma; with good ones hardly any chain gains more
than its price.

Columns are those of `formulation.compact`, of which a column with a tenant that gains nowhere is left out: the others
gain no less without it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from epara_opt.errors import PlanRejected
from epara_opt.formulation.compact import Column, chain_columns, columns_of
from epara_opt.placement import link_widths
from epara_opt.plan import Certificate, Plan
from epara_opt.problem import PlacementProblem

DIGITS = 9  # significant, of a stored price
SAME = 1e-6  # relative: what sums in another order may differ by, and more


def certificate_of(
    problem: PlacementProblem,
    demand: Mapping[tuple[str, str], float],
    links: Mapping[tuple[str, str], float],
    *,
    devices: Mapping[tuple[str, str], float] | None = None,
    bound: float | None = None,
) -> Certificate:
    """Prices by (service, origin), by directed link, and of devices to chains by (server, type) as a certificate.

    bound: what these prices, rounded as `rounded` does, were found to prove; worked out here when None.
    """
    by_service: dict[str, dict[str, float]] = {}
    for (service, origin), price in demand.items():
        if price > 0.0:
            by_service.setdefault(service, {})[origin] = rounded(price)
    by_end: dict[str, dict[str, float]] = {}
    for (a, b), price in links.items():
        if price > 0.0:
            by_end.setdefault(a, {})[b] = rounded(price)
    by_server: dict[str, dict[str, float]] = {}
    for (server, device_type), price in (devices or {}).items():
        if price > 0.0:
            by_server.setdefault(server, {})[device_type] = rounded(price)
    found = Certificate(
        inputs_digest=problem.digest,
        bound=0.0 if bound is None else bound,
        demand=by_service,
        links=by_end,
        devices=by_server,
        digest="",
    )
    if bound is None:
        found = _with(found, certified_bound(problem, found))
    return _with(found, found.bound)


def _with(certificate: Certificate, bound: float) -> Certificate:
    content: list[Any] = [certificate.inputs_digest, bound, certificate.demand, certificate.links]
    content += [certificate.devices] if certificate.devices else []
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    return replace(certificate, bound=bound, digest=digest)


def rounded(price: float) -> float:
    """A price as certificates store it."""
    return float(f"{price:.{DIGITS}g}")


def certify(plan: Plan, problem: PlacementProblem) -> float:
    """The bound that the plan's certificate proves for this problem. Raises PlanRejected where claims do not hold."""
    found = plan.certificate
    if found is None:
        raise PlanRejected(["certificate: expected prices; this plan carries none"])
    if found.inputs_digest != problem.digest:
        law = f"certificate.inputs_digest: expected {problem.digest}, the digest of these inputs"
        raise PlanRejected([f"{law}, got {found.inputs_digest}"])
    broken: list[str] = []
    for what, prices in (("demand", found.demand), ("links", found.links), ("devices", found.devices)):
        for key, inner in prices.items():
            broken += [
                f"certificate.{what}.{key}.{other}: expected a price >= 0, got {price}"
                for other, price in inner.items()
                if not 0.0 <= price < float("inf")
            ]
    if broken:
        raise PlanRejected(broken)
    bound = certified_bound(problem, found)
    if not abs(bound - found.bound) <= SAME * abs(bound):  # terms are >= 0: sums differ relatively, however small; NaN
        broken.append(f"certificate.bound: its prices prove {bound:.9g}, got {found.bound:.9g}")
    if not plan.objective <= bound * (1.0 + SAME):
        broken.append(f"objective: expected at most the certified bound {bound:.9g}, got {plan.objective:.9g}")
    if broken:
        raise PlanRejected(broken)
    return bound


def certified_bound(problem: PlacementProblem, certificate: Certificate) -> float:
    """U of the module's docstring."""
    widths = link_widths(problem.topology)
    total = sum(certificate.demand.get(d.service, {}).get(d.origin, 0.0) * d.offered for d in problem.demand) + sum(
        price * widths.get((a, b), 0.0) for a, ends in certificate.links.items() for b, price in ends.items()
    )
    chained = chain_gains(problem, certificate)
    taken = {pool for column, _ in chained for pool in column.content.pools_at(column.server)}
    for pool in _pools(problem, certificate):
        if (pool.server, pool.device_type) not in taken:
            total += _packing(pool, 0)
            continue
        taken.remove((pool.server, pool.device_type))
        price = certificate.devices.get(pool.server, {}).get(pool.device_type, 0.0)
        total += max(_packing(pool, -x) + price * x for x in range(pool.count + 1))
    for server, device_type in taken:  # pools that hold nothing but chains
        count = next(p.count for p in problem.topology.servers[server].devices if p.type == device_type)
        total += certificate.devices.get(server, {}).get(device_type, 0.0) * count
    for column, gains in chained:
        rent = sum(
            number * certificate.devices.get(server, {}).get(device_type, 0.0)
            for (server, device_type), number in column.content.pools_at(column.server).items()
        )
        total += sum(gain - rent for gain in gains if gain > rent)
    return total


def chain_gains(problem: PlacementProblem, certificate: Certificate) -> list[tuple[Column, list[float]]]:
    """Every chain's column, and what each of its copies adds after prices of demand and links, falling."""
    prices: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    found: list[tuple[Column, list[float]]] = []
    for column in chain_columns(problem):
        kept = sum(load * certificate.links.get(a, {}).get(b, 0.0) for (a, b), load in column.content.reserved)
        gains = _copies(problem, certificate, prices, column, column.max_groups)
        found.append((column, [gain - kept for gain in gains]))
    return found


def worth_of_one_more(problem: PlacementProblem, certificate: Certificate) -> dict[tuple[str, str], float]:
    """What one more device at each (server, device type) could add at these prices: an estimate, to choose by.

    No plan for one more device gains more than the bound rises by, and the bound rises by at most this.
    """
    return {
        (pool.server, pool.device_type): _packing(pool, 1) - _packing(pool, 0) for pool in _pools(problem, certificate)
    }


@dataclass(frozen=True, slots=True)
class _Pool:
    server: str
    device_type: str
    count: int
    gains: dict[int, list[float]]  # by devices of a group: what single copies add, the highest first


def _pools(problem: PlacementProblem, certificate: Certificate) -> Iterator[_Pool]:
    columns: dict[tuple[str, str], list[Column]] = {}
    for column in columns_of(problem):
        columns.setdefault((column.server, column.content.device_type), []).append(column)
    prices: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for (server, device_type), mine in columns.items():
        count = next(p.count for p in problem.topology.servers[server].devices if p.type == device_type)
        gains: dict[int, list[float]] = {}
        for column in mine:
            full = not column.residents and column.max_groups == count // column.content.num_devices
            # One copy more than there are devices for: it gains less than those before it, so no packing of what
            # there is takes it, but `worth_of_one_more` may.
            found = _copies(problem, certificate, prices, column, column.max_groups + full)
            gains.setdefault(column.content.num_devices, []).extend(found)
        yield _Pool(server, device_type, count, {s: sorted(g, reverse=True) for s, g in gains.items()})


def _packing(pool: _Pool, more: int) -> float:
    """What the pool's best packing earns after prices, with so many devices more."""
    count = pool.count + more
    return _knapsack({size: gains[: count // size] for size, gains in pool.gains.items()}, count)


def _edge_prices(
    problem: PlacementProblem, certificate: Certificate, service: str, server: str
) -> list[tuple[float, float, float]]:
    """(price of a unit of work, slack_ms, offered) of a service's edges to a server, cheapest first."""
    found: list[tuple[float, float, float]] = []
    worth = problem.service(service).weight
    for e in problem.edges_by_service_server.get((service, server), ()):
        q = certificate.demand.get(service, {}).get(e.origin, 0.0)
        q += sum(load * certificate.links.get(a, {}).get(b, 0.0) for (a, b), load in problem.link_loads(e))
        if q < worth:
            found.append((q, e.slack_ms, problem.offered[service, e.origin]))
    return sorted(found)


def _copies(
    problem: PlacementProblem,
    certificate: Certificate,
    known: dict[tuple[str, str], list[tuple[float, float, float]]],
    column: Column,
    copies: int,
) -> list[float]:
    """What each of so many groups of a column adds, falling; shorter where later ones add nothing."""
    offers: list[tuple[float, float]] = []  # gain per time, time
    for tenant, earning in zip(column.content.tenants, column.earning, strict=True):
        key = (tenant.service, column.server)
        if key not in known:
            known[key] = _edge_prices(problem, certificate, *key)
        worth = problem.service(tenant.service).weight * earning
        mine = [
            ((worth - q) * tenant.work_per_s, offered / tenant.work_per_s)
            for q, slack_ms, offered in known[key]
            if slack_ms >= tenant.response_ms and q < worth
        ]
        if not mine:
            return []
        offers += mine
    offers.sort(reverse=True)
    gains: list[float] = []
    left, gain = 1.0, 0.0
    for rate, time in offers:
        while time > 0.0 and len(gains) < copies:
            part = min(left, time)
            gain += part * rate
            left -= part
            time -= part
            if left <= 0.0:
                gains.append(gain)
                left, gain = 1.0, 0.0
        if len(gains) == copies:
            return gains
    if gain > 0.0:
        gains.append(gain)
    return gains


def _knapsack(gains: Mapping[int, Sequence[float]], devices: int) -> float:
    """The most that groups of these sizes earn on so many devices; gains of each size are falling."""
    best = [0.0] * (devices + 1)
    for size, values in gains.items():
        before = best.copy()
        total = 0.0
        for number, value in enumerate(values, start=1):
            total += value
            for room in range(number * size, devices + 1):
                best[room] = max(best[room], before[room - number * size] + total)
    return best[devices]
