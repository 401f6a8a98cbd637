"""How to get from the plan in force to another: stages that never overfill a device.

Make before break where memory allows: prepare what is new beside what runs, switch, retire. What does not fit
beside runs later: the replicas in its way (the *displaced*) leave first, their work re-routed to what stays as far
as that goes, and only then is the new prepared:

    1 PREPARE what fits beside   2 COMMIT without the displaced   3 RETIRE them
    4 PREPARE the rest           5 COMMIT the plan                6 RETIRE what it does not use

What runs of services or on devices that the topology has no more, and what is left of chains that have lost a server,
goes before all that: COMMIT without it, RETIRE it.
Stages 2 to 4 exist only where room must be made. Which replicas are displaced is chosen per device, least valuable
work first. Memory is counted per replica and device, as profiles give it, each stage of a chain where it stands. A
tenant that leaves a group that stays is unloaded by the executor after the commit, once it is idle; whole groups at the
retire.

A replica's batch changes in place, at a commit, and with it its memory. One that grows does so at the last commit,
beside all that only the last retire unloads: what it needs more must fit there too, or room is made for it first, by
replicas that shrink (at the first commit already) and by displaced ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, replace

from epara_opt.busy import BusyTime
from epara_opt.control.deploy import replicas_by_group, servers_used
from epara_opt.control.routing import RouteBook, standing
from epara_opt.domain.profile import ProfileCatalogue
from epara_opt.domain.topology import Topology
from epara_opt.plan import ActionKind, Plan, Replica

Device = tuple[str, str, int]  # server, device type, index
MAX_UTILIZATION = 1.0  # of a group's time in the moment between two stages; the plan's own limit returns with it


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Actions that may run side by side. Stages run in order."""

    number: int
    kind: ActionKind
    groups: Mapping[str, tuple[str, ...]]  # server to group ids; empty tuples for COMMIT
    target: Plan  # PREPARE: where the groups are described. COMMIT: what is switched to. RETIRE: what stays
    detail: str


def same_content(a: Plan | None, b: Plan) -> bool:
    """Whether two plans put the same replicas in the same shape and route the same rates."""
    if a is None:
        return not b.replicas and not b.routes
    return _shape(a.replicas) == _shape(b.replicas) and {(x.origin, x.replica): x.rate for x in a.routes} == {
        (x.origin, x.replica): x.rate for x in b.routes
    }


def _shape(replicas: Iterable[Replica]) -> dict[str, tuple[object, ...]]:
    return {r.id: (r.server, r.device_type, r.devices, r.tp, r.pp, r.batch, r.frames, r.stages) for r in replicas}


def stages(
    in_force: Plan | None,
    plan: Plan,
    topology: Topology,
    catalogue: ProfileCatalogue,
    *,
    down: frozenset[str] = frozenset(),
    stale: frozenset[str] = frozenset(),
) -> tuple[Stage, ...]:
    """The stages from `in_force` to `plan`; none when nothing differs. Deterministic, pure.

    down: servers that do not answer; nothing is asked of them, and what ran there is gone.
    stale: servers that must be committed again even when the plans agree (they came back with an older plan).
    """
    before = standing(in_force, topology, down)
    if same_content(before, plan) and (before is None or same_content(in_force, before)):
        servers = _committed(None, plan, topology, down) & stale
        if not servers:
            return ()
        return (_commit(1, servers, plan, "bring back in line"),)
    old = {r.id: r for r in before.replicas} if before else {}
    new = {r.id: r for r in plan.replicas}
    room = _make_room(old, new, before, topology)
    servers = _committed(in_force, plan, topology, down)
    made: list[Stage] = []

    def prepare(groups: frozenset[str], detail: str) -> None:
        if groups:
            made.append(
                Stage(
                    number=len(made) + 1,
                    kind=ActionKind.PREPARE,
                    groups=_by_server(groups, plan.replicas),
                    target=plan,
                    detail=detail,
                )
            )

    def retire(groups: set[str], target: Plan, detail: str) -> None:
        if groups and in_force is not None:
            where = _by_server(groups, in_force.replicas)
            made.append(
                Stage(
                    number=len(made) + 1,
                    kind=ActionKind.RETIRE,
                    groups={s: g for s, g in where.items() if s in topology.servers and s not in down},
                    target=target,
                    detail=detail,
                )
            )

    old_groups = {r.group for r in old.values()}
    if before is not None and (lost := _lost(in_force, old, topology, down)):
        made.append(_commit(1, servers, replace(before, generation=plan.generation), "without what the edge lost"))
        retire({r.group for r in lost} - old_groups, before, "not of this edge any more")
    prepare(room.early, "beside what runs")
    gone: set[str] = set()
    if room.is_made and before is not None:
        between = _between(before, plan, room, topology, catalogue)
        gone = old_groups - {r.group for r in between.replicas}
        made.append(_commit(len(made) + 1, servers, between, "make room"))
        retire(gone, between, "make room")
    prepare(room.late, "in the room made")
    made.append(_commit(len(made) + 1, servers, plan, f"plan {plan.generation}"))
    retire(old_groups - gone - {r.group for r in new.values()}, plan, "no longer used")
    return tuple(made)


def _lost(
    in_force: Plan | None, standing_now: Mapping[str, Replica], topology: Topology, down: frozenset[str]
) -> list[Replica]:
    """Replicas of services or devices that the topology has no more, on servers that answer: they hold memory.

    And chains that have lost a server, if only one of theirs answers.
    """
    up = topology.servers.keys() - down
    replicas = in_force.replicas if in_force else ()
    return [r for r in replicas if r.id not in standing_now and not up.isdisjoint(r.servers)]


def _commit(number: int, servers: frozenset[str], target: Plan, detail: str) -> Stage:
    return Stage(
        number=number,
        kind=ActionKind.COMMIT,
        groups=dict.fromkeys(sorted(servers), ()),
        target=target,
        detail=detail,
    )


def _committed(in_force: Plan | None, plan: Plan, topology: Topology, down: frozenset[str]) -> frozenset[str]:
    """Servers of either plan, and every other that has an executor: clients may enter anywhere."""
    addressed = {s.name for s in topology.servers.values() if s.address}
    old = {s for s in servers_used(in_force) if s in topology.servers}
    return frozenset((old | servers_used(plan) | addressed) - down)


def _by_server(groups: Set[str], replicas: Iterable[Replica]) -> dict[str, tuple[str, ...]]:
    table: dict[str, set[str]] = {}
    for r in replicas:
        if r.group in groups:
            for server in r.servers:
                table.setdefault(server, set()).add(r.group)
    return {server: tuple(sorted(table[server])) for server in sorted(table)}


def _held(r: Replica) -> dict[Device, int]:
    """Bytes on each device; a chain's stages hold what they need where they stand."""
    return {place[:3]: place[3] for place in r.places}


def reconfigured(old: Replica, new: Replica) -> bool:
    """Same replica, other batch, frames or shape: the executor prepares it again, in place."""
    return (old.batch, old.frames, old.tp, old.pp) != (new.batch, new.frames, new.tp, new.pp)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Room:
    """What is prepared when, and what goes first so that it fits."""

    early: frozenset[str]  # groups that fit beside what runs
    late: frozenset[str]  # groups that wait for room
    displaced: frozenset[str]  # replica ids that leave to make it
    shrunk: frozenset[str]  # replica ids that take their smaller batch before others grow or come

    @property
    def is_made(self) -> bool:
        return bool(self.displaced or self.shrunk)


def _make_room(
    old: Mapping[str, Replica], new: Mapping[str, Replica], before: Plan | None, topology: Topology
) -> _Room:
    """Until the last commit a device holds what runs, what comes, and every staying replica at its larger batch."""
    used: dict[Device, int] = {}

    def occupy(held: Mapping[Device, int], sign: int = 1) -> None:
        for d, num_bytes in held.items():
            used[d] = used.get(d, 0) + sign * num_bytes

    def fits(places: set[Device], adds: Iterable[Replica]) -> bool:
        more: dict[Device, int] = {}
        for r in adds:
            for d, num_bytes in _held(r).items():
                more[d] = more.get(d, 0) + num_bytes
        return all(used.get(d, 0) + more.get(d, 0) <= topology.device_types[d[1]].memory_bytes for d in places)

    freed: dict[str, dict[Device, int]] = {}  # what a replica gives back by its new batch
    taken: dict[str, dict[Device, int]] = {}  # what it needs more
    for i, r in old.items():
        now, then = _held(r), _held(new[i]) if i in new else {}
        freed[i] = {d: b - then[d] for d, b in now.items() if b > then.get(d, b)}
        taken[i] = {d: b - now.get(d, 0) for d, b in then.items() if b > now.get(d, 0)}
        occupy(now)
        occupy(taken[i])
    early: set[str] = set()
    late: set[str] = set()
    waiting: list[tuple[set[Device], list[Replica]]] = []
    groups = replicas_by_group(new.values())
    for group in sorted({r.group for i, r in new.items() if i not in old or reconfigured(old[i], r)}):
        adds = [r for r in groups[group] if r.id not in old]
        places = {d for r in adds for d in _held(r)} | {d for r in groups[group] for d in taken.get(r.id, ())}
        if fits(places, adds):
            early.add(group)
            for r in adds:
                occupy(_held(r))
        else:
            late.add(group)
            waiting.append((places, adds))
    displaced: set[str] = set()
    shrunk: set[str] = set()
    worth = _worth(before, topology)
    for places, adds in waiting:
        near = [r for r in old.values() if places & _held(r).keys()]
        shrinking = [r for r in near if freed[r.id] and r.id not in shrunk]
        leaving = [r for r in near if r.id not in new and r.id not in displaced]
        for r in sorted(shrinking, key=lambda r: r.id):
            if not fits(places, adds):
                shrunk.add(r.id)
                occupy(freed[r.id], -1)
        for r in sorted(leaving, key=lambda r: (worth.get(r.id, 0.0), r.id)):
            if not fits(places, adds):
                displaced.add(r.id)
                occupy(_held(r), -1)
        for r in adds:
            occupy(_held(r))
    return _Room(early=frozenset(early), late=frozenset(late), displaced=frozenset(displaced), shrunk=frozenset(shrunk))


def _worth(plan: Plan | None, topology: Topology) -> dict[str, float]:
    """Weighted goodput by replica."""
    table: dict[str, float] = {}
    for x in plan.routes if plan else ():
        table[x.replica] = table.get(x.replica, 0.0) + topology.services[x.service].weight * x.rate
    return table


def _between(
    before: Plan,
    plan: Plan,
    room: _Room,
    topology: Topology,
    catalogue: ProfileCatalogue,
) -> Plan:
    """What runs while there is room to be made: the old without the displaced, and the new that fits beside."""
    replicas = {r.id: r for r in before.replicas if r.id not in room.displaced}
    for r in plan.replicas:
        if r.id in room.shrunk or (r.group in room.early and r.id not in replicas):
            replicas[r.id] = r
    book = RouteBook(replicas.values(), topology, catalogue, busy=BusyTime(max_utilization=MAX_UTILIZATION))
    wanted: dict[tuple[str, str], float] = {}
    for x in before.routes:
        wanted[x.service, x.origin] = wanted.get((x.service, x.origin), 0.0) + x.rate
        book.add(x.service, x.origin, x.replica, x.rate)
    book.fill(wanted)
    return replace(
        before,
        generation=plan.generation,
        replicas=tuple(replicas[i] for i in sorted(replicas)),
        routes=book.routes(),
        actions=(),
        notes=(*before.notes, f"a step on the way to plan {plan.generation}: makes room for what does not fit beside"),
    )
