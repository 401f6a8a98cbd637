"""Where the next device, link or memory would pay: candidates by the plan's prices, their gains by planning again.

A price says what a little more would be worth at most; a whole device is not a little, and its worth may lie elsewhere
than it seems. So prices only choose what to try, and every figure shown comes from a plan for the changed edge that
starts from the plan in force, moves priced, compared with a plan for the edge as it is that was made in the same way.
A gain is *proved* when the new plan earns more than the bound allows any plan for the edge as it is; else it is a
comparison of two plans, each within its gap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from epara_opt.certify import worth_of_one_more
from epara_opt.domain.topology import Topology
from epara_opt.placement import link_widths
from epara_opt.plan import Plan, Unserved
from epara_opt.problem import PlacementProblem
from epara_opt.whatif import Change, deadline_for, memory_for, more_devices, more_memory, wider_link

Replan = Callable[[Topology], Plan]  # for a changed edge, as the plan for the edge as it is was made

DEVICES, LINKS, MEMORIES = 5, 3, 2  # candidates of each kind that are planned for
WIDER = 2.0
LARGER = 1.5  # memory per device


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One change and what a plan for it promises."""

    change: str
    kind: str
    gain: float  # of the objective: weighted goodput per second
    service_gain: float  # of the service asked about, in its own unit; 0 where none was
    proved: bool  # more than any plan for the edge as it is could earn
    gap: float | None  # of the plan for the changed edge


def candidates(problem: PlacementProblem, plan: Plan) -> list[Change]:
    """What looks worth trying, the most promising of each kind first."""
    if plan.certificate is None:
        return []
    worth = worth_of_one_more(problem, plan.certificate)
    pools = sorted((p for p in worth if worth[p] > 0), key=lambda p: (-worth[p], p))
    changes = [more_devices(server, device_type) for server, device_type in pools[:DEVICES]]
    widths = link_widths(problem.topology)
    price: dict[tuple[str, str], float] = {}
    for a, ends in plan.certificate.links.items():
        for b, beta in ends.items():
            pair = (min(a, b), max(a, b))
            price[pair] = price.get(pair, 0.0) + beta * widths.get((a, b), 0.0)
    links = sorted((p for p in price if price[p] > 0), key=lambda p: (-price[p], p))
    changes += [wider_link(a, b, WIDER) for a, b in links[:LINKS]]
    by_type: dict[str, int] = {}
    for server in problem.topology.servers.values():
        for pool in server.devices:
            by_type[pool.type] = by_type.get(pool.type, 0) + pool.count
    for device_type in sorted(by_type, key=lambda t: (-by_type[t], t))[:MEMORIES]:
        now = problem.topology.device_types[device_type].memory_bytes
        changes.append(more_memory(problem.topology, device_type, now * LARGER))
    return changes


def fixes(problem: PlacementProblem, plan: Plan, unserved: Unserved) -> list[Change]:
    """What could let this demand be served: what its reason asks for, then more of what is scarce around it."""
    changes: list[Change] = []
    if unserved.code in ("no_memory", "no_profile"):
        changes += memory_for(problem, unserved.service)
    if unserved.code in ("no_route_in_time", "no_memory"):
        longer = deadline_for(problem, unserved.service, unserved.origin)
        changes += [longer] if longer is not None else []
    table = problem.edges_by_service_origin.get((unserved.service, unserved.origin), ())
    worth = worth_of_one_more(problem, plan.certificate) if plan.certificate is not None else {}
    can_run = {
        (t.service, device_type): content.num_devices
        for device_type, contents in problem.contents.items()
        for content in contents
        for t in content.tenants
        if len(content.tenants) == 1
    }
    pools = [
        (edge.network_ms, edge.server, pool.type, can_run[unserved.service, pool.type])
        for edge in table
        for pool in problem.topology.servers[edge.server].devices
        if (unserved.service, pool.type) in can_run
    ]
    pools.sort(key=lambda p: (-worth.get((p[1], p[2]), 0.0), p[0], p[1], p[2]))
    for _, server, device_type, num_devices in pools[:DEVICES]:
        there = next(p.count for p in problem.topology.servers[server].devices if p.type == device_type)
        changes.append(more_devices(server, device_type, max(1, num_devices - there)))
    if plan.certificate is not None:
        crossed = {hop for edge in table for hop in edge.path.hops}
        priced = {
            (min(a, b), max(a, b))
            for a, b in crossed
            if plan.certificate.links.get(a, {}).get(b, 0.0) + plan.certificate.links.get(b, {}).get(a, 0.0) > 0.0
        }
        changes += [wider_link(a, b, WIDER) for a, b in sorted(priced)[:LINKS]]
    return changes


def try_all(changes: Sequence[Change], topology: Topology, replan: Replan, service: str = "") -> list[Advice]:
    """Plan for every change; what gains most first, for the service where one is asked about."""
    found: list[Advice] = []
    plan = replan(topology)
    before = _goodput(plan, service)
    for change in changes:
        made = replan(change.apply(topology))
        found.append(
            Advice(
                change=change.name,
                kind=change.kind,
                gain=made.objective - plan.objective,
                service_gain=_goodput(made, service) - before,
                proved=plan.dual_bound is not None and made.objective > plan.dual_bound * (1.0 + 1e-9),
                gap=made.gap,
            )
        )
    return sorted(found, key=lambda a: (-(a.service_gain if service else a.gain), a.change))


def _goodput(plan: Plan, service: str) -> float:
    return sum(f.goodput for f in plan.predicted.services if f.service == service)
