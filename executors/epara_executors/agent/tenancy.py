"""Which tenants a device group has, and how that changes while it serves.

A group holds what is live (its spec: committed, or what it was first prepared with) and what the latest Prepare
added to it. Whoever is in neither is leaving: it finishes what it has, then the worker drops it. What was added and
never committed goes the same way, and does not survive its worker: a new one loads what is live and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from epara_executors.agent.replica import Replica
from epara_executors.agent.worker_link import Loaded, WorkerLink
from epara_executors.worker.frames import Frame
from epara_opt.control.ports import GroupSpec, TenantSpec

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Load:
    """What the worker has answered so far to one `load` of ours."""

    done: asyncio.Future[bool]  # False: the worker left first
    loaded: dict[str, Loaded] = field(default_factory=dict[str, Loaded])


class Tenancy:
    """Of one device group, over all its workers' lives. One change at a time; on the group's event loop."""

    def __init__(self, spec: GroupSpec, *, queued: Callable[[Replica], int]) -> None:
        """queued: how many requests of a replica wait or run."""
        self.spec = spec
        self.replicas: dict[str, Replica] = {t.replica: Replica(t) for t in spec.tenants}
        self.refused: dict[str, str] = {}  # of the latest Prepare: replica to the worker's words
        self._queued = queued
        self._added: dict[str, TenantSpec] = {}
        self._link: WorkerLink | None = None
        self._load: _Load | None = None
        self._changing = asyncio.Lock()
        self._moved = asyncio.Event()  # pulsed when work has left some queue

    # What it should hold

    @property
    def wanted(self) -> dict[str, TenantSpec]:
        return {t.replica: t for t in self.spec.tenants} | self._added

    def lacks(self, spec: GroupSpec) -> list[str]:
        """Tenants of `spec` that are neither loaded nor part of what every worker loads."""
        return [t.replica for t in spec.tenants if t.replica not in self.replicas]

    def add(self, spec: GroupSpec) -> None:
        """Want the tenants of `spec` beside what is live, and nobody that an earlier Prepare had added."""
        live = {t.replica for t in self.spec.tenants}
        added = {t.replica: t for t in spec.tenants if t.replica not in live}
        if added != self._added:
            self._added, self.refused = added, {}

    def dismiss(self) -> None:
        """Want only what is live."""
        self._added = {}

    def adopt(self, spec: GroupSpec) -> list[Replica]:
        """`spec` is live from now on; those whose batch limits changed."""
        self.spec = spec
        self._added = {}
        changed: list[Replica] = []
        for tenant in spec.tenants:
            # Absent only if the worker was lost in this very moment; the next one loads it.
            replica = self.replicas.setdefault(tenant.replica, Replica(tenant))
            limits = (replica.spec.batch, replica.spec.frames)
            replica.tune(tenant)
            if limits != (tenant.batch, tenant.frames):
                changed.append(replica)
        return changed

    # The worker

    def attach(self, link: WorkerLink) -> None:
        """A worker is ready with what was live when it was started."""
        self._link = link
        for name, replica in self.replicas.items():
            replica.loaded = link.loaded.get(name)

    def detach(self) -> None:
        """The worker is gone, and with it whatever was not live."""
        self._link = None
        self._added = {}
        live = {t.replica for t in self.spec.tenants}
        self.replicas = {n: r for n, r in self.replicas.items() if n in live}
        if self._load is not None and not self._load.done.done():
            self._load.done.set_result(False)
        self.moved()

    def moved(self) -> None:
        """Some work has left: whoever waits for a tenant to become idle looks again."""
        self._moved.set()
        self._moved.clear()

    def on_frame(self, frame: Frame) -> None:
        """An answer to a later load: loaded, refused or ready."""
        if self._load is None:
            return
        if frame.type == "loaded":
            tenant = Loaded.from_fields(frame.fields)
            self._load.loaded[tenant.replica] = tenant
        elif frame.type == "refused":
            self.refused[str(frame.fields["replica"])] = str(frame.fields.get("detail", "no detail given"))
        elif not self._load.done.done():
            self._load.done.set_result(True)

    async def conform(self) -> None:
        """Make the worker hold what is wanted: those that leave finish their work first, then one `load` does all.

        Where there is no worker nothing is to be done: the next one starts with what is live. Whoever could not be
        loaded is in `refused`, and wanted no more.
        """
        async with self._changing:
            while any(self._queued(r) for r in self._leaving()):
                await self._moved.wait()
            for replica in list(self._leaving()):
                del self.replicas[replica.spec.replica]
            link, wanted = self._link, self.wanted
            if link is None or link.loaded.keys() == wanted.keys():
                return
            self._load = _Load(asyncio.get_running_loop().create_future())
            link.send(Frame("load", load_fields(replace(self.spec, tenants=tuple(wanted.values())))))
            complete = await self._load.done
            loaded, self._load = self._load.loaded, None
            if not complete or self._link is not link:
                return
            link.loaded = loaded
            for name, said in loaded.items():
                self.replicas.setdefault(name, Replica(wanted[name])).loaded = said
            for name in wanted.keys() - loaded.keys():
                self._added.pop(name, None)
                log.error("group %s: %s was refused: %s", self.spec.group, name, self.refused.get(name, "no word"))

    def _leaving(self) -> Iterable[Replica]:
        wanted = self.wanted
        return [r for n, r in self.replicas.items() if n not in wanted]


def changeable(group: GroupSpec, running: Iterable[TenantSpec], to: GroupSpec) -> bool:
    """Whether a running group can become the other in place.

    Tenants may come and go, batch limits and predictions change; the group's place and shape, and what a tenant
    that stays is, may not.
    """

    def fixed(t: TenantSpec) -> TenantSpec:
        return replace(t, batch=1, frames=1, deadline_ms=0, fps=0, response_ms=0, work_per_s=0, tpot_ms=0)

    known = {t.replica: fixed(t) for t in running}
    same_place = replace(group, tenants=(), stages=()) == replace(to, tenants=(), stages=())
    return (
        same_place and group.layout == to.layout and all(known.get(t.replica, fixed(t)) == fixed(t) for t in to.tenants)
    )


def load_fields(spec: GroupSpec) -> dict[str, Any]:
    """A `load` frame's fields."""
    chain = {"server": spec.server, "stages": [asdict(s) for s in spec.stages]} if spec.stages else {}
    return {
        **chain,
        "group": spec.group,
        "device_kind": spec.device_kind,
        "devices": list(spec.devices),
        "tp": spec.tp,
        "pp": spec.pp,
        "parts": spec.parts,
        "tenants": [asdict(t) for t in spec.tenants],
    }
