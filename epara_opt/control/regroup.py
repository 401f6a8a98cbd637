"""Plans as executors can run them: the tenants of a running group never change.

A planner may keep a resident group and change its company: executors load a group as a whole, in one worker, so
such a group becomes a new one on the same devices. Its loads are priced like any other's, and the objective with
them. Groups that keep their tenants (in whatever batches) keep their ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from epara_opt.control.deploy import replicas_by_group
from epara_opt.control.reroute import earning_share
from epara_opt.domain.profile import ProfileCatalogue
from epara_opt.domain.topology import Topology
from epara_opt.plan import Plan, Replica, relative_gap
from epara_opt.problem import PlacementProblem


def regrouped(plan: Plan, in_force: Plan | None, problem: PlacementProblem) -> Plan:
    """`plan` with a new id for each kept group whose tenants differ from those in force; itself if there is none."""
    if in_force is None:
        return plan
    before = {g: {r.service for r in rs} for g, rs in replicas_by_group(in_force.replicas).items()}
    changed = {
        g for g, rs in replicas_by_group(plan.replicas).items() if g in before and before[g] != {r.service for r in rs}
    }
    if not changed:
        return plan
    renamed: dict[str, Replica] = {}
    for r in plan.replicas:
        if r.group in changed:
            group = f"{r.server}/{r.device_type}/{'+'.join(map(str, r.devices))}/{plan.generation}"
            load_s = _load_s(r, problem.topology, problem.catalogue)
            renamed[r.id] = replace(r, id=f"{r.service}@{group}", group=group, load_s=load_s)
    replicas = tuple(renamed.get(r.id, r) for r in plan.replicas)
    routes = tuple(replace(x, replica=_name(x.replica, renamed)) for x in plan.routes)
    earning = {r.id: earning_share(r, problem) for r in replicas}
    objective = sum(problem.service(x.service).weight * x.rate * earning[x.replica] for x in routes)
    return replace(
        plan,
        replicas=replicas,
        routes=routes,
        objective=objective,
        gap=relative_gap(objective, plan.dual_bound),
        actions=(),
        notes=(*plan.notes, f"{len(changed)} group(s) change tenants and are loaded anew"),
    )


def _name(replica: str, renamed: Mapping[str, Replica]) -> str:
    return renamed[replica].id if replica in renamed else replica


def _load_s(r: Replica, topology: Topology, catalogue: ProfileCatalogue) -> float:
    model = topology.services[r.service].model.profile_name
    return catalogue.shapes(model, r.device_type)[r.tp, r.pp].load_s
