"""What changes from one plan to another: the actions to take, and a summary for people."""

from __future__ import annotations

from dataclasses import dataclass

from epara_opt.control.deploy import replicas_by_group
from epara_opt.control.routing import EPSILON
from epara_opt.control.transition import reconfigured, stages
from epara_opt.domain.profile import ProfileCatalogue
from epara_opt.domain.topology import Topology
from epara_opt.plan import Action, Plan, Route


def actions(
    in_force: Plan | None,
    plan: Plan,
    topology: Topology,
    catalogue: ProfileCatalogue,
    *,
    down: frozenset[str] = frozenset(),
    stale: frozenset[str] = frozenset(),
) -> tuple[Action, ...]:
    """The plan's actions relative to the plan in force, in stages; none when nothing differs. See `transition`."""
    return tuple(
        Action(stage=stage.number, kind=stage.kind, server=server, groups=groups, detail=stage.detail)
        for stage in stages(in_force, plan, topology, catalogue, down=down, stale=stale)
        for server, groups in stage.groups.items()
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchChange:
    """A replica that stays and runs in other batches."""

    replica: str
    batch_before: int
    batch_after: int
    frames_before: int
    frames_after: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Diff:
    """Two plans compared, for `epara diff` and reports. Ids sorted; rates in each service's unit of work."""

    groups_kept: tuple[str, ...]
    groups_added: tuple[str, ...]
    groups_retired: tuple[str, ...]
    tenants_added: tuple[str, ...]  # replica ids on kept groups
    tenants_dropped: tuple[str, ...]  # replica ids on kept groups
    batch_changes: tuple[BatchChange, ...]
    rate_moved: dict[str, float]  # per service: work/s that goes another way than before, new and lost work left out
    rate_added: dict[str, float]  # per service: work/s served more than before; negative where less
    num_loads: int  # replicas that must be loaded
    load_s: float  # their load times added up
    objective_before: float
    objective_after: float

    @property
    def empty(self) -> bool:
        return not (
            self.groups_added
            or self.groups_retired
            or self.tenants_added
            or self.tenants_dropped
            or self.batch_changes
            or any(abs(v) > EPSILON for v in (*self.rate_moved.values(), *self.rate_added.values()))
        )


def compare(
    before: Plan | None, after: Plan, *, catalogue: ProfileCatalogue | None = None, topology: Topology | None = None
) -> Diff:
    """Summarize the way from `before` to `after`.

    With catalogue and topology, load times come from the profiles; without, from `after` itself (which records 0
    for what was resident when it was made).
    """
    old_groups = replicas_by_group(before.replicas) if before else {}
    new_groups = replicas_by_group(after.replicas)
    old = {r.id: r for r in before.replicas} if before else {}
    new = {r.id: r for r in after.replicas}
    kept = set(old_groups) & set(new_groups)
    load_s: dict[str, float] = {}
    for i, r in new.items():
        if i in old:
            continue
        service = topology.services.get(r.service) if topology else None
        profile = (
            catalogue.shapes(service.model.profile_name, r.device_type).get((r.tp, r.pp))
            if catalogue and service and not r.stages
            else None
        )
        load_s[i] = profile.load_s if profile else r.load_s
    moved, added = _rates_moved(before.routes if before else (), after.routes)
    return Diff(
        groups_kept=tuple(sorted(kept)),
        groups_added=tuple(sorted(set(new_groups) - kept)),
        groups_retired=tuple(sorted(set(old_groups) - kept)),
        tenants_added=tuple(sorted(i for i, r in new.items() if r.group in kept and i not in old)),
        tenants_dropped=tuple(sorted(i for i, r in old.items() if r.group in kept and i not in new)),
        batch_changes=tuple(
            BatchChange(
                replica=i,
                batch_before=old[i].batch,
                batch_after=new[i].batch,
                frames_before=old[i].frames,
                frames_after=new[i].frames,
            )
            for i in sorted(old.keys() & new.keys())
            if reconfigured(old[i], new[i])
        ),
        rate_moved=moved,
        rate_added=added,
        num_loads=len(load_s),
        load_s=sum(load_s.values()),
        objective_before=before.objective if before else 0.0,
        objective_after=after.objective,
    )


def _rates_moved(before: tuple[Route, ...], after: tuple[Route, ...]) -> tuple[dict[str, float], dict[str, float]]:
    """Per service and origin: what left some replicas for others is moved; the rest of the change is added."""
    change: dict[tuple[str, str], dict[str, float]] = {}
    for sign, routes in ((-1.0, before), (1.0, after)):
        for x in routes:
            row = change.setdefault((x.service, x.origin), {})
            row[x.replica] = row.get(x.replica, 0.0) + sign * x.rate
    moved: dict[str, float] = {}
    added: dict[str, float] = {}
    for (service, _), row in sorted(change.items()):
        more = sum(v for v in row.values() if v > 0)
        less = -sum(v for v in row.values() if v < 0)
        moved[service] = moved.get(service, 0.0) + min(more, less)
        added[service] = added.get(service, 0.0) + more - less
    return moved, added
