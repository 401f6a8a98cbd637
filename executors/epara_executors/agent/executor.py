"""What one executor runs and serves: device groups, the committed plan, the fence that guards both.

Control calls are idempotent and fenced by (epoch, generation), compared in that order: whoever speaks with an older
fence than the highest seen is refused. The highest fence and the committed plan survive a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from epara_executors.agent.chain import ChainLauncher, Health
from epara_executors.agent.counters import ServiceCounters
from epara_executors.agent.group import DeviceGroup, GroupFailed
from epara_executors.agent.persistence import CommittedStore, Remembered
from epara_executors.agent.routing_table import ServiceRouting, build
from epara_executors.agent.stages import HeldStages
from epara_executors.agent.worker_link import WorkerLauncher
from epara_opt.control.ports import CommitSpec, Fence, GroupSpec, StageSpec
from epara_opt.errors import ExecutorRefused, StaleFence

log = logging.getLogger(__name__)

CALLED_WITHIN_S = 2.0  # a head may call for its stages before they are prepared here, e.g. while both restore a plan
RETIRE_PATIENCE_S = 10.0  # for a chain's head to let its stages here go, once they are retired


def older(a: Fence, b: Fence) -> bool:
    return (a.epoch, a.generation) < (b.epoch, b.generation)


def _given_up(group: DeviceGroup) -> bool:
    """Failed before it was ever committed: the next Prepare starts anew."""
    return group.state in ("failed", "stopped") and not group.persistent


class Executor:
    """The state behind the control plane and the request handler. One event loop."""

    def __init__(
        self,
        server: str,
        *,
        launcher: WorkerLauncher,
        store: CommittedStore,
        socket_dir: Path,
        max_devices: Mapping[str, int],  # by kind; a kind that is absent is not limited
    ) -> None:
        self.server = server
        self.incarnation = uuid.uuid4().hex
        self.groups: dict[str, DeviceGroup] = {}
        self.stages: dict[str, HeldStages] = {}  # of chains that are led elsewhere, by group
        self.routing: Mapping[str, ServiceRouting] = {}
        self.switched_at = -math.inf  # when `routing` came into force, by the event loop's clock
        self.committed: CommitSpec | None = None
        self.counters: dict[str, ServiceCounters] = {}
        self.draining = False  # it takes no new work
        self.restored = asyncio.Event()
        self._launcher = launcher
        self._store = store
        self._socket_dir = socket_dir
        self._max_devices = max_devices
        self._memory = store.load()
        self._changing = asyncio.Lock()  # commit and what it persists
        self._held = asyncio.Event()  # pulsed when stages are prepared

    # Fence

    @property
    def seen(self) -> Fence:
        return self._memory.seen

    @property
    def generation(self) -> int:
        return self._memory.committed_fence.generation

    async def pass_fence(self, fence: Fence) -> None:
        """Let the call through or raise StaleFence; a newer fence is remembered before anything else happens."""
        if older(fence, self.seen):
            raise StaleFence(
                f"stale fence at executor {self.server}: expected (epoch, generation) >= "
                f"({self.seen.epoch}, {self.seen.generation}), got ({fence.epoch}, {fence.generation})"
            )
        if older(self.seen, fence):
            await self._remember(seen=fence)

    async def _remember(
        self, *, seen: Fence, committed: CommitSpec | None = None, committed_fence: Fence | None = None
    ) -> None:
        memory = Remembered(
            seen=seen,
            committed=committed or self._memory.committed,
            committed_fence=committed_fence or self._memory.committed_fence,
        )
        self._memory = memory  # before the write: a concurrent call must meet the newer fence
        await asyncio.to_thread(self._store.save, memory)

    # Control calls

    async def prepare(self, specs: Sequence[GroupSpec], fence: Fence) -> None:
        """Load groups beside what runs, and new tenants into groups that run; returns when all are ready.

        A failure unloads what this call started, and nothing else.
        """
        await self.pass_fence(fence)
        for spec in specs:
            self._check(spec)
        held = self._hold_stages([s for s in specs if not s.is_led_here])
        started: list[DeviceGroup] = []
        grown: list[DeviceGroup] = []
        awaited: list[DeviceGroup] = []
        loads: list[asyncio.Future[None]] = []
        for spec in specs:
            if not spec.is_led_here:
                continue
            group = self.groups.get(spec.group)
            if group is None or _given_up(group):
                group = self._start(spec, persistent=False)
                started.append(group)
                loads.append(asyncio.ensure_future(group.wait_ready()))
            else:
                if group.lacks(spec):
                    grown.append(group)
                loads.append(asyncio.ensure_future(group.hold(spec)))
            awaited.append(group)
            group.num_waiting_prepares += 1
        try:
            try:
                await asyncio.gather(*loads)
            finally:
                for load in loads:
                    load.cancel()
        except GroupFailed as e:
            await self._abandon(started, grown, awaited)
            await self._unload_stages(held)
            raise ExecutorRefused(self.server, str(e)) from e
        except asyncio.CancelledError:
            await asyncio.shield(self._abandon(started, grown, awaited))
            await asyncio.shield(self._unload_stages(held))
            raise
        for group in awaited:
            group.num_waiting_prepares -= 1

    async def _abandon(
        self, started: Sequence[DeviceGroup], grown: Sequence[DeviceGroup], awaited: Sequence[DeviceGroup]
    ) -> None:
        for group in awaited:
            group.num_waiting_prepares -= 1
        for group in grown:
            if group.num_waiting_prepares == 0:
                await group.dismiss()
        for group in started:
            if group.num_waiting_prepares == 0 and not group.persistent:
                await self._unload(group)

    def _check(self, spec: GroupSpec) -> None:
        if spec.server != self.server:
            raise ExecutorRefused(self.server, f"{spec.group}.server: expected {self.server}, got {spec.server}")
        if spec.stages:
            self._check_chain(spec)
        elif len(spec.devices) != spec.tp * spec.pp:
            raise ExecutorRefused(
                self.server,
                f"{spec.group}.devices: expected tp x pp = {spec.tp * spec.pp}, got {len(spec.devices)}",
            )
        mine = [(s.device_kind, s.devices) for s in spec.stages if s.server == self.server]
        for kind, devices in mine or [(spec.device_kind, spec.devices)]:
            limit = self._max_devices.get(kind)
            limit = limit * spec.parts if limit is not None else None
            if limit is not None and devices and max(devices) >= limit:
                law = f"{spec.group}.devices: expected {kind} indexes < {limit}"
                raise ExecutorRefused(self.server, f"{law}, got {max(devices)}")
        for tenant in spec.tenants:
            if tenant.batch < 1 or tenant.frames < 1:
                law = f"{spec.group}.{tenant.replica}: expected batch and frames >= 1"
                raise ExecutorRefused(self.server, f"{law}, got {tenant.batch} and {tenant.frames}")
        group, stages = self.groups.get(spec.group), self.stages.get(spec.group)
        known = None if group is not None and _given_up(group) else group or stages
        if known is not None and not known.can_become(spec):
            law = "expected the devices, shape and models it was prepared with"
            raise ExecutorRefused(self.server, f"{spec.group}: {law}, got others")

    def _check_chain(self, spec: GroupSpec) -> None:
        """Stages of one model, in order and without a gap, some of them here."""
        path = f"{spec.group}.stages"
        if not spec.stages_here:
            raise ExecutorRefused(self.server, f"{path}: expected one at {self.server}, got none")
        if len(spec.stages) != spec.pp:
            raise ExecutorRefused(self.server, f"{path}: expected pp = {spec.pp}, got {len(spec.stages)}")
        at = 0
        for i, s in enumerate(spec.stages):
            if s.first_layer != at or s.end_layer <= at:
                law = f"{path}[{i}]: expected one layer or more from {at} on"
                raise ExecutorRefused(self.server, f"{law}, got [{s.first_layer}, {s.end_layer})")
            if not s.devices or not s.address:
                raise ExecutorRefused(self.server, f"{path}[{i}]: expected devices and an address, got {s}")
            at = s.end_layer

    async def commit(self, spec: CommitSpec, fence: Fence) -> None:
        """Switch routes and live groups at once. Every group must be prepared (or live already)."""
        async with self._changing:
            await self.pass_fence(fence)
            if spec.server != self.server:
                raise ExecutorRefused(self.server, f"server: expected {self.server}, got {spec.server}")
            for g in spec.groups:
                self._check(g)
                if not g.is_led_here:
                    if g.group not in self.stages:
                        raise ExecutorRefused(self.server, f"{g.group}: expected prepared, got not prepared")
                    continue
                group = self.groups.get(g.group)
                if group is None or not (group.is_ready or group.persistent):
                    state = "not prepared" if group is None else f"{group.state} {group.detail}".strip()
                    raise ExecutorRefused(self.server, f"{g.group}: expected prepared and ready, got {state}")
                if group.lacks(g):
                    absent = ", ".join(t.replica for t in g.tenants if t.replica not in group.replicas)
                    raise ExecutorRefused(self.server, f"{absent}: expected prepared and ready, got not prepared")
            try:
                await self._remember(seen=fence, committed=spec, committed_fence=fence)
            except OSError as e:
                raise ExecutorRefused(self.server, f"cannot keep the plan on disk: {e}") from e
            self._switch(spec)

    def _switch(self, spec: CommitSpec) -> None:
        live = {g.group for g in spec.groups}
        for g in spec.groups:
            if not g.is_led_here:
                self.stages[g.group].adopt(g)
                continue
            group = self.groups[g.group]
            group.persistent = True
            group.adopt(g)
        for table in (self.groups, self.stages):
            for name, group in table.items():
                if name not in live:
                    group.persistent = False
        self.committed = spec
        self.routing = build(spec, self.groups)
        self.switched_at = asyncio.get_running_loop().time()
        for name in self.routing:
            self.counters.setdefault(name, ServiceCounters(name))

    async def retire(self, names: Sequence[str], fence: Fence) -> None:
        """Drain groups that the committed plan does not use, then unload them. Unknown ones are gone already."""
        await self.pass_fence(fence)
        used = {g.group for g in self.committed.groups} if self.committed else set[str]()
        clash = sorted(used.intersection(names))
        if clash:
            raise ExecutorRefused(self.server, f"{', '.join(clash)}: in use by generation {self.generation}")
        wanted = dict.fromkeys(names)
        held = [self.stages[n] for n in wanted if n in self.stages]
        await asyncio.gather(
            *(self._retire(self.groups[n]) for n in wanted if n in self.groups),
            self._unload_stages(held, patience_s=RETIRE_PATIENCE_S),
        )

    async def _retire(self, group: DeviceGroup) -> None:
        await group.drain()
        await self._unload(group)

    async def _unload(self, group: DeviceGroup) -> None:
        await group.stop()
        if self.groups.get(group.spec.group) is group:
            del self.groups[group.spec.group]

    def _start(self, spec: GroupSpec, *, persistent: bool) -> DeviceGroup:
        digest = hashlib.sha256(f"{spec.group}/{uuid.uuid4()}".encode()).hexdigest()[:12]
        path = self._socket_dir / digest
        launcher = self._chain_launcher(spec.group) if spec.stages else self._launcher
        group = DeviceGroup(spec, launcher=launcher, socket_path=path, persistent=persistent)
        self.groups[spec.group] = group
        group.start()
        return group

    # Chains

    def _chain_launcher(self, name: str) -> WorkerLauncher:
        """For a group that leads a chain."""

        def health() -> Health:
            group = self.groups.get(name)
            loaded = [r.loaded for r in group.replicas.values() if r.loaded is not None] if group else []
            return Health(group is not None and group.is_ready, loaded[0].stage_bytes if loaded else ())

        def on_leaving(why: str) -> None:
            if (group := self.groups.get(name)) is not None:
                group.step_aside(why)

        return ChainLauncher(self._launcher, health=health, on_leaving=on_leaving)

    def _hold_stages(self, specs: Sequence[GroupSpec]) -> list[HeldStages]:
        """Be ready for the heads of these chains to call; those that were not held before."""
        fresh: list[HeldStages] = []
        for spec in specs:
            if spec.group not in self.stages:
                self.stages[spec.group] = HeldStages(spec, launcher=self._launcher)
                fresh.append(self.stages[spec.group])
        self._held.set()
        self._held.clear()
        return fresh

    async def _unload_stages(self, held: Sequence[HeldStages], *, patience_s: float = 0.0) -> None:
        """Those that no committed plan uses."""

        async def unload(stages: HeldStages) -> None:
            await stages.stop(patience_s=patience_s)
            if self.stages.get(stages.spec.group) is stages:
                del self.stages[stages.spec.group]

        await asyncio.gather(*(unload(s) for s in held if not s.persistent))

    async def stages_of(self, group: str, layout: Sequence[StageSpec]) -> HeldStages:
        """What a chain's head calls for. Raises ExecutorRefused where it was not prepared here, or as another chain."""
        if self.draining:
            raise ExecutorRefused(self.server, "is draining")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CALLED_WITHIN_S):
                while group not in self.stages:
                    await self._held.wait()
        held = self.stages.get(group)
        if held is None:
            raise ExecutorRefused(self.server, f"{group}: expected prepared stages, got none")
        if tuple(replace(s, address="") for s in layout) != held.spec.layout:
            raise ExecutorRefused(self.server, f"{group}: expected the stages that were prepared here, got others")
        return held

    # Life

    async def restore(self) -> None:
        """Serve the plan kept on disk again. Returns when every group of it has tried to load once."""
        spec = self._memory.committed
        if spec is not None:
            self._hold_stages([g for g in spec.groups if not g.is_led_here])
            for g in spec.groups:
                if g.is_led_here:
                    self._start(g, persistent=True)
            self._switch(spec)
            results = await asyncio.gather(*(g.wait_ready() for g in self.groups.values()), return_exceptions=True)
            for failed in (r for r in results if isinstance(r, BaseException)):
                log.error("restoring generation %d: %s", self.generation, failed)
        self.restored.set()

    def leave(self) -> None:
        """Take no new work; ask the heads of chains to let their stages here go."""
        self.draining = True
        for stages in self.stages.values():
            stages.leave()

    async def quiet(self) -> None:
        """Until no group has anything queued or in flight."""
        await asyncio.gather(*(g.drain() for g in self.groups.values()), *(s.quiet() for s in self.stages.values()))

    async def stop(self) -> None:
        await asyncio.gather(*(g.stop() for g in self.groups.values()), *(s.stop() for s in self.stages.values()))

    # State

    def sources(self) -> set[str]:
        """Models of everything that is loaded here, or will be by the committed plan."""
        specs = [r.spec for g in self.groups.values() for r in g.replicas.values()]
        specs += [t for g in self.groups.values() for t in g.spec.tenants]
        committed = self._memory.committed
        specs += [t for g in committed.groups for t in g.tenants] if committed else []
        return {t.source for t in specs}

    def in_flight(self) -> int:
        return sum(g.queued(r) for g in self.groups.values() for r in g.replicas.values())
