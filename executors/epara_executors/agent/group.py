"""A device group: its worker kept alive, its tenants (`tenancy`) and their work (`dispatch`).

States: loading, ready, failed (being restarted with back-off, or given up before it was ever committed),
draining, leaving (of a chain, another executor of which is about to leave), stopped.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping
from pathlib import Path

from epara_executors.agent.dispatch import Dispatch, WorkerLost
from epara_executors.agent.replica import Replica
from epara_executors.agent.requests import Job
from epara_executors.agent.tenancy import Tenancy, changeable, load_fields
from epara_executors.agent.worker_link import LoadFailed, WorkerLauncher, WorkerLink
from epara_executors.worker.frames import Frame
from epara_opt.control.ports import GroupSpec

log = logging.getLogger(__name__)

FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0
LAST_WORDS_S = 0.5  # for processes to end and say why, before their work is tried elsewhere
HUNG_AFTER_S = 10.0  # beyond the hard deadline of every request in a batch: then its worker is taken for hung


class GroupFailed(Exception):
    """The group could not be loaded; the message is the worker's own words."""


class DeviceGroup:
    """Start it once, stop it once. Everything runs on the event loop that started it."""

    def __init__(
        self,
        spec: GroupSpec,
        *,
        launcher: WorkerLauncher,
        socket_path: Path,
        persistent: bool,
        hung_after_s: float = HUNG_AFTER_S,
    ) -> None:
        """persistent: keep restarting even if the first load fails (it is part of a committed plan)."""
        self._hung_after_s = hung_after_s
        self._work = Dispatch(spec.server, replicas=lambda: self.replicas, moved=lambda: self._tenancy.moved())
        self._tenancy = Tenancy(spec, queued=self._work.queued)
        self.state = "loading"
        self.detail = ""
        self._aside = ""  # why the worker was let go, if it was
        self.persistent = persistent
        self.num_waiting_prepares = 0
        self.num_restarts = 0
        self._launcher = launcher
        self._socket_path = socket_path
        self._loop = asyncio.get_running_loop()
        self._link: WorkerLink | None = None
        self._stop = asyncio.Event()
        self._settled: asyncio.Future[None] = self._loop.create_future()  # first load ended, well or not
        self._settled.add_done_callback(lambda f: f.cancelled() or f.exception())  # seen, even if nobody asks
        self._supervisor: asyncio.Task[None] | None = None
        self._waiting: list[asyncio.Future[None]] = []  # for the next worker to be ready, or to fail
        self._changes: set[asyncio.Task[None]] = set()

    @property
    def spec(self) -> GroupSpec:
        """What is live: committed, or what the group was first prepared with. Every new worker loads this."""
        return self._tenancy.spec

    @property
    def replicas(self) -> Mapping[str, Replica]:
        """Loaded, to be loaded by the next worker, or leaving."""
        return self._tenancy.replicas

    # Life

    def start(self) -> None:
        self._supervisor = asyncio.create_task(self._supervise(), name=f"supervise {self.spec.group}")

    @property
    def is_ready(self) -> bool:
        return self._link is not None and self.state in ("ready", "draining")

    @property
    def busy_s(self) -> float:
        """Time that its devices have worked, over all its workers."""
        return self._work.busy_s

    @property
    def worker_pids(self) -> tuple[int, ...]:
        return tuple(self._link.handle.pids) if self._link else ()

    async def wait_ready(self) -> None:
        """Until the first load has ended. Raises GroupFailed with the worker's words."""
        await asyncio.shield(self._settled)

    async def drain(self) -> None:
        """Until nothing is queued or in flight. The caller has routed new work elsewhere."""
        if self.state == "ready":
            self.state = "draining"
        await self._work.quiet.wait()

    def step_aside(self, why: str) -> None:
        """Something that it runs on is about to leave: take nothing new, and let the worker go once it is idle."""
        if self._link is None or self._aside:
            return
        self.state, self.detail = "leaving", why
        self._aside = why

        async def leave(link: WorkerLink) -> None:
            await self._work.quiet.wait()
            await link.close()

        task = asyncio.create_task(leave(self._link), name=f"leave {self.spec.group}")
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)

    async def stop(self) -> None:
        """Unload: ask the worker to leave, make it if it does not. Idempotent."""
        self._stop.set()
        if self._supervisor is not None:
            await self._supervisor
        await asyncio.gather(*self._changes, return_exceptions=True)
        self.state = "stopped"

    async def _supervise(self) -> None:
        backoff_s = FIRST_BACKOFF_S
        stopped = asyncio.ensure_future(self._stop.wait())
        while not self._stop.is_set():
            living = asyncio.ensure_future(self._live())
            await asyncio.wait({living, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not living.done():
                if self._link is None:
                    living.cancel()  # still loading
                else:
                    await self._link.close()
                await asyncio.wait({living})
            if self._stop.is_set():
                if not living.cancelled() and living.exception() is not None:
                    log.info("group %s: %s", self.spec.group, living.exception())
                break
            try:
                lived_s = living.result()
            except LoadFailed as e:
                self.detail = str(e)
                self._wake(GroupFailed(f"{self.spec.group}: {e}"))
                if not self._settled.done():
                    self._settled.set_exception(GroupFailed(f"{self.spec.group}: {e}"))
                if not self.persistent:
                    self.state = "failed"
                    await self._stop.wait()
                    break
                lived_s = 0.0
            self.state = "failed"
            backoff_s = FIRST_BACKOFF_S if lived_s > MAX_BACKOFF_S else backoff_s
            log.warning("group %s: %s; restarting in %.1f s", self.spec.group, self.detail, backoff_s)
            await asyncio.wait({stopped}, timeout=backoff_s)
            backoff_s = min(MAX_BACKOFF_S, 2 * backoff_s)
            self.num_restarts += not self._stop.is_set()
        stopped.cancel()
        if not self._settled.done():
            self._settled.set_exception(GroupFailed(f"{self.spec.group}: unloaded before it was ready"))
        self._wake(GroupFailed(f"{self.spec.group}: unloaded"))
        self._lose("the group was unloaded")

    async def _live(self) -> float:
        """One worker from launch to end; returns how long it was ready. Raises LoadFailed."""
        self.state, self._aside = "loading", ""
        link = await WorkerLink.open(self._launcher, load_fields(self.spec), self._socket_path)
        self._link = link
        self._tenancy.attach(link)
        self._work.attach(link)
        link.listen(self._on_frame)
        self.state, self.detail = "ready", ""
        if not self._settled.done():
            self._settled.set_result(None)
        self._wake(None)
        self._change()  # a commit may have come while it loaded
        ready_at = self._loop.time()
        watching = asyncio.create_task(self._watch(link), name=f"watch {self.spec.group}")
        try:
            await link.left
        finally:
            watching.cancel()
            self._link = None
            self._work.detach()
            closing = asyncio.ensure_future(link.close(grace_s=0.0))
            await asyncio.wait({closing}, timeout=LAST_WORDS_S)
            if not closing.done():  # of a chain, ranks elsewhere: nobody's deadline waits for them
                self._lose(f"worker {link.handle.pid} has left")
            await closing
            ended = f"worker {link.handle.pid} ended with {link.ended.result()}"
            self.detail = link.handle.why or self._aside or ended
            self._lose(self.detail)
        return self._loop.time() - ready_at

    async def _watch(self, link: WorkerLink) -> None:
        """Kill a worker that still owes a batch long after everyone who wanted it has left."""
        while True:
            await asyncio.sleep(self._hung_after_s / 4)
            now = self._loop.time()
            for flight in self._work.flights:
                patience_s = max(self._hung_after_s, 10.0 * flight.replica.batch_s.value_s)
                if now > max(flight.started_at, *(j.hard_at for j in flight.jobs)) + patience_s:
                    log.error("group %s: worker %d hangs in a batch; killing it", self.spec.group, link.handle.pid)
                    link.handle.kill()
                    return

    def _lose(self, detail: str) -> None:
        jobs = self._work.forget()
        for replica in self.replicas.values():
            replica.reset()
        self._tenancy.detach()
        for job in jobs:
            if not job.answer.done():
                job.answer.set_exception(WorkerLost(detail))
        self._work.quiet.set()

    # Tenants

    def lacks(self, spec: GroupSpec) -> bool:
        """Whether a Prepare or Commit of `spec` asks for tenants that are not here."""
        return bool(self._tenancy.lacks(spec))

    def can_become(self, spec: GroupSpec) -> bool:
        return changeable(self.spec, (r.spec for r in self.replicas.values()), spec)

    async def hold(self, spec: GroupSpec) -> None:
        """Load what `spec` has beside what is live, which keeps serving. Raises GroupFailed; what is live stays."""
        tenancy = self._tenancy
        tenancy.add(spec)
        if not tenancy.lacks(spec):
            await asyncio.shield(self._change())  # who leaves makes room for the batch that grows at the commit
            if not self.is_ready:
                await self.wait_ready()
            return
        if self._link is None:
            attempt: asyncio.Future[None] = self._loop.create_future()
            self._waiting.append(attempt)
            await attempt
            tenancy.add(spec)  # what a worker takes down with it was not live
        await asyncio.shield(self._change())
        for name in tenancy.lacks(spec):
            said = tenancy.refused.get(name) or self.detail or "taken back while it loaded"
            raise GroupFailed(f"{spec.group}: {name}: {said}")

    async def dismiss(self) -> None:
        """Unload what was prepared beside what is live."""
        self._tenancy.dismiss()
        await asyncio.shield(self._change())

    def adopt(self, spec: GroupSpec) -> None:
        """`spec` is live from now on: batch limits and predictions change, who is not in it leaves once idle."""
        changed = self._tenancy.adopt(spec)
        if self.state == "draining":
            self.state = "ready"
        for replica in changed:
            if self._link is not None:
                t = replica.spec
                self._link.send(Frame("tune", {"replica": t.replica, "batch": t.batch, "frames": t.frames}))
        self._change()

    def state_of(self, replica: Replica) -> str:
        """The group's state, but for a tenant that comes or leaves."""
        if self.state != "ready":
            return self.state
        if replica.spec.replica not in self._tenancy.wanted:
            return "draining"
        return "ready" if replica.loaded is not None else "loading"

    def _change(self) -> asyncio.Task[None]:
        change = asyncio.create_task(self._tenancy.conform(), name=f"tenants of {self.spec.group}")
        self._changes.add(change)
        change.add_done_callback(self._changes.discard)
        return change

    def _wake(self, error: GroupFailed | None) -> None:
        """A worker is ready, or failed to become so."""
        for attempt in self._waiting:
            if attempt.done():
                continue
            if error is None:
                attempt.set_result(None)
            else:
                attempt.set_exception(error)
        self._waiting.clear()

    # Work

    def submit(self, replica: Replica, job: Job) -> None:
        """Queue a job; its `answer` ends with Answer, a Refusal or WorkerLost."""
        if not self._serves(replica):
            why = f"{replica.spec.replica} has left" if self.is_ready else f"group {self.spec.group} is {self.state}"
            job.answer.set_exception(WorkerLost(self.detail or why))
            return
        self._work.submit(replica, job)

    def _serves(self, replica: Replica) -> bool:
        known = self.replicas.get(replica.spec.replica) is replica
        return self.is_ready and known and replica.loaded is not None

    def withdraw(self, replica: Replica, job: Job) -> None:
        """The caller no longer wants it. Frees its place, and its slot if it is a generation."""
        self._work.withdraw(replica, job)

    def finish_at(self, replica: Replica, *, rows: int, due_at: float) -> float:
        """When a job that came now would be answered; infinite while there is no worker."""
        return self._work.finish_at(replica, rows=rows, due_at=due_at) if self._serves(replica) else math.inf

    def queued(self, replica: Replica) -> int:
        """Requests that wait or run."""
        return self._work.queued(replica)

    def _on_frame(self, frame: Frame) -> None:
        if frame.type == "token":
            self._work.on_token(frame.fields)
            return
        if frame.type == "result":
            self._work.on_result(frame.fields, frame.tensors)
        elif frame.type in ("loaded", "refused", "ready"):
            self._tenancy.on_frame(frame)
        elif frame.type == "failed":
            self.detail = str(frame.fields.get("detail", ""))
            log.error("group %s: worker failed: %s", self.spec.group, frame.fields.get("detail"))
        self._work.pump()
