"""Applying a plan: one transaction over all executors.

Models are fetched first, beside whatever runs, with a deadline of their own. Then: prepare everywhere (new groups,
and new tenants of groups that run), switch, retire last; `transition` says in which stages, `transaction` does them.
Until the switch is complete any failure takes everything back to the plan in force; after it, a failure leaves
leftovers (reported, cleaned up by the next cycle), for the plan is in force then. A planner that dies in the middle
leaves executors that each serve what they were last told; the next one finds both plans in the store.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from epara_opt.control.diff import actions
from epara_opt.control.ports import Fence, Fleet
from epara_opt.control.routing import standing
from epara_opt.control.transaction import Progress, Transaction
from epara_opt.control.transition import stages
from epara_opt.domain.profile import ProfileCatalogue
from epara_opt.domain.service import Task
from epara_opt.domain.topology import Topology
from epara_opt.errors import FleetError, InputError, StaleFence, Violation
from epara_opt.plan import Action, ActionKind, Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """The plan is in force."""

    changed: bool  # False: it was in force already, and no executor was called
    generation: int
    actions: tuple[Action, ...] = ()
    num_loads: int = 0  # groups prepared
    fetch_s: float = 0.0  # until every server had its models on disk, before anything was changed
    wall_s: float = 0.0  # of the change itself
    leftovers: Mapping[str, str] = field(default_factory=dict[str, str])  # server to what could not be cleaned up


def apply(
    plan: Plan,
    in_force: Plan | None,
    topology: Topology,
    catalogue: ProfileCatalogue,
    fleet: Fleet,
    fence: Fence,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    deadline_s: float = 120.0,
    fetch_deadline_s: float = 3600.0,
    down: frozenset[str] = frozenset(),
    stale: frozenset[str] = frozenset(),
    expected_digest: str | None = None,
    max_parallel: int = 16,
    monotonic: Callable[[], float] = time.monotonic,
) -> Applied:
    """Bring `plan` into force. Idempotent: a plan that is in force already changes nothing.

    deadline_s: for the whole transaction; loading models takes most of it. It begins when they are on disk.
    fetch_deadline_s: for bringing them there, where they are not.
    down, stale: see `transition.stages`.
    expected_digest: where known, the digest of the problem that the plan must have been made for.
    max_parallel: executors called at the same time; 1 makes the order of calls deterministic.

    Raises InputError (plan for another topology, nothing was called), StaleFence (a newer planner or plan),
    ModelsOnTheWay (fetching took longer; nothing was changed, and they keep coming),
    another FleetError of the executor that failed (everything taken back, the plan in force stays) or
    PartlyApplied (taking back failed too).
    """
    began = monotonic()
    check(plan, topology, expected_digest=expected_digest)
    todo = stages(in_force, plan, topology, catalogue, down=down, stale=stale)
    if not todo:
        return Applied(changed=False, generation=in_force.generation if in_force else plan.generation)
    if in_force is not None and min(plan.generation, fence.generation) < in_force.generation:
        raise StaleFence(
            f"plan of generation {min(plan.generation, fence.generation)} is older than {in_force.generation}, "
            f"which is in force: plan again from it"
        )
    run = Transaction(
        plan=plan,
        before=standing(in_force, topology, down),
        topology=topology,
        catalogue=catalogue,
        fleet=fleet,
        fence=fence,
        down=down,
        monotonic=monotonic,
        max_parallel=max_parallel,
        on_progress=on_progress,
        num_stages=len(todo),
    )
    run.require_addresses(todo)
    run.fetch(todo, deadline_s=fetch_deadline_s)
    fetched = monotonic()
    run.must_end(fetched + deadline_s)
    for stage in todo:
        try:
            run.do(stage)
        except FleetError as e:
            run.take_back(stage, e)
            raise
    return Applied(
        changed=True,
        generation=fence.generation,
        actions=actions(in_force, plan, topology, catalogue, down=down, stale=stale),
        num_loads=sum(len(g) for s in todo if s.kind is ActionKind.PREPARE for g in s.groups.values()),
        fetch_s=fetched - began,
        wall_s=monotonic() - fetched,
        leftovers=dict(run.leftovers),
    )


def check(plan: Plan, topology: Topology, *, expected_digest: str | None = None) -> None:
    """Refuse a plan made for another topology. Raises InputError with every violation."""
    found: list[Violation] = []
    if plan.topology != topology.name:
        found.append(Violation(path="plan.topology", law=f"expected {topology.name!r}", value=plan.topology))
    if plan.topology_digest and topology.digest and plan.topology_digest != topology.digest:
        law = f"expected {topology.digest}: topology or profiles changed since the plan was made"
        found.append(Violation(path="plan.topology_digest", law=law, value=plan.topology_digest))
    if expected_digest is not None and plan.inputs_digest != expected_digest:
        found.append(
            Violation(
                path="plan.inputs_digest",
                law=f"expected {expected_digest}: topology, demand, profiles or rules changed since it was made",
                value=plan.inputs_digest,
            )
        )
    ids = {r.id for r in plan.replicas}
    for r in plan.replicas:
        path = f"plan.replicas.{r.id}"
        for at, part in [(f"{path}.stages[{i}]", s) for i, s in enumerate(r.stages)] or [(path, r)]:
            server = topology.servers.get(part.server)
            if server is None:
                found.append(Violation(path=f"{at}.server", law="expected a server of the topology", value=part.server))
                continue
            count = next((p.count for p in server.devices if p.type == part.device_type), 0)
            if not part.devices or min(part.devices) < 0 or max(part.devices) >= count:
                value = f"{part.device_type} {part.devices}"
                law = f"expected devices of {part.server}, which has {count}"
                found.append(Violation(path=f"{at}.devices", law=law, value=value))
        service = topology.services.get(r.service)
        if service is None:
            found.append(Violation(path=f"{path}.service", law="expected a service of the topology", value=r.service))
        elif r.stages and service.model.task is not Task.TEXT_GENERATION:
            law = "expected none: executors run models of text-generation alone over several servers"
            found.append(Violation(path=f"{path}.stages", law=law, value=service.model.task.value))
    for x in plan.routes:
        path = f"plan.routes.{x.service}@{x.origin}"
        if x.origin not in topology.servers:
            found.append(Violation(path=f"{path}.origin", law="expected a server of the topology", value=x.origin))
        if x.replica not in ids:
            found.append(Violation(path=f"{path}.replica", law="expected a replica of the plan", value=x.replica))
    if found:
        raise InputError(found)
