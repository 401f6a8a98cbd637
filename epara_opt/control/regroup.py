"""Plans as executors can run them: what cannot be changed in a running group becomes a new one.

A group of one device takes tenants in while the others keep serving, so nothing is to be done for it. A group of
several ranks would have to pause for as long as the newcomer loads, which no plan prices, and no group changes its
shape or its place: such a group gets a new id on the devices planned, its loads are priced like any other's, and the
objective with them. Tenants that leave, and batches that change, never need that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from epara_opt.control.deploy import replicas_by_group
from epara_opt.control.reroute import earning_share
from epara_opt.domain.profile import ProfileCatalogue
from epara_opt.domain.topology import Topology
from epara_opt.plan import Plan, Replica, relative_gap
from epara_opt.problem import PlacementProblem


def regrouped(plan: Plan, in_force: Plan | None, problem: PlacementProblem) -> Plan:
    """`plan` with a new id for each group that cannot become in place what is planned; itself if there is none."""
    if in_force is None:
        return plan
    before = replicas_by_group(in_force.replicas)
    changed = {g for g, rs in replicas_by_group(plan.replicas).items() if g in before and not _in_place(before[g], rs)}
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
        notes=(*plan.notes, f"{len(changed)} group(s) cannot change in place and are loaded anew"),
    )


def _in_place(old: Sequence[Replica], new: Sequence[Replica]) -> bool:
    """Whether executors can turn one set of tenants of a group into the other while those that stay keep serving."""
    a, b = old[0], new[0]
    if (a.server, a.device_type, a.devices, a.tp, a.pp) != (b.server, b.device_type, b.devices, b.tp, b.pp):
        return False
    if [p[:3] for p in a.places] != [p[:3] for p in b.places]:
        return False
    return len(b.devices) == 1 or {r.id for r in new} <= {r.id for r in old}


def _name(replica: str, renamed: Mapping[str, Replica]) -> str:
    return renamed[replica].id if replica in renamed else replica


def _load_s(r: Replica, topology: Topology, catalogue: ProfileCatalogue) -> float:
    model = topology.services[r.service].model.profile_name
    return catalogue.shapes(model, r.device_type)[r.tp, r.pp].load_s
