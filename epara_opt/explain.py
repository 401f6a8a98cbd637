"""Why a service is served as it is: read off the plan and the problem, nothing guessed."""

from __future__ import annotations

from dataclasses import dataclass

from epara_opt.errors import InputError, Violation
from epara_opt.plan import Plan, Replica, Unserved
from epara_opt.problem import PlacementProblem


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """One replica and why it is not somewhere nearer."""

    replica: str
    server: str
    where: str  # "l4 0+1, tp 2 pp 1, batch 8"
    company: tuple[str, ...]  # services that share its group
    origins: tuple[str, ...]  # "edge-a 3.5 req/s in 61 of 100 ms"
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What became of one service's demand, at one origin or all."""

    service: str
    category: str
    unit: str
    offered: float
    served: float
    placed: tuple[Placed, ...]
    unserved: tuple[Unserved, ...]


def explain(problem: PlacementProblem, plan: Plan, service: str, origin: str | None = None) -> Explanation:
    """Raises InputError for a service, or an origin, that nothing is known of."""
    asked = _known(problem, service, origin)
    routes = [r for r in plan.routes if r.service == service and origin in (None, r.origin)]
    used = {r.replica for r in routes}
    replicas = [r for r in plan.replicas if r.service == service and r.id in used]
    return Explanation(
        service=service,
        category=str(problem.categories[service]),
        unit=problem.service(service).work_unit,
        offered=sum(asked.values()),
        served=sum(r.rate for r in routes),
        placed=tuple(_placed(problem, plan, r, origin) for r in replicas),
        unserved=tuple(u for u in plan.unserved if u.service == service and origin in (None, u.origin)),
    )


def _known(problem: PlacementProblem, service: str, origin: str | None) -> dict[str, float]:
    """Origin to what is offered there."""
    if service not in problem.topology.services:
        law = f"expected one of {', '.join(sorted(problem.topology.services))}"
        raise InputError(Violation(path="service", law=law, value=service))
    asked = {d.origin: d.offered for d in problem.demand if d.service == service}
    if not asked:
        law = "expected a service that is asked for somewhere"
        raise InputError(Violation(path="service", law=law, value=service))
    if origin is None:
        return asked
    if origin not in asked:
        law = f"expected an origin of {service}: {', '.join(sorted(asked))}"
        raise InputError(Violation(path="origin", law=law, value=origin))
    return {origin: asked[origin]}


def _placed(problem: PlacementProblem, plan: Plan, replica: Replica, origin: str | None) -> Placed:
    service = problem.service(replica.service)
    routes = [r for r in plan.routes if r.replica == replica.id and origin in (None, r.origin)]
    return Placed(
        replica=replica.id,
        server=replica.server,
        where=_where(replica),
        company=tuple(
            sorted(r.service for r in plan.replicas if r.group == replica.group and r.service != replica.service)
        ),
        origins=tuple(
            f"{r.origin}: {r.rate:.4g} {service.work_unit} in {r.predicted_ms:.0f} of {service.deadline_ms:.0f} ms"
            for r in routes
        ),
        why=_why_here(problem, plan, replica, routes[0].origin if routes else ""),
    )


def _where(replica: Replica) -> str:
    if not replica.stages:
        return f"{replica.device_type} {'+'.join(map(str, replica.devices))}, {replica.config}"
    stages = (
        f"layers {s.first_layer}-{s.end_layer - 1} on {s.device_type} {'+'.join(map(str, s.devices))} at {s.server}"
        for s in replica.stages
    )
    return f"{', '.join(stages)}; {replica.config}"


def _why_here(problem: PlacementProblem, plan: Plan, replica: Replica, origin: str) -> str:
    """What stands on the servers nearer to the origin that could have served it."""
    edges = sorted(
        problem.edges_by_service_origin.get((replica.service, origin), ()), key=lambda e: (e.network_ms, e.server)
    )
    able = {
        content.device_type: min(t.response_ms for t in content.tenants if t.service == replica.service)
        for contents in problem.contents.values()
        for content in contents
        if replica.service in content.services and len(content.tenants) == 1
    }
    nearer: list[str] = []
    for edge in edges:
        if edge.server == replica.server:
            break
        types = [p for p in problem.topology.servers[edge.server].devices if p.type in able]
        if not any(able[p.type] <= edge.slack_ms for p in types):
            continue
        holds = sorted({r.service for r in plan.replicas if r.server == edge.server})
        nearer.append(f"{edge.server} holds {', '.join(holds)}" if holds else f"{edge.server} is left idle")
    if replica.stages:
        return "fits on no server alone, so it runs over several; this was worth more than what their devices did else"
    if not nearer:
        return f"no server nearer to {origin} could serve it in time"
    return f"nearer to {origin}: " + "; ".join(nearer[:3]) + ("; and more" if len(nearer) > 3 else "")
