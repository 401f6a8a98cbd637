"""A device group: its worker kept alive, its replicas' queues turned into batches.

Only one batch runs at a time and at most one more waits in the worker, so that the choice of what is next stays
here, where deadlines are known: the most urgent batch over all tenants (multi-task time sharing). Generations go
to the worker at once; it batches them continuously.

States: loading, ready, failed (being restarted with back-off, or given up before it was ever committed),
draining, stopped.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epara_executors.agent.replica import Replica
from epara_executors.agent.requests import Answer, BadRequest, Broken, Job, Token, TooLate
from epara_executors.agent.tenancy import Tenancy, changeable, load_fields
from epara_executors.agent.worker_link import LoadFailed, WorkerLauncher, WorkerLink, tensors_by_count
from epara_executors.worker.frames import Frame, Tensor
from epara_opt.control.ports import GroupSpec
from epara_opt.policy.admission import batch_finish_at, slot_finish_at
from epara_opt.policy.batching import next_batch, urgency

log = logging.getLogger(__name__)

MAX_BATCHES_AT_WORKER = 2  # one runs, one follows without a gap
FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0
HUNG_AFTER_S = 10.0  # beyond the hard deadline of every request in a batch: then its worker is taken for hung


class WorkerLost(Exception):
    """The worker that had the job is gone. The job may be tried elsewhere."""


class GroupFailed(Exception):
    """The group could not be loaded; the message is the worker's own words."""


@dataclass(slots=True)
class _Flight:
    """What one `infer` frame carries."""

    replica: Replica
    jobs: tuple[Job, ...]
    started_at: float
    first_token_at: float = math.inf


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
        self._tenancy = Tenancy(spec, queued=self.queued)
        self.state = "loading"
        self.detail = ""
        self.persistent = persistent
        self.busy_s = 0.0
        self.num_waiting_prepares = 0
        self._launcher = launcher
        self._socket_path = socket_path
        self._loop = asyncio.get_running_loop()
        self._link: WorkerLink | None = None
        self._flights: dict[str, _Flight] = {}
        self._infer_ids = itertools.count(1)
        self._timer: asyncio.TimerHandle | None = None
        self._stop = asyncio.Event()
        self._quiet = asyncio.Event()
        self._quiet.set()
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
    def worker_pids(self) -> tuple[int, ...]:
        return tuple(self._link.handle.pids) if self._link else ()

    async def wait_ready(self) -> None:
        """Until the first load has ended. Raises GroupFailed with the worker's words."""
        await asyncio.shield(self._settled)

    async def drain(self) -> None:
        """Until nothing is queued or in flight. The caller has routed new work elsewhere."""
        if self.state == "ready":
            self.state = "draining"
        await self._quiet.wait()

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
        stopped.cancel()
        if not self._settled.done():
            self._settled.set_exception(GroupFailed(f"{self.spec.group}: unloaded before it was ready"))
        self._wake(GroupFailed(f"{self.spec.group}: unloaded"))
        self._lose("the group was unloaded")

    async def _live(self) -> float:
        """One worker from launch to end; returns how long it was ready. Raises LoadFailed."""
        self.state = "loading"
        link = await WorkerLink.open(self._launcher, load_fields(self.spec), self._socket_path)
        self._link = link
        self._tenancy.attach(link)
        self.state, self.detail = "ready", ""
        if not self._settled.done():
            self._settled.set_result(None)
        self._wake(None)
        self._change()  # a commit may have come while it loaded
        ready_at = self._loop.time()
        watching = asyncio.create_task(self._watch(link), name=f"watch {self.spec.group}")
        try:
            while (frame := await link.read()) is not None:
                self._on_frame(frame)
                self._pump()
        finally:
            watching.cancel()
            self._link = None
            await link.close(grace_s=0.0)
            self.detail = f"worker {link.handle.pid} ended with {link.ended.result()}"
            self._lose(self.detail)
        return self._loop.time() - ready_at

    async def _watch(self, link: WorkerLink) -> None:
        """Kill a worker that still owes a batch long after everyone who wanted it has left."""
        while True:
            await asyncio.sleep(self._hung_after_s / 4)
            now = self._loop.time()
            for flight in self._flights.values():
                patience_s = max(self._hung_after_s, 10.0 * flight.replica.batch_s.value_s)
                if now > max(flight.started_at, *(j.hard_at for j in flight.jobs)) + patience_s:
                    log.error("group %s: worker %d hangs in a batch; killing it", self.spec.group, link.handle.pid)
                    link.handle.kill()
                    return

    def _lose(self, detail: str) -> None:
        jobs = [j for f in self._flights.values() for j in f.jobs]
        jobs += [j for r in self.replicas.values() for j in r.queue]
        self._flights.clear()
        for replica in self.replicas.values():
            replica.reset()
        self._tenancy.detach()
        for job in jobs:
            if not job.answer.done():
                job.answer.set_exception(WorkerLost(detail))
        self._quiet.set()

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
        self._quiet.clear()
        replica.queue.append(job)
        self._pump()

    def _serves(self, replica: Replica) -> bool:
        known = self.replicas.get(replica.spec.replica) is replica
        return self.is_ready and known and replica.loaded is not None

    def withdraw(self, replica: Replica, job: Job) -> None:
        """The caller no longer wants it. Frees its place, and its slot if it is a generation."""
        if job in replica.queue:
            replica.queue.remove(job)
        elif replica.generates:
            for infer_id, flight in self._flights.items():
                if job in flight.jobs:
                    if self._link is not None:
                        self._link.send(Frame("cancel", {"replica": replica.spec.replica, "id": infer_id}))
                    self._land(infer_id)
                    break
        self._pump()

    def finish_at(self, replica: Replica, *, rows: int, due_at: float) -> float:
        """When a job that came now would be answered; infinite while there is no worker."""
        if not self._serves(replica):
            return math.inf
        now = self._loop.time()
        if replica.generates:
            in_worker = replica.generating + len(replica.queue)
            by_token = replica.spec.tpot_ms > 0
            return slot_finish_at(
                now=now,
                in_flight=in_worker,
                slots=replica.spec.batch,
                answer_s=(replica.first_s if by_token else replica.batch_s).value_s,
                whole_s=replica.batch_s.value_s,
            )
        busy_until = now
        for flight in self._flights.values():
            if not flight.replica.generates:
                began_at = max(busy_until, flight.started_at) if busy_until > now else flight.started_at
                busy_until = max(now, began_at + flight.replica.batch_s.value_s)
        others_s = sum(
            math.ceil(_rows_due(r, due_at) / r.rule.max_rows) * r.batch_s.value_s
            for r in self.replicas.values()
            if r is not replica and not r.generates
        )
        return batch_finish_at(
            now=now,
            busy_until=busy_until,
            rows_ahead=_rows_due(replica, due_at),
            rows=rows,
            max_rows=replica.rule.max_rows,
            batch_s=replica.batch_s.value_s,
            others_s=others_s,
        )

    def queued(self, replica: Replica) -> int:
        """Requests that wait or run."""
        return len(replica.queue) + sum(len(f.jobs) for f in self._flights.values() if f.replica is replica)

    def _pump(self) -> None:
        """Send whatever may leave now, and set the timer for what may leave later."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._link is None:
            return
        now = self._loop.time()
        wake_at = math.inf
        batching: list[Replica] = []
        for replica in self.replicas.values():
            for job in [j for j in replica.queue if j.due_at <= now]:
                replica.queue.remove(job)
                if not job.answer.done():
                    job.answer.set_exception(TooLate(f"{job.service}: its deadline came while it was queued"))
            if replica.generates:
                for job in replica.queue:
                    self._send(replica, (job,), now)
                replica.queue.clear()
            else:
                batching.append(replica)
        while (at_worker := self._num_batches()) < MAX_BATCHES_AT_WORKER:
            best: tuple[tuple[int, float, float], Replica, tuple[Job, ...]] | None = None
            for replica in batching:
                jobs, until = next_batch(
                    replica.queue, replica.rule, now=now, idle=at_worker == 0, batch_s=replica.batch_s.value_s
                )
                if not jobs:
                    wake_at = min(wake_at, until)
                elif best is None or urgency(jobs[0]) < best[0]:
                    best = (urgency(jobs[0]), replica, jobs)
            if best is None:
                break
            _, replica, jobs = best
            gone = {j.id for j in jobs}
            replica.queue = [j for j in replica.queue if j.id not in gone]
            self._send(replica, jobs, now)
        wake_at = min([wake_at, *(j.due_at for r in batching for j in r.queue)])
        if wake_at < math.inf:
            self._timer = self._loop.call_at(wake_at, self._pump)
        if not self._flights and not any(r.queue for r in self.replicas.values()):
            self._quiet.set()
        self._tenancy.moved()

    def _num_batches(self) -> int:
        return sum(1 for f in self._flights.values() if not f.replica.generates)

    def _send(self, replica: Replica, jobs: tuple[Job, ...], now: float) -> None:
        if self._link is None:
            return
        infer_id = str(next(self._infer_ids))
        self._flights[infer_id] = _Flight(replica, jobs, now)
        for job in jobs:
            job.started = True
        if replica.generates:
            replica.generating += 1
        requests = [{"id": j.id, "rows": j.rows, "params": dict(j.params), "outputs": list(j.outputs)} for j in jobs]
        fields = {
            "id": infer_id,
            "replica": replica.spec.replica,
            "requests": requests,
            "counts": [len(j.tensors) for j in jobs],
        }
        self._link.send(Frame("infer", fields, [t for j in jobs for t in j.tensors]))

    def _land(self, infer_id: str) -> _Flight | None:
        flight = self._flights.pop(infer_id, None)
        if flight is not None and flight.replica.generates:
            flight.replica.generating -= 1
        return flight

    def _on_frame(self, frame: Frame) -> None:
        if frame.type == "result":
            self._on_result(frame.fields, frame.tensors)
        elif frame.type == "token":
            self._on_token(frame.fields)
        elif frame.type in ("loaded", "refused", "ready"):
            self._tenancy.on_frame(frame)
        elif frame.type == "failed":
            self.detail = str(frame.fields.get("detail", ""))
            log.error("group %s: worker failed: %s", self.spec.group, frame.fields.get("detail"))

    def _on_token(self, fields: Mapping[str, Any]) -> None:
        flight = self._flights.get(str(fields["id"]))
        if flight is None:
            return  # cancelled meanwhile
        if flight.first_token_at == math.inf:
            flight.first_token_at = self._loop.time()
            flight.replica.first_s.observe(flight.first_token_at - flight.started_at)
        job = flight.jobs[0]
        if job.on_token is not None:
            job.on_token(
                Token(
                    index=int(fields["index"]),
                    token=int(fields["token"]),
                    text=str(fields["text"]),
                    done=bool(fields["done"]),
                    finish_reason=str(fields.get("finish_reason") or ""),
                )
            )

    def _on_result(self, fields: Mapping[str, Any], tensors: Any) -> None:
        flight = self._land(str(fields["id"]))
        if flight is None:
            return  # cancelled meanwhile
        replica, now = flight.replica, self._loop.time()
        replica.batch_s.observe(now - flight.started_at)
        device_s = float(fields["batch_ms"]) / 1000.0
        # Generations share their steps; a slot's part of the time is what this one cost.
        device_s = device_s / replica.spec.batch if replica.generates else device_s
        replica.busy_s += device_s
        self.busy_s += device_s
        replica.batches_done += 1
        if not replica.generates:
            for other in self._flights.values():  # what waited behind it starts now
                if not other.replica.generates:
                    other.started_at = now
        try:
            verdicts = list(fields["requests"])
            runs = tensors_by_count(tensors, [int(v.get("tensors", 0)) if v["ok"] else 0 for v in verdicts])
            if len(verdicts) != len(flight.jobs):
                raise ValueError(f"requests: expected {len(flight.jobs)}, got {len(verdicts)}")
        except (ValueError, KeyError, TypeError) as e:
            for job in flight.jobs:
                _fail(job, Broken(f"{job.service}: worker's answer is malformed: {e}"))
            return
        for job, verdict, outputs in zip(flight.jobs, verdicts, runs, strict=True):
            replica.rows_done += job.rows
            if not verdict["ok"]:
                kind = BadRequest if verdict.get("code") == "INVALID_ARGUMENT" else Broken
                _fail(job, kind(f"{job.service}: {verdict.get('message', 'no message given')}"))
                continue
            replica.served += 1
            if not job.answer.done():
                job.answer.set_result(Answer(tensors=_as_tensors(outputs), server=self.spec.server))


def _rows_due(replica: Replica, due_at: float) -> int:
    return sum(j.rows for j in replica.queue if j.due_at <= due_at)


def _as_tensors(run: Any) -> tuple[Tensor, ...]:
    return tuple(run)


def _fail(job: Job, refusal: BadRequest | Broken) -> None:
    if not job.answer.done():
        job.answer.set_exception(refusal)
