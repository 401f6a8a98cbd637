"""The control cycle: observe, forecast, plan, verify, weigh, apply, record. Then wait, with an eye on the fleet.

Every `every_s` a cycle runs; between cycles executors are observed every `observe_every_s`, and a server that goes
down or comes back starts a cycle at once. A plan replaces the one in force only if it is better by a margin that
covers what the change costs; otherwise routes alone are adapted, or nothing is touched. Whatever fails, the plan in
force stays and the next cycle tries again. Two things end the loop: a stop, and a newer planner (StaleFence).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from epara_opt.control.apply import Applied, apply
from epara_opt.control.choose import Choice, Chooser
from epara_opt.control.deploy import commit_spec, is_led_at
from epara_opt.control.diff import compare
from epara_opt.control.events import CycleEvent, EventKind
from epara_opt.control.forecast import Forecaster
from epara_opt.control.learned import LearnedProfiles
from epara_opt.control.ports import Clock, CommitSpec, ExecutorState, Fence, Fleet, FleetState, Planner
from epara_opt.control.reroute import SOLVER
from epara_opt.control.routing import repredicted, standing
from epara_opt.control.running import Running, addresses, reconcile
from epara_opt.control.seen import GoodputSeen
from epara_opt.control.settings import CycleSettings
from epara_opt.control.store import CycleRecord, Store
from epara_opt.control.transaction import COMMIT_DEADLINE_S, PartlyApplied, Progress
from epara_opt.domain.profile import ProfileCatalogue
from epara_opt.domain.topology import Topology
from epara_opt.errors import (
    EparaError,
    ExecutorUnreachable,
    FleetError,
    ModelsOnTheWay,
    StaleFence,
    StoreError,
)
from epara_opt.plan import Plan
from epara_opt.problem import build_problem

FORECASTER_STATE = "forecaster"
LEARNED_STATE = "learned profiles"


class ControlCycle:
    """One planner's life. Not thread-safe: one thread calls `run`, or `start` and then `step`."""

    def __init__(
        self,
        topology: Topology,
        catalogue: ProfileCatalogue,
        planner: Planner,
        fleet: Fleet,
        store: Store,
        clock: Clock,
        *,
        settings: CycleSettings | None = None,
        on_event: Callable[[CycleEvent], None] | None = None,
    ) -> None:
        self._topology = topology
        self._catalogue = catalogue
        self._fleet = fleet
        self._store = store
        self._clock = clock
        self._settings = settings or CycleSettings()
        self._on_event = on_event
        self._chooser = Chooser(topology, planner, self._settings, tell=self._tell)
        self._forecaster = Forecaster(topology, self._settings.forecast)
        self._learned = LearnedProfiles(topology, catalogue)
        self._addresses = addresses(topology)
        self._epoch = 0
        self._in_force: Plan | None = None
        self._highest_generation = 0
        self._misses: dict[str, int] = {}
        self._down: dict[str, str] = {}  # confirmed, with the reason
        self._unsettled: set[str] = set()  # servers that may not serve the plan in force: commit there again
        self._state = FleetState()
        self._plan_of: dict[str, tuple[str, int, int]] = {}  # server: incarnation, generation, checked against
        self._observed_at = clock.monotonic()
        self._goodput = GoodputSeen(topology, at=self._observed_at)
        self._strays: dict[str, tuple[str, ...]] = {}
        self._hurry = False  # a call found a server down: plan again at once

    @property
    def in_force(self) -> Plan | None:
        return self._in_force

    @property
    def down(self) -> frozenset[str]:
        return frozenset(self._down)

    @property
    def epoch(self) -> int:
        return self._epoch

    def run(self, *, max_cycles: int | None = None) -> None:
        """Start, then plan until stopped (or for so many cycles). Raises StaleFence when another planner took over."""
        self.start()
        reason, done = "start", 0
        while max_cycles is None or done < max_cycles:
            began = self._clock.monotonic()
            self.step(reason)
            done += 1
            if max_cycles is not None and done >= max_cycles:
                break
            woken = self._watch(until=began + self._settings.every_s)
            if woken is None:
                break
            reason = woken
        self._tell(EventKind.STOPPED, "stopped; executors keep serving the last plan")

    def start(self) -> None:
        """Take an epoch; learn what is in force from the store and from the executors."""
        state = self._fleet.observe(self._addresses, with_plan=True)
        for server, why in state.down.items():
            self._down[server] = why  # nobody is asked to wait for servers that were never there
        known = self._store.in_force()
        intended = self._store.intended()
        committed = {e.generation for e in state.executors.values()}
        if intended is not None and intended.generation in committed:
            known = intended  # the change was under way at somebody: go on with it
        running = reconcile(known, state, self._topology)
        # Also above Unix time: a planner that lost its store while the executor with the highest epoch was down
        # must not be taken for an old one when that executor comes back.
        seen = max(running.highest_epoch, int(self._clock.wall()))
        self._epoch = self._store.next_epoch(at=self._clock.wall(), at_least=seen)
        self._restore(FORECASTER_STATE, self._forecaster.restore)
        if self._settings.learn_profiles:
            self._restore(LEARNED_STATE, self._learned.restore)
        self._take_in(running, state)
        generation = self._in_force.generation if self._in_force else 0
        self._tell(
            EventKind.STARTED,
            f"planner of epoch {self._epoch}, plan in force: {generation or 'none'}",
            epoch=self._epoch,
            generation=generation,
            down=sorted(self._down),
        )

    def _restore(self, name: str, restore: Callable[[str], None]) -> None:
        text = self._store.get_state(name)
        if text is not None:
            try:
                restore(text)
            except StoreError as e:
                self._tell(EventKind.FAILED, f"forgot what was observed before: {e}")

    def step(self, reason: str = "schedule") -> CycleRecord:
        """One cycle. Raises only StaleFence and StoreError; everything else is recorded."""
        started_at, began = self._clock.wall(), self._clock.monotonic()
        self.observe()
        self._learn_profiles()
        demand = self._forecaster.demand(down=self.down)
        choice = Choice(plan=None, outcome="failed")
        applied: Applied | None = None
        error = ""
        try:
            self._clear_strays()
            problem = build_problem(
                self._topology,
                self._catalogue,
                rules=self._settings.rules,
                demand=demand,
                in_force=self._standing(),
                down=self.down,
            )
            choice = self._chooser.choose(
                problem,
                self._in_force,
                generation=self._store.next_generation(at_least=self._highest_generation),
                down=self.down,
                unsettled=frozenset(self._unsettled - self._down.keys()),
            )
            error = choice.error
            if choice.plan is not None:
                try:
                    applied = self._apply(choice.plan)
                except ModelsOnTheWay as e:
                    error = str(e)
                    self._tell(EventKind.FETCHING, f"{e}; a later cycle goes on", server=e.server)
                    choice, applied = self._bridge(choice)
        except (StaleFence, StoreError) as e:
            self._tell(EventKind.STOPPED, str(e))
            raise
        except EparaError as e:
            error = str(e)
            choice = replace(choice, outcome="failed")
            self._tell(EventKind.FAILED, error)
            self._learn_from(e)
        return self._record(reason, started_at, began, choice, applied, demand_of=demand, error=error)

    def observe(self) -> tuple[str, ...]:
        """Ask the fleet; returns the servers that went down or came back (confirmed)."""
        state = self._fleet.observe(self._addresses)
        changed: list[str] = []
        for server in sorted(self._addresses):
            if server in state.executors:
                self._misses[server] = 0
                if self._down.pop(server, None) is not None:
                    changed.append(server)
                    self._unsettled.add(server)
                    self._tell(EventKind.SERVER_UP, f"{server} is back", server=server)
                continue
            self._misses[server] = self._misses.get(server, 0) + 1
            if server not in self._down and self._misses[server] >= self._settings.confirm_down:
                self._mark_down(server, state.down.get(server, "no answer"))
                changed.append(server)
        self._state, self._observed_at = state, self._clock.monotonic()
        self._forecaster.observe(state)
        if self._in_doubt(state):
            full = self._fleet.observe(self._addresses, with_plan=True)
            self._take_in(reconcile(self._in_force, full, self._topology), full)
        return tuple(changed)

    # Acting

    def _apply(self, plan: Plan) -> Applied:
        before = self._in_force
        kind = EventKind.REROUTED if plan.solver == SOLVER else EventKind.APPLIED
        self._store.intend(plan, epoch=self._epoch, at=self._clock.wall())
        self._highest_generation = max(self._highest_generation, plan.generation)
        self._tell(EventKind.APPLYING, f"plan {plan.generation}", generation=plan.generation)
        try:
            applied = apply(
                plan,
                before,
                self._topology,
                self._catalogue,
                self._fleet,
                Fence(epoch=self._epoch, generation=plan.generation),
                on_progress=self._progress,
                deadline_s=self._settings.apply_deadline_s,
                fetch_deadline_s=self._settings.fetch_wait_s,
                down=self.down,
                stale=frozenset(self._unsettled) - self._down.keys(),
                max_parallel=self._settings.max_parallel,
                monotonic=self._clock.monotonic,
            )
        except PartlyApplied as e:
            self._store.mark_failed(plan.generation)
            if e.in_force is not None:
                self._in_force = e.in_force
            self._unsettled.update(e.left)
            raise
        except StaleFence:
            raise
        except FleetError:
            self._store.mark_failed(plan.generation)
            raise
        if applied.changed:
            self._in_force = plan
            self._store.put_in_force(plan, epoch=self._epoch, at=self._clock.wall())
        else:
            self._store.mark_failed(plan.generation)
        self._unsettled = set(applied.leftovers)
        live = {r.group for r in plan.replicas}
        for server in applied.leftovers:
            gone = {r.group for r in (before.replicas if before else ()) if server in r.servers} - live
            if gone:
                self._strays[server] = tuple(sorted(gone | set(self._strays.get(server, ()))))
        if not applied.changed:
            self._tell(EventKind.KEPT, "nothing to change", generation=applied.generation)
            return applied
        moved = compare(standing(before, self._topology, self.down), plan)
        self._tell(
            kind,
            f"plan {plan.generation} in force: {len(moved.groups_added)} groups added, "
            f"{len(moved.groups_retired)} retired",
            generation=plan.generation,
            num_loads=applied.num_loads,
            leftovers=dict(applied.leftovers),
        )
        return applied

    def _bridge(self, choice: Choice) -> tuple[Choice, Applied | None]:
        """The plan chosen waits for its models: meanwhile what runs serves by the best routes there are for it."""
        if choice.meanwhile is None:
            return replace(choice, plan=None, outcome="fetching"), None
        generation = self._store.next_generation(at_least=self._highest_generation)
        plan = replace(choice.meanwhile, generation=generation)
        return replace(choice, plan=plan, outcome="fetching"), self._apply(plan)

    def _clear_strays(self) -> None:
        """Unload groups that no plan describes: a change that died half-way left them.

        One that is still committed is cut off first: the server is told again what is in force. A failure here is
        no reason not to plan; the next look at the fleet finds what is left.
        """
        generation = max(self._highest_generation, self._in_force.generation if self._in_force else 0)
        fence = Fence(epoch=self._epoch, generation=generation)
        plan = self._standing()
        by_lead = sorted(self._strays.items(), key=lambda x: (not any(is_led_at(g, x[0]) for g in x[1]), x[0]))
        for server, groups in by_lead:  # the head of a chain lets its other stages go
            if server in self._down:
                continue
            try:
                if plan is not None:
                    spec = commit_spec(
                        server, topology=self._topology, catalogue=self._catalogue, live=plan.replicas, plan=plan
                    )
                else:
                    spec = CommitSpec(server=server, groups=(), routes=(), peers=())
                self._fleet.commit(self._addresses[server], spec, fence, deadline_s=COMMIT_DEADLINE_S)
                self._fleet.retire(self._addresses[server], groups, fence, deadline_s=self._settings.apply_deadline_s)
            except StaleFence:
                raise
            except FleetError as e:
                self._tell(EventKind.FAILED, f"{server}: groups of an unknown plan stay loaded: {e}", server=server)
        if self._strays:
            self._plan_of.clear()  # look again before trusting what they serve
        self._strays = {}

    def _standing(self) -> Plan | None:
        return standing(self._in_force, self._topology, self.down)

    # Knowing

    def _learn_profiles(self) -> None:
        """Plan with what executors measured; the plan in force is held to the same predictions."""
        if not self._settings.learn_profiles:
            return
        for correction in self._learned.learn(self._state, self._in_force):
            model, device_type, tp, pp = correction.key
            self._tell(
                EventKind.LEARNED,
                str(correction),
                model=model,
                device_type=device_type,
                tp=tp,
                pp=pp,
                factor=correction.factor,
                before=correction.before,
                observed=correction.observed,
                num_batches=correction.num_batches,
            )
        self._catalogue = self._learned.catalogue
        if self._in_force is not None:
            self._in_force = repredicted(self._in_force, self._topology, self._catalogue)

    def _take_in(self, running: Running, state: FleetState) -> None:
        self._in_force = running.plan
        self._highest_generation = max(self._highest_generation, running.highest_generation)
        self._unsettled |= running.stale
        self._strays = dict(running.strays)
        generation = running.plan.generation if running.plan else 0
        for name, e in state.executors.items():
            self._plan_of[name] = (e.incarnation, e.generation, generation)

    def _in_doubt(self, state: FleetState) -> bool:
        """Whether some executor may serve something else than the plan in force: it restarted, or moved on alone."""
        return any(
            self._plan_of.get(n, ("", -1, -1))[:2] != (e.incarnation, e.generation) and not self._as_applied(e)
            for n, e in state.executors.items()
        )

    def _as_applied(self, e: ExecutorState) -> bool:
        known = self._plan_of.get(e.server)
        same = known is not None and known[0] == e.incarnation
        ok = same and self._in_force is not None and e.generation == self._in_force.generation
        if ok and self._in_force is not None:
            self._plan_of[e.server] = (e.incarnation, e.generation, self._in_force.generation)
        return ok

    def _mark_down(self, server: str, why: str) -> None:
        self._down[server] = why
        self._misses[server] = max(self._misses.get(server, 0), self._settings.confirm_down)
        self._tell(EventKind.SERVER_DOWN, f"{server} is down: {why}", server=server, reason=why)

    def _learn_from(self, error: EparaError) -> None:
        """A call that got no answer within a cycle confirms that its server is down."""
        cause = error.cause if isinstance(error, PartlyApplied) else error
        if not isinstance(cause, ExecutorUnreachable):
            return
        names = {address: name for name, address in self._addresses.items()}
        server = names.get(cause.server, cause.server)  # some calls know only the address
        # One that still answers is slow (a long load), not gone.
        if (
            server in self._addresses
            and server not in self._down
            and server in self._fleet.observe({server: self._addresses[server]}).down
        ):
            self._mark_down(server, str(cause))
            self._hurry = True

    def _watch(self, *, until: float) -> str | None:
        """Observe until the next cycle is due; why it is, or None when asked to stop."""
        while True:
            if self._hurry:
                self._hurry = False
                return "server down"
            left_s = until - self._clock.monotonic()
            if self._clock.wait(max(0.0, min(left_s, self._settings.observe_every_s))):
                return None
            if self._clock.monotonic() >= until:
                return "schedule"
            changed = self.observe()
            if changed:
                return "server down" if any(s in self._down for s in changed) else "server up"

    # Telling

    def _progress(self, p: Progress) -> None:
        self._tell(
            EventKind.PROGRESS,
            f"{p.kind} at {p.server}{' done' if p.done else ''}{': ' + p.detail if p.detail else ''}",
            stage=p.stage,
            num_stages=p.num_stages,
            action=p.kind,
            server=p.server,
            groups=list(p.groups),
            done=p.done,
        )

    def _tell(self, kind: EventKind, message: str, **fields: Any) -> None:
        event = CycleEvent(kind=kind, at=self._clock.wall(), message=message, fields=fields)
        if kind not in (EventKind.PROGRESS, EventKind.OBSERVED) and self._epoch:
            self._store.record_event(kind.value, {"message": message, **fields}, at=event.at)
        if self._on_event is not None:
            self._on_event(event)

    def _record(
        self,
        reason: str,
        started_at: float,
        began: float,
        choice: Choice,
        applied: Applied | None,
        *,
        demand_of: tuple[Any, ...],
        error: str,
    ) -> CycleRecord:
        offered_seen, goodput_seen = self._goodput.since(self._state, at=self._observed_at)
        planned = choice.plan or choice.planned
        record = CycleRecord(
            started_at=started_at,
            wall_s=self._clock.monotonic() - began,
            reason=reason,
            outcome=choice.outcome,
            generation=self._in_force.generation if self._in_force else 0,
            solver=planned.solver if planned else "",
            stop=planned.stop.value if planned else "",
            objective=planned.objective if planned else None,
            dual_bound=planned.dual_bound if planned else None,
            gap=planned.gap if planned else None,
            offered=sum(self._topology.services[d.service].weight * d.offered for d in demand_of),
            goodput_seen=goodput_seen,
            offered_seen=offered_seen,
            num_actions=len(applied.actions) if applied else 0,
            num_loads=applied.num_loads if applied else 0,
            down=tuple(sorted(self._down)),
            error=error,
        )
        self._store.record_cycle(record, epoch=self._epoch)
        self._store.put_state(FORECASTER_STATE, self._forecaster.to_json())
        if self._settings.learn_profiles:
            self._store.put_state(LEARNED_STATE, self._learned.to_json())
        at = self._clock.wall()
        self._store.record_observation({"offered": offered_seen, "goodput": goodput_seen}, at=at)
        self._tell(
            EventKind.RECORDED, f"cycle {record.outcome} in {record.wall_s:.2f} s", outcome=record.outcome, error=error
        )
        return record
