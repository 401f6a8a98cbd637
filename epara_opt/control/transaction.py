"""One change under way: calls to executors stage by stage, and the way back.

Before the first stage every server fetches the models it will need: nothing that serves notices.

No executor routes to a replica before it is live, nor after it is gone, so one switch takes up to three rounds:

    open    hosts that gain replicas others will route to: old routes, old and new replicas live
    switch  everybody: new routes; replicas that leave stay live while others may still route to them
    close   hosts that lose replicas: only the new

A chain over several servers is prepared at the further ones first, where that only says what its head may ask for, and
retired at its head first, which lets the others go.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from epara_opt.control.deploy import address_of, commit_spec, fetch_specs, group_specs, is_led_at
from epara_opt.control.ports import CommitSpec, Fence, Fleet
from epara_opt.control.transition import Stage
from epara_opt.domain.profile import ProfileCatalogue
from epara_opt.domain.topology import Topology
from epara_opt.errors import FleetError, StaleFence
from epara_opt.plan import ActionKind, Plan, Predicted, Replica, Stop

COMMIT_DEADLINE_S = 10.0  # one switch is bookkeeping at the executor; more means it is not there
FETCH = "fetch"  # kind of a call before the first stage, for Progress
MIN_CALL_S = 1.0  # every call gets at least this, so that a late rollback still has a chance


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One call begun or done, for whoever draws bars."""

    stage: int  # 0: models are fetched
    num_stages: int
    kind: str  # a plan's ActionKind, or FETCH
    server: str
    groups: tuple[str, ...]
    done: bool
    detail: str = ""


class PartlyApplied(FleetError):
    """Taking back failed too. `in_force` is what the executors that answered serve now."""

    def __init__(self, cause: FleetError, in_force: Plan | None, left: Mapping[str, str]) -> None:
        self.cause = cause
        self.in_force = in_force
        self.left = dict(left)
        where = "; ".join(f"{server}: {why}" for server, why in sorted(left.items()))
        super().__init__(f"{cause}; taking back failed at {where}")


def nothing(plan: Plan) -> Plan:
    """The plan of the same topology and generation under which nothing runs."""
    return Plan(
        generation=plan.generation,
        topology=plan.topology,
        inputs_digest="",
        solver="none",
        stop=Stop.NO_DEMAND,
        objective=0.0,
        dual_bound=None,
        gap=None,
        wall_s=0.0,
        predicted=Predicted(goodput=0.0, offered=0.0, slo_attainment=1.0),
    )


class Transaction:
    """What was done so far, and how to take it back. One thread calls it; it calls executors side by side."""

    def __init__(
        self,
        *,
        plan: Plan,
        before: Plan | None,
        topology: Topology,
        catalogue: ProfileCatalogue,
        fleet: Fleet,
        fence: Fence,
        down: frozenset[str] = frozenset(),
        monotonic: Callable[[], float],
        max_parallel: int,
        on_progress: Callable[[Progress], None] | None,
        num_stages: int,
    ) -> None:
        self._plan = plan
        self._before = before
        self._goal = before or nothing(plan)  # what take_back aims at
        self._current = self._goal  # what every executor serves, as far as commits are complete
        self._topology = topology
        self._catalogue = catalogue
        self._fleet = fleet
        self._fence = fence
        self._down = down
        self._ends_at = math.inf
        self._monotonic = monotonic
        self._max_parallel = max_parallel
        self._on_progress = on_progress
        self._num_stages = num_stages
        self._prepared: dict[str, set[str]] = {}  # server to groups asked for here
        self._touched: set[str] = set()  # servers to which some commit was sent
        self.leftovers: dict[str, str] = {}

    def require_addresses(self, todo: Sequence[Stage]) -> None:
        """Every server has an address and every spec can be made, before anybody is called."""
        for stage in todo:
            for server in stage.groups:
                address_of(server, self._topology)
                if stage.kind is ActionKind.COMMIT:
                    self._spec(server, stage.target, stage.target.replicas)
        for server in sorted({s for r in self._goal.replicas for s in r.servers}):
            self._spec(server, self._goal, self._goal.replicas)

    def fetch(self, todo: Sequence[Stage], *, deadline_s: float) -> None:
        """Have every server bring to its disk what it will prepare. Touches nothing that serves.

        Raises the first failure (ModelsOnTheWay where the deadline came first): then nothing was changed.
        """
        running = self._before.replicas if self._before else ()
        here = {(server, r.service) for r in running for server in r.servers}
        groups = {g for s in todo if s.kind is ActionKind.PREPARE for gs in s.groups.values() for g in gs}
        coming: dict[str, list[Replica]] = {}
        for r in self._plan.replicas:
            for server in r.servers if r.group in groups else ():
                if (server, r.service) not in here:
                    coming.setdefault(server, []).append(r)
        ends_at = self._monotonic() + deadline_s

        def fetch(server: str, _: tuple[str, ...]) -> None:
            models = fetch_specs(server, coming[server], running, self._topology, down=self._down)
            left_s = max(MIN_CALL_S, ends_at - self._monotonic())
            self._fleet.fetch(self._address(server), models, self._fence, server=server, deadline_s=left_s)

        work = {s: tuple(sorted({r.group for r in rs})) for s, rs in coming.items()}
        self._raise_first(self._each(None, work, fetch))

    def must_end(self, ends_at: float) -> None:
        """When the change itself must be through, by the clock given."""
        self._ends_at = ends_at

    def do(self, stage: Stage) -> None:
        if stage.kind is ActionKind.PREPARE:
            for server, groups in stage.groups.items():
                self._prepared.setdefault(server, set()).update(groups)
            self._prepare(stage, stage.groups, stage.target)
        elif stage.kind is ActionKind.COMMIT:
            self._switch(stage, sorted(stage.groups), stage.target)
        else:
            failed = self._retire_all(stage, stage.groups)
            if stage.target is not self._plan:
                self._raise_first(failed)  # the room is needed
            self._raise_first({s: e for s, e in failed.items() if isinstance(e, StaleFence)})
            self.leftovers |= _named(failed)

    def take_back(self, stage: Stage, cause: FleetError) -> None:
        """Return to the plan in force, as far as executors answer. Raises PartlyApplied where they do not."""
        if isinstance(cause, StaleFence):
            return  # somebody newer is in charge; leave everything to them
        broken: dict[str, str] = {}
        if stage.kind is ActionKind.COMMIT:
            broken |= _named(self._switch_back(stage))
            broken |= _named(self._dismiss(stage, self._touched | broken.keys()))
        else:
            broken |= _named(self._dismiss(stage, set()))
        if self._current is not self._goal:
            try:
                self._restore(stage)
            except FleetError as e:
                broken |= {getattr(e, "server", "fleet"): str(e)}
                raise PartlyApplied(cause, self._current, broken) from cause
        kept = {r.group for r in self._goal.replicas}
        extra = {s: tuple(sorted(g - kept)) for s, g in self._prepared.items() if s not in broken}
        unclean = self._retire_all(stage, extra)
        if broken:
            raise PartlyApplied(cause, self._before, broken) from cause
        for server, e in sorted(unclean.items()):
            cause.add_note(f"{server}: what was prepared there could not be unloaded yet: {e}")

    def _dismiss(self, stage: Stage, done: set[str]) -> dict[str, FleetError]:
        """Drop the tenants that were prepared in groups that stay: a commit of what runs says who is live.

        done: servers that have been told already.
        """
        live = {r.id for r in self._current.replicas}
        staying = {r.group for r in self._current.replicas}
        servers = {
            r.server
            for r in self._plan.replicas
            if r.id not in live and r.group in staying and r.group in self._prepared.get(r.server, ())
        }
        return self._commit_each(stage, sorted(servers - done), self._current, self._current.replicas)

    def _restore(self, stage: Stage) -> None:
        """From the step between back to the plan in force: unload what took the room, load again what made it."""
        current = {r.group for r in self._current.replicas}
        goal = {r.group for r in self._goal.replicas}
        late = {s: tuple(sorted(g - current - goal)) for s, g in self._prepared.items()}
        self._raise_first(self._retire_all(stage, late))
        ids = {r.id for r in self._current.replicas}
        back: dict[str, set[str]] = {}
        for r in self._goal.replicas:
            if r.id not in ids:
                for server in r.servers:
                    back.setdefault(server, set()).add(r.group)
        self._prepare(stage, {s: tuple(sorted(g)) for s, g in back.items()}, self._goal)
        self._switch(stage, sorted(self._touched), self._goal)

    def _switch(self, stage: Stage, servers: Sequence[str], new: Plan) -> None:
        """Open, switch, close. `_current` moves when the switch is complete."""
        old = self._current
        old_ids = {r.id for r in old.replicas}
        new_ids = {r.id for r in new.replicas}
        host = {r.id: r.server for r in new.replicas}
        awaited = {x.replica for x in new.routes if x.replica not in old_ids and host[x.replica] != x.origin}
        gained = [r for r in new.replicas if r.id not in old_ids]
        lost = [r for r in old.replicas if r.id not in new_ids and not set(servers).isdisjoint(r.servers)]
        opening = sorted({host[i] for i in awaited} & set(servers))
        closing = sorted({s for r in lost for s in r.servers} & set(servers)) if len(servers) > 1 else []
        self._raise_first(self._commit_each(stage, opening, old, [*old.replicas, *gained]))
        live = [*new.replicas, *lost] if closing else list(new.replicas)
        self._raise_first(self._commit_each(stage, servers, new, live))
        self._current = new
        failed = self._commit_each(stage, closing, new, new.replicas)
        self._raise_first({s: e for s, e in failed.items() if isinstance(e, StaleFence)})
        self.leftovers |= _named(failed)

    def _switch_back(self, stage: Stage) -> dict[str, FleetError]:
        """A switch that failed half-way: everybody returns to the old routes, then hosts close what was opened."""
        old = self._current
        ids = {r.id for r in old.replicas}
        opened = [r for r in stage.target.replicas if r.id not in ids]
        servers = sorted(self._touched)
        failed = self._commit_each(stage, servers, old, [*old.replicas, *opened])
        closing = sorted({s for r in opened for s in r.servers} & self._touched - set(failed))
        return failed | self._commit_each(stage, closing, old, old.replicas)

    def _commit_each(
        self, stage: Stage, servers: Sequence[str], plan: Plan, live: Iterable[Replica]
    ) -> dict[str, FleetError]:
        kept = list(live)
        specs = {s: self._spec(s, plan, kept) for s in servers}
        self._touched.update(servers)

        def commit(server: str, _: tuple[str, ...]) -> None:
            deadline_s = min(COMMIT_DEADLINE_S, self._left_s())
            self._fleet.commit(self._address(server), specs[server], self._fence, deadline_s=deadline_s)

        return self._each(stage, dict.fromkeys(servers, ()), commit)

    def _prepare(self, stage: Stage, work: Mapping[str, tuple[str, ...]], plan: Plan) -> None:
        """Groups of `plan` by server. Raises the first failure."""

        def prepare(server: str, groups: tuple[str, ...]) -> None:
            wanted = [r for r in plan.replicas if r.group in groups]
            specs = group_specs(wanted, self._topology, self._catalogue, server=server)
            self._fleet.prepare(self._address(server), specs, self._fence, deadline_s=self._left_s())

        led, further = _by_lead(work)
        self._raise_first(self._each(stage, further, prepare))
        self._raise_first(self._each(stage, led, prepare))

    def _retire_all(self, stage: Stage, work: Mapping[str, tuple[str, ...]]) -> dict[str, FleetError]:
        """What failed, by server."""

        def retire(server: str, groups: tuple[str, ...]) -> None:
            self._fleet.retire(self._address(server), groups, self._fence, deadline_s=self._left_s())

        led, further = _by_lead(work)
        failed = self._each(stage, led, retire)
        return failed | self._each(stage, further, retire)

    def _each(
        self, stage: Stage | None, work: Mapping[str, tuple[str, ...]], call: Callable[[str, tuple[str, ...]], None]
    ) -> dict[str, FleetError]:
        """Call every server, side by side; what failed, by server. stage: None while models are fetched."""

        def one(item: tuple[str, tuple[str, ...]]) -> FleetError | None:
            server, groups = item
            self._tell(stage, server, groups, done=False)
            try:
                call(server, groups)
            except FleetError as e:
                self._tell(stage, server, groups, done=True, detail=str(e))
                return e
            self._tell(stage, server, groups, done=True)
            return None

        items = sorted(work.items())
        if self._max_parallel == 1 or len(items) <= 1:
            results = [one(item) for item in items]
        else:
            with ThreadPoolExecutor(min(self._max_parallel, len(items)), thread_name_prefix="apply") as pool:
                results = list(pool.map(one, items))
        return {server: e for (server, _), e in zip(items, results, strict=True) if e is not None}

    def _tell(self, stage: Stage | None, server: str, groups: tuple[str, ...], *, done: bool, detail: str = "") -> None:
        if self._on_progress is not None:
            self._on_progress(
                Progress(
                    stage=stage.number if stage else 0,
                    num_stages=self._num_stages,
                    kind=stage.kind if stage else FETCH,
                    server=server,
                    groups=groups,
                    done=done,
                    detail=detail,
                )
            )

    def _spec(self, server: str, plan: Plan, live: Iterable[Replica]) -> CommitSpec:
        kept = replace(plan, actions=())
        return commit_spec(
            server,
            topology=self._topology,
            catalogue=self._catalogue,
            live=list(live),
            plan=kept,
            plan_json="" if plan.solver == "none" else None,
        )

    def _address(self, server: str) -> str:
        return address_of(server, self._topology)

    def _left_s(self) -> float:
        return max(MIN_CALL_S, self._ends_at - self._monotonic())

    @staticmethod
    def _raise_first(failed: Mapping[str, FleetError]) -> None:
        """A newer planner outweighs any other trouble; otherwise the first by name."""
        for e in failed.values():
            if isinstance(e, StaleFence):
                raise e
        for server in sorted(failed):
            raise failed[server]


def _by_lead(work: Mapping[str, tuple[str, ...]]) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """Groups by server that are led there, and stages there of chains that are led elsewhere."""
    led = {s: tuple(g for g in groups if is_led_at(g, s)) for s, groups in work.items()}
    further = {s: tuple(g for g in groups if not is_led_at(g, s)) for s, groups in work.items()}
    return {s: g for s, g in led.items() if g}, {s: g for s, g in further.items() if g}


def _named(failed: Mapping[str, FleetError]) -> dict[str, str]:
    return {server: str(e) for server, e in failed.items()}
