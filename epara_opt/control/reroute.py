"""The plan in force under a new demand: same replicas, other routes. What a change of replicas has to beat.

Also the cheapest answer to a new demand or a lost server: no model is loaded, only routes are committed.
"""

from __future__ import annotations

from dataclasses import replace

from epara_opt.busy import BusyTime
from epara_opt.control.routing import RouteBook, full_rates
from epara_opt.plan import Plan, Predicted, Replica, ServiceForecast, Stop, Unserved, relative_gap
from epara_opt.problem import MIN_EARNING, PlacementProblem

SOLVER = "reroute"  # in plans made here


def rerouted(
    in_force: Plan, problem: PlacementProblem, *, generation: int, dual_bound: float | None = None, fill: bool = True
) -> Plan:
    """Routes of `in_force` at the problem's demand, then (with `fill`) what is left placed where room is.

    First each route as demand has grown or shrunk since, so that what the plan left out takes nothing from what it
    serves; then, along the same routes, more of what is offered. Without `fill`: what the plan earns if nothing is
    touched, for executors split the work that really comes in the proportion of their routes. Replicas on servers
    that are down must have been taken out (`routing.standing`).
    """
    asked: dict[tuple[str, str], float] = {}
    then: dict[tuple[str, str], float] = {}  # offered when the plan was made
    for x in in_force.routes:
        asked[x.service, x.origin] = asked.get((x.service, x.origin), 0.0) + x.rate
    for part in (*in_force.routes, *in_force.unserved):
        then[part.service, part.origin] = then.get((part.service, part.origin), 0.0) + part.rate
    resident = {(r.group, s) for r in problem.residents for s in r.services}
    replicas = [replace(r, load_s=0.0) if (r.group, r.service) in resident else r for r in in_force.replicas]
    book = RouteBook(replicas, problem.topology, problem.catalogue, busy=problem.busy)
    for x in in_force.routes:
        offered = problem.offered.get((x.service, x.origin), 0.0)
        if then[x.service, x.origin] > 0:
            book.add(x.service, x.origin, x.replica, x.rate / then[x.service, x.origin] * offered)
    served = book.served()
    for x in in_force.routes:
        key = (x.service, x.origin)
        left = problem.offered.get(key, 0.0) - served.get(key, 0.0)
        if asked[key] > 0 and left > 0:
            book.add(x.service, x.origin, x.replica, x.rate / asked[key] * left)
    if fill:
        book.fill(problem.offered)
    return complete(problem, book, generation=generation, solver=SOLVER, dual_bound=dual_bound)


def earning_share(r: Replica, problem: PlacementProblem) -> float:
    """As `PlacementProblem.earning_share`, for a replica that says itself whether it must be loaded."""
    if not problem.residents or r.load_s == 0:
        return 1.0
    return max(MIN_EARNING, 1.0 - r.load_s / problem.rules.horizon_s)


def complete(
    problem: PlacementProblem,
    book: RouteBook,
    *,
    generation: int,
    solver: str,
    dual_bound: float | None = None,
    notes: tuple[str, ...] = (),
) -> Plan:
    """A whole plan from routes over replicas: forecasts, what is unserved, objective with loads priced in."""
    topology = problem.topology
    served = book.served()
    routes = book.routes()
    replicas = tuple(replace(r, endpoint=topology.servers[r.server].address or "") for r in book.replicas())
    earning = {r.id: earning_share(r, problem) for r in replicas}
    weight = {name: s.weight for name, s in topology.services.items()}
    objective = sum(weight[x.service] * x.rate * earning[x.replica] for x in routes)
    goodput = sum(weight[x.service] * x.rate for x in routes)
    offered = sum(weight[s] * rate for (s, _), rate in problem.offered.items())
    forecasts: list[ServiceForecast] = []
    for name in sorted({d.service for d in problem.demand}):
        asked = sum(rate for (s, _), rate in problem.offered.items() if s == name)
        got = sum(rate for (s, _), rate in served.items() if s == name)
        forecasts.append(
            ServiceForecast(
                service=name,
                category=str(problem.categories[name]),
                unit=topology.services[name].work_unit,
                offered=asked,
                goodput=got,
                slo_attainment=got / asked if asked > 0 else 1.0,
                worst_ms=max((x.predicted_ms for x in routes if x.service == name), default=0.0),
            )
        )
    full = full_rates(replicas, topology, problem.catalogue, BusyTime(max_utilization=1.0))
    utilization: dict[str, float] = {}
    for server in topology.servers.values():
        devices = sum(p.count for p in server.devices)
        if devices:
            here = {r.id: sum(place[0] == server.name for place in r.places) for r in replicas}
            used = sum(x.rate / full[x.replica] * here[x.replica] for x in routes if full[x.replica] > 0)
            utilization[server.name] = used / devices
    return Plan(
        generation=generation,
        topology=topology.name,
        inputs_digest=problem.digest,
        topology_digest=topology.digest,
        solver=solver,
        stop=Stop.HEURISTIC if problem.demand else Stop.NO_DEMAND,
        objective=objective,
        dual_bound=dual_bound,
        gap=relative_gap(objective, dual_bound),
        wall_s=0.0,
        replicas=replicas,
        routes=routes,
        unserved=tuple(
            Unserved(
                service=s,
                origin=o,
                rate=rate - served.get((s, o), 0.0),
                code="outbid",
                reason=f"outbid: {served.get((s, o), 0.0):.3g} of {rate:.3g} found room on what runs",
            )
            for (s, o), rate in sorted(problem.offered.items())
            if rate - served.get((s, o), 0.0) > 1e-6 * rate
        ),
        predicted=Predicted(
            goodput=goodput,
            offered=offered,
            slo_attainment=goodput / offered if offered > 0 else 1.0,
            services=tuple(forecasts),
            utilization=utilization,
        ),
        notes=notes,
    )
