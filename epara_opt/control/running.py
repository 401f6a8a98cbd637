"""What really runs: the plan in force held against what executors report.

They disagree when a planner died in the middle of a change, when an executor was down during one and came back
with the plan on its disk, or when it came back blank. Nothing is guessed: a group counts as running if its executor
reports it and some plan describes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from epara_opt.control.ports import ExecutorState, Fleet, FleetState
from epara_opt.control.routing import standing
from epara_opt.domain.topology import Topology
from epara_opt.errors import InputError
from epara_opt.plan import Plan, Replica

GONE = frozenset({"failed", "draining", "stopped"})
LEFT = GONE - {"failed"}  # of a chain: one that fell is started again by its head as soon as its servers allow


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """The edge as it is."""

    plan: Plan | None  # the plan in force, with replicas that really stand (adopted ones included)
    stale: frozenset[str] = frozenset()  # servers that answer but serve another plan than the one in force
    strays: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])  # groups nobody knows
    highest_epoch: int = 0
    highest_generation: int = 0


def addresses(topology: Topology) -> dict[str, str]:
    """Servers with an executor, and where it listens."""
    return {s.name: s.address for s in topology.servers.values() if s.address}


def look(
    fleet: Fleet, topology: Topology, *, known: Plan | None = None, state: FleetState | None = None
) -> tuple[Running, FleetState]:
    """Ask every executor what it serves. For planners that start, and for one-off commands without a store.

    known: the plan in force by the planner's own store, if it has one.
    """
    seen = state or fleet.observe(addresses(topology), with_plan=True)
    return reconcile(known, seen, topology), seen


def reconcile(known: Plan | None, state: FleetState, topology: Topology) -> Running:
    """Of the planner's plan and those of the executors the one of the highest generation is in force.

    `state` must have been observed with plans. A group of another plan that its executor still runs is adopted:
    the next plan may keep it, and the next change retires it otherwise. A tenant that was prepared in a known group
    and never committed leaves when its server is committed again. A chain runs if every server of it that answers has
    its part; parts of one that does not are strays.
    """
    plans = {name: _plan_of(executor, topology) for name, executor in state.executors.items()}
    newest = known
    for plan in (plans[n] for n in sorted(plans)):
        if plan is not None and (newest is None or plan.generation > newest.generation):
            newest = plan
    highest_epoch = max((e.epoch for e in state.executors.values()), default=0)
    highest_generation = max(
        [e.generation for e in state.executors.values()] + [newest.generation if newest else 0], default=0
    )
    strays: dict[str, tuple[str, ...]] = {}
    stale: set[str] = set()
    replicas: dict[str, Replica] = {}
    held = {
        name: {r.group for r in e.replicas if r.state not in (LEFT if r.num_stages else GONE)}
        for name, e in state.executors.items()
    }

    def is_whole(r: Replica) -> bool:
        return all(r.group in held[s] for s in r.servers if s in held)

    for name, executor in sorted(state.executors.items()):
        own = plans[name]
        if newest is not None and (own is None or own.generation != newest.generation):
            stale.add(name)
        reported = held[name]
        described: dict[str, list[Replica]] = {}
        for plan in (own, newest):  # the newest wins where both describe a group
            fresh: dict[str, list[Replica]] = {}
            for r in plan.replicas if plan else ():
                if name in r.servers:
                    fresh.setdefault(r.group, []).append(r)
            described.update(fresh)
        whole = {g for g in reported & described.keys() if all(map(is_whole, described[g]))}
        replicas.update({r.id: r for g in whole for r in described[g]})
        tenants = {r.id for rs in described.values() for r in rs}
        if any(r.group in described and r.state == "ready" and r.replica not in tenants for r in executor.replicas):
            stale.add(name)
        unknown = reported - whole
        if unknown:
            strays[name] = tuple(sorted(unknown))
    if newest is None:
        return Running(plan=None, strays=strays, highest_epoch=highest_epoch, highest_generation=highest_generation)
    # Servers that do not answer keep what the plan gives them: whether they are down is the caller's to decide.
    replicas.update({r.id: r for r in newest.replicas if r.server not in state.executors and is_whole(r)})
    running = replace(
        newest,
        replicas=tuple(replicas[i] for i in sorted(replicas)),
        routes=tuple(x for x in newest.routes if x.replica in replicas),
    )
    return Running(
        plan=standing(running, topology),
        stale=frozenset(stale),
        strays=strays,
        highest_epoch=highest_epoch,
        highest_generation=highest_generation,
    )


def _plan_of(executor: ExecutorState, topology: Topology) -> Plan | None:
    """The executor's committed plan, if it is one of this topology."""
    if not executor.plan_json:
        return None
    try:
        plan = Plan.from_json(executor.plan_json)
    except InputError:
        return None
    return plan if plan.topology == topology.name else None
