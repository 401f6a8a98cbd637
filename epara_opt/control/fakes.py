"""Stand-ins for the world: a clock that is told, a fleet in memory that keeps the executors' laws, simple planners.

Product code, not mocks: `FakeFleet` enforces what real executors enforce (fences, device memory, prepare before
commit, tenants that come by a prepare and go by a commit, no retire of what is committed) and says which law was
broken, so that the control cycle can be driven through thousands of failures in a second, in tests and what-ifs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from epara_opt.chains import chain_performance
from epara_opt.control.ports import (
    BatchTime,
    CommitSpec,
    ExecutorState,
    Fence,
    FetchSpec,
    FleetState,
    GroupSpec,
    ReplicaObservation,
    ServiceObservation,
    StageSpec,
    TenantSpec,
)
from epara_opt.domain.parallel import ParallelConfig
from epara_opt.domain.performance import evaluate
from epara_opt.domain.profile import ProfileCatalogue
from epara_opt.domain.topology import Topology
from epara_opt.errors import ExecutorRefused, ExecutorUnreachable, FleetError, ModelsOnTheWay, StaleFence
from epara_opt.plan import Plan
from epara_opt.problem import PlacementProblem


class FakeClock:
    """Time that passes only when somebody waits. `on_wait(now_s)` scripts the world; True from it asks to stop."""

    def __init__(self, *, wall_at: float = 1_700_000_000.0, on_wait: Callable[[float], bool] | None = None) -> None:
        self.now_s = 0.0
        self._wall_at = wall_at
        self.on_wait = on_wait
        self.stopped = False

    def monotonic(self) -> float:
        return self.now_s

    def wall(self) -> float:
        return self._wall_at + self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds

    def wait(self, seconds: float) -> bool:
        self.now_s += max(0.0, seconds)
        if self.on_wait is not None and self.on_wait(self.now_s):
            self.stopped = True
        return self.stopped

    def stop(self) -> None:
        self.stopped = True


@dataclass(slots=True)
class _Counters:
    arrived: int = 0
    on_time: int = 0
    shed: int = 0
    streams: int = 0


@dataclass(slots=True)
class FakeExecutor:
    """One executor's memory. What is on disk survives a crash."""

    server: str
    up: bool = True
    boots: int = 1
    fence: tuple[int, int] = (0, 0)
    loaded: dict[str, dict[str, TenantSpec]] = field(default_factory=dict[str, dict[str, TenantSpec]])
    specs: dict[str, GroupSpec] = field(default_factory=dict[str, GroupSpec])  # of what is loaded
    committed: CommitSpec | None = None  # on disk too
    generation: int = 0
    forgotten: set[str] = field(default_factory=set[str])  # was live, lost with the disk: no planner's fault
    restored: bool = False  # serves what its disk says; its routes may be old until it is told anew
    counters: dict[str, _Counters] = field(default_factory=dict[str, "_Counters"])
    batches: dict[str, dict[int, BatchTime]] = field(default_factory=dict[str, "dict[int, BatchTime]"])

    def live(self) -> set[str]:
        """Replica ids that take work."""
        if not self.up or self.committed is None:
            return set()
        return {t.replica for g in self.committed.groups for t in g.tenants}


class FakeFleet:
    """Executors in memory, addressed like real ones. Implements `ports.Fleet`.

    calls: every fetch, prepare, commit and retire so far, as (method, server, what).
    broken_laws: filled after every call with what no real edge may do: a route to a replica that is not live, a
        device over its memory.
    """

    def __init__(self, topology: Topology, catalogue: ProfileCatalogue, clock: FakeClock | None = None) -> None:
        self._topology = topology
        self._catalogue = catalogue
        self._clock = clock or FakeClock()
        self._server_at = {s.address: s.name for s in topology.servers.values() if s.address}
        self.executors = {name: FakeExecutor(server=name) for name in self._server_at.values()}
        self.calls: list[tuple[str, str, tuple[str, ...]]] = []
        self.broken_laws: list[str] = []
        self.missing: dict[tuple[str, str], int] = {}  # by server and source: fetches that will not be enough
        self._faults: dict[int, Callable[[str], FleetError | None]] = {}

    def ran(self, replica: str, *, rows: int, num_batches: int, ms: float) -> None:
        """So many batches more of one size, each as long, wherever that replica is loaded."""
        for e in self.executors.values():
            if any(t.replica == replica for tenants in e.loaded.values() for t in tenants.values()):
                sizes = e.batches.setdefault(replica, {})
                before = sizes[rows].num_batches if rows in sizes else 0
                sizes[rows] = BatchTime(rows=rows, num_batches=before + num_batches, median_ms=ms)

    def fail_at(self, call: int, fault: Callable[[str], FleetError | None]) -> None:
        """At the call of this index (0: the next), do `fault(server)` first; raise what it returns, if anything."""
        self._faults[len(self.calls) + call] = fault

    def crash(self, server: str) -> None:
        self.executors[server].up = False

    def restart(self, server: str, *, blank: bool = False) -> None:
        """Back again, with what its disk holds: the committed groups are loaded again, the rest is forgotten."""
        e = self.executors[server]
        e.up = True
        e.boots += 1
        e.restored = True
        e.counters = {}
        e.batches = {}
        if blank:
            e.forgotten |= e.live()
            e.committed, e.generation, e.fence = None, 0, (0, 0)
        groups = e.committed.groups if e.committed else ()
        e.loaded = {g.group: {t.service: t for t in g.tenants} for g in groups}
        e.specs = {g.group: g for g in groups}

    def offer(self, service: str, origin: str, count: int, *, streams: int = 0, on_time: float = 1.0) -> None:
        """Requests (or frames) enter at a server that is up; they are lost at one that is not."""
        e = self.executors[origin]
        if not e.up:
            return
        c = e.counters.setdefault(service, _Counters())
        c.arrived += count
        c.on_time += int(count * on_time)
        c.shed += count - int(count * on_time)
        c.streams = streams

    def observe(
        self, servers: Mapping[str, str], *, with_plan: bool = False, with_histograms: bool = False
    ) -> FleetState:
        states: dict[str, ExecutorState] = {}
        down: dict[str, str] = {}
        for name, address in servers.items():
            e = self.executors[self._server_at[address]]
            if e.up:
                states[name] = self._state(e, with_plan)
            else:
                down[name] = "connection refused"
        return FleetState(executors=states, down=down)

    def fetch(
        self, address: str, models: tuple[FetchSpec, ...], fence: Fence, *, server: str, deadline_s: float
    ) -> None:
        """Every disk here has every model, unless `missing` says how many calls it takes until one is there."""
        e = self._enter("fetch", address, tuple(m.source for m in models), fence)
        for m in models:
            left = self.missing.get((e.server, m.source), 0)
            if left:
                self.missing[e.server, m.source] = left - 1
                raise ModelsOnTheWay(e.server, m.source)

    def prepare(self, address: str, groups: tuple[GroupSpec, ...], fence: Fence, *, deadline_s: float) -> None:
        e = self._enter("prepare", address, tuple(g.group for g in groups), fence)
        for spec in groups:
            known = e.specs.get(spec.group)
            if known is not None and replace(known, tenants=()) != replace(spec, tenants=()):
                raise ExecutorRefused(e.server, f"{spec.group}: expected the devices and shape it was prepared with")
            if spec.is_led_here and (unheld := self._unheld(spec)):  # a chain's head loads what the others hold
                raise ExecutorRefused(e.server, f"{spec.group}: {unheld}: expected prepared stages, got none")
        live = {g.group: {t.service: t for t in g.tenants} for g in e.committed.groups} if e.committed else {}
        before = {g: dict(t) for g, t in e.loaded.items()}, dict(e.specs)
        for spec in groups:
            tenants = {t.service: t for t in spec.tenants} | live.get(spec.group, {})  # batches change at a commit
            e.loaded[spec.group] = tenants
            e.specs[spec.group] = replace(spec, tenants=tuple(tenants[s] for s in sorted(tenants)))
        over = self._over_memory(e)
        if over:
            e.loaded, e.specs = before
            for spec in groups:
                if spec.group in live:  # nobody that an earlier prepare had added survives
                    e.loaded[spec.group] = live[spec.group]
                    tenants = live[spec.group]
                    e.specs[spec.group] = replace(spec, tenants=tuple(tenants[s] for s in sorted(tenants)))
            raise ExecutorRefused(e.server, over)

    def commit(self, address: str, spec: CommitSpec, fence: Fence, *, deadline_s: float) -> None:
        e = self._enter("commit", address, tuple(g.group for g in spec.groups), fence)
        for g in spec.groups:
            for t in g.tenants:
                if e.loaded.get(g.group, {}).get(t.service) is None:
                    raise ExecutorRefused(e.server, f"{t.replica} was never prepared")
        for g in spec.groups:
            e.loaded[g.group] = {t.service: t for t in g.tenants}
            e.specs[g.group] = g
        e.committed = spec
        e.forgotten, e.restored = set(), False
        e.generation = fence.generation
        if over := self._over_memory(e):
            self.broken_laws.append(f"call {len(self.calls) - 1}: {e.server}: {over}")
        self._check_routes()

    def retire(self, address: str, groups: tuple[str, ...], fence: Fence, *, deadline_s: float) -> None:
        e = self._enter("retire", address, groups, fence)
        used = {g.group for g in e.committed.groups} if e.committed else set[str]()
        for group in groups:
            if group in used:
                raise ExecutorRefused(e.server, f"{group} is committed")
        for group in groups:
            e.loaded.pop(group, None)
            e.specs.pop(group, None)

    def _enter(self, method: str, address: str, what: tuple[str, ...], fence: Fence) -> FakeExecutor:
        e = self.executors[self._server_at[address]]
        fault = self._faults.pop(len(self.calls), None)
        self.calls.append((method, e.server, what))
        if fault is not None:
            error = fault(e.server)
            if error is not None:
                raise error
        if not e.up:
            raise ExecutorUnreachable(e.server, "connection refused")
        asked = (fence.epoch, fence.generation)
        if asked < e.fence:
            raise StaleFence(f"executor of {e.server} has seen epoch {e.fence[0]}, generation {e.fence[1]}")
        e.fence = asked
        return e

    def _state(self, e: FakeExecutor, with_plan: bool) -> ExecutorState:
        live = e.live()
        return ExecutorState(
            server=e.server,
            incarnation=f"{e.server}-{e.boots}",
            epoch=e.fence[0],
            generation=e.generation,
            at=self._clock.wall(),
            services=tuple(
                ServiceObservation(
                    service=name,
                    arrived=c.arrived,
                    on_time=c.on_time,
                    late=0,
                    shed=c.shed,
                    failed=0,
                    forwarded=0,
                    served=c.on_time,
                    streams=c.streams,
                )
                for name, c in sorted(e.counters.items())
            ),
            replicas=tuple(
                ReplicaObservation(
                    replica=t.replica,
                    group=group,
                    service=t.service,
                    state="live" if t.replica in live else "ready",
                    queued=0,
                    served=0,
                    busy_s=0.0,
                    mean_batch=0.0,
                    batch_ms=0.0,
                    batch_times=tuple(b for _, b in sorted(e.batches.get(t.replica, {}).items())),
                    stages=e.specs[group].stages_here,
                    num_stages=len(e.specs[group].stages),
                )
                for group, tenants in sorted(e.loaded.items())
                for t in tenants.values()
            ),
            plan_json=e.committed.plan_json if with_plan and e.committed else "",
        )

    def _over_memory(self, e: FakeExecutor) -> str:
        used: dict[tuple[str, int], int] = {}
        for spec in e.specs.values():
            for t in spec.tenants:
                for device, need in self._needs(spec, t).items():
                    used[device] = used.get(device, 0) + need
        for (device_type, i), num_bytes in sorted(used.items()):
            limit = self._topology.device_types[device_type].memory_bytes
            if num_bytes > limit:
                return f"{device_type} {i}: expected <= {limit} bytes, got {num_bytes}"
        return ""

    def _needs(self, spec: GroupSpec, tenant: TenantSpec) -> dict[tuple[str, int], int]:
        """Bytes on each device (type, index) of the server."""
        if not spec.stages:
            need = self._memory_bytes(spec, tenant)
            return {(spec.device_type, i): need for i in spec.devices}
        service = self._topology.services[tenant.service]
        config = ParallelConfig(len(spec.stages[0].devices), spec.pp, tenant.batch, tenant.frames)
        rows = tuple((s.server, self._type_of(s), len(s.devices), s.first_layer, s.end_layer) for s in spec.stages)
        found, _ = chain_performance(self._topology, self._catalogue, service, rows, config)
        return {
            (row[1], i): num_bytes
            for s, row, num_bytes in zip(spec.stages, rows, found.memory_bytes, strict=True)
            if s.server == spec.server
            for i in s.devices
        }

    def _memory_bytes(self, spec: GroupSpec, tenant: TenantSpec) -> int:
        service = self._topology.services[tenant.service]
        profile = self._catalogue.shapes(service.model.profile_name, spec.device_type)[spec.tp, spec.pp]
        return evaluate(service, profile, ParallelConfig(spec.tp, spec.pp, tenant.batch, tenant.frames)).memory_bytes

    def _unheld(self, spec: GroupSpec) -> str:
        """The first other server of a chain that is down or was not told of it."""
        for s in spec.stages:
            there = self.executors[s.server]
            if s.server != spec.server and not (there.up and spec.group in there.loaded):
                return s.server
        return ""

    def _type_of(self, stage: StageSpec) -> str:
        """Executors are told kinds; the fake needs one type of each kind at a server."""
        types = self._topology.device_types
        pools = self._topology.servers[stage.server].devices
        return next(p.type for p in pools if types[p.type].kind.value == stage.device_kind)

    def _check_routes(self) -> None:
        """Every route of every executor that stands leads to a live replica, or to a server that does not stand.

        A chain is live where it is led and held at every other server of it that stands.
        """
        for e in self.executors.values():
            for spec in e.committed.groups if e.up and e.committed is not None and not e.restored else ():
                for s in spec.stages if spec.is_led_here else ():
                    there = self.executors[s.server]
                    lost = there.forgotten & {t.replica for t in spec.tenants}
                    if there.up and spec.group not in there.loaded and not lost:
                        where = f"call {len(self.calls) - 1}: {e.server} leads {spec.group}"
                        self.broken_laws.append(f"{where}, not held at {s.server}")
        for e in self.executors.values():
            if not e.up or e.committed is None or e.restored:
                continue
            for x in e.committed.routes:
                target = self.executors[x.server]
                if target.up and x.replica not in target.live() | target.forgotten:
                    self.broken_laws.append(
                        f"call {len(self.calls) - 1}: {e.server} routes {x.service} to {x.replica}, not live"
                    )


class ScriptedPlanner:
    """Hands out what it was given, in order; the last again and again. An exception in the script is raised."""

    name = "scripted"

    def __init__(self, script: Sequence[Plan | Exception]) -> None:
        self._script = list(script)
        self.problems: list[PlacementProblem] = []

    def plan(
        self, problem: PlacementProblem, *, generation: int, time_limit_s: float, in_force: Plan | None = None
    ) -> Plan:
        self.problems.append(problem)
        answer = self._script.pop(0) if len(self._script) > 1 else self._script[0]
        if isinstance(answer, Exception):
            raise answer
        return replace(answer, generation=generation)
