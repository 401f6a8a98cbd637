"""The work of one device group: its replicas' queues turned into batches, and the worker's answers into theirs.

Only one batch runs at a time and at most one more waits in the worker, so that the choice of what is next stays
here, where deadlines are known: the most urgent batch over all tenants (multi-task time sharing). What waits until it
could not be on time any more is not started. Generations go to the worker at once; it batches them continuously.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from epara_executors.agent.replica import Replica
from epara_executors.agent.requests import Answer, BadRequest, Broken, Job, Token, TooLate
from epara_executors.agent.worker_link import WorkerLink, tensors_by_count
from epara_executors.worker.frames import Frame, Tensor
from epara_opt.policy.admission import batch_finish_at, may_forget, slot_finish_at
from epara_opt.policy.batching import may_go_ahead, next_batch, urgency

MAX_BATCHES_AT_WORKER = 2  # one runs, one follows without a gap


class WorkerLost(Exception):
    """The worker that had the job is gone. The job may be tried elsewhere."""


@dataclass(slots=True)
class Flight:
    """What one `infer` frame carries."""

    replica: Replica
    jobs: tuple[Job, ...]
    started_at: float
    first_token_at: float = math.inf
    num_tokens: int = 0


class Dispatch:
    """Over all workers of the group, one after the other. On the group's event loop."""

    def __init__(
        self, server: str, *, replicas: Callable[[], Mapping[str, Replica]], moved: Callable[[], None]
    ) -> None:
        """replicas: of the group, as they are now. moved: called when some work may have left a queue."""
        self.quiet = asyncio.Event()  # nothing is queued or in flight
        self.quiet.set()
        self.busy_s = 0.0
        self._server = server
        self._replicas = replicas
        self._moved = moved
        self._loop = asyncio.get_running_loop()
        self._link: WorkerLink | None = None
        self._flights: dict[str, Flight] = {}
        self._infer_ids = itertools.count(1)
        self._timer: asyncio.TimerHandle | None = None
        self._turn: asyncio.Handle | None = None  # a pump at the end of this turn of the loop

    # The worker

    def attach(self, link: WorkerLink) -> None:
        """A worker is ready for work."""
        self._link = link

    def detach(self) -> None:
        """The worker is gone. What it had and what waits is still here until `forget`."""
        self._link = None

    def forget(self) -> list[Job]:
        """Everything that was queued or in flight, and no more is: the caller tells whose it was."""
        jobs = [j for f in self._flights.values() for j in f.jobs]
        jobs += [j for r in self._replicas().values() for j in r.queue]
        self._flights.clear()
        return jobs

    @property
    def flights(self) -> Iterable[Flight]:
        """What the worker has."""
        return self._flights.values()

    # Work

    def submit(self, replica: Replica, job: Job) -> None:
        """Queue a job; its `answer` ends with Answer, a Refusal or WorkerLost."""
        self.quiet.clear()
        replica.arrived += 1
        replica.queue.append(job)
        if self._turn is None:  # whoever else comes in this turn of the loop may share the batch
            self._turn = self._loop.call_soon(self.pump)

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
        self.pump()

    def finish_at(self, replica: Replica, *, rows: int, due_at: float) -> float:
        """When a job that came now would be answered by the worker at hand; infinite for more rows than a batch has.

        Where that would be too late by an old observation alone, this forgets it (`may_forget`) and asks the plan.
        """
        now = self._loop.time()
        by_token = replica.generates and replica.spec.tpot_ms > 0
        answer = replica.first_s if by_token else replica.batch_s
        if may_forget(answer, now=now, observed_at=replica.observed_at, due_at=due_at):
            answer.forget()
        if replica.generates:
            in_worker = replica.generating + len(replica.queue)
            return slot_finish_at(
                now=now,
                in_flight=in_worker,
                slots=replica.spec.batch,
                answer_s=answer.value_s,
                whole_s=replica.batch_s.value_s,
            )
        if rows > replica.rule.max_rows:  # another replica of the service may have larger batches
            return math.inf
        others_s = sum(
            math.ceil(_rows_due(r, due_at) / r.rule.max_rows) * r.batch_s.value_s
            for r in self._replicas().values()
            if r is not replica and not r.generates
        )
        return batch_finish_at(
            now=now,
            busy_until=self._busy_until(now),
            rows_ahead=_rows_due(replica, due_at),
            rows=rows,
            max_rows=replica.rule.max_rows,
            batch_s=replica.batch_s.value_s,
            others_s=others_s,
        )

    def _busy_until(self, now: float) -> float:
        """When the batches at the worker will have ended."""
        until = now
        for flight in self._flights.values():
            if not flight.replica.generates:
                began_at = max(until, flight.started_at) if until > now else flight.started_at
                until = max(now, began_at + flight.replica.batch_s.value_s)
        return until

    def queued(self, replica: Replica) -> int:
        """Requests that wait or run."""
        return len(replica.queue) + sum(len(f.jobs) for f in self._flights.values() if f.replica is replica)

    def pump(self) -> None:
        """Send whatever may leave now, and set the timer for what may leave later."""
        for handle in (self._timer, self._turn):
            if handle is not None:
                handle.cancel()
        self._timer = self._turn = None
        if self._link is None:
            return
        now = self._loop.time()
        wake_at = math.inf
        batching: list[Replica] = []
        busy_until = self._busy_until(now)
        for replica in self._replicas().values():
            too_late = now if replica.generates else busy_until + replica.batch_s.seen_s
            for job in [j for j in replica.queue if j.due_at <= too_late]:
                replica.queue.remove(job)
                if not job.answer.done():
                    job.answer.set_exception(TooLate(f"{job.service}: queued until it could not be on time any more"))
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
            if best is None or (at_worker and not self._may_go_ahead(best[1], batching)):
                break
            _, replica, jobs = best
            gone = {j.id for j in jobs}
            replica.queue = [j for j in replica.queue if j.id not in gone]
            self._send(replica, jobs, now)
        wake_at = min([wake_at, *(j.due_at - r.batch_s.seen_s for r in batching for j in r.queue)])
        if wake_at < math.inf:
            self._timer = self._loop.call_at(wake_at, self.pump)
        if not self._flights and not any(r.queue for r in self._replicas().values()):
            self.quiet.set()
        self._moved()

    @staticmethod
    def _may_go_ahead(replica: Replica, batching: Sequence[Replica]) -> bool:
        others = (r.spec.deadline_ms / 1000.0 for r in batching if r is not replica)
        return may_go_ahead(batch_s=replica.batch_s.value_s, deadlines_s=others)

    def _num_batches(self) -> int:
        return sum(1 for f in self._flights.values() if not f.replica.generates)

    def _send(self, replica: Replica, jobs: tuple[Job, ...], now: float) -> None:
        if self._link is None:
            return
        infer_id = str(next(self._infer_ids))
        self._flights[infer_id] = Flight(replica, jobs, now)
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

    def _land(self, infer_id: str) -> Flight | None:
        flight = self._flights.pop(infer_id, None)
        if flight is not None and flight.replica.generates:
            flight.replica.generating -= 1
        return flight

    def on_token(self, fields: Mapping[str, Any]) -> None:
        flight = self._flights.get(str(fields["id"]))
        if flight is None:
            return  # cancelled meanwhile
        job = flight.jobs[0]
        flight.num_tokens += 1
        if flight.first_token_at == math.inf:
            flight.first_token_at = self._loop.time()
            flight.replica.first_s.observe(flight.first_token_at - flight.started_at)
            flight.replica.meter.first_token_s.observe(flight.first_token_at - job.queued_at)
        if job.on_token is not None:
            job.on_token(
                Token(
                    index=int(fields["index"]),
                    token=int(fields["token"]),
                    text=str(fields["text"]),
                    done=bool(fields["done"]),
                    finish_reason=str(fields.get("finish_reason") or ""),
                    usage=_usage(fields),
                )
            )

    def on_result(self, fields: Mapping[str, Any], tensors: Any) -> None:
        flight = self._land(str(fields["id"]))
        if flight is None:
            return  # cancelled meanwhile
        replica, now = flight.replica, self._loop.time()
        replica.batch_s.observe(now - flight.started_at)
        replica.observed_at = now
        device_s = float(fields["batch_ms"]) / 1000.0
        # Generations share their steps; a slot's part of the time is what this one cost.
        device_s = device_s / replica.spec.batch if replica.generates else device_s
        replica.busy_s += device_s
        self.busy_s += device_s
        replica.batches_done += 1
        _measure(flight, now, device_ms=float(fields["batch_ms"]))
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
                params = _usage(verdict)
                reason = {"finish_reason": str(verdict["finish_reason"])} if verdict.get("finish_reason") else {}
                made = Answer(tensors=_as_tensors(outputs), server=self._server, params={**params, **reason})
                job.answer.set_result(made)


def _measure(flight: Flight, now: float, *, device_ms: float) -> None:
    """A batch or a generation has ended: into its replica's histograms."""
    replica, meter = flight.replica, flight.replica.meter
    service_s = now - flight.started_at
    rows = 0
    for job in flight.jobs:
        rows += job.rows
        meter.queue_s.observe(flight.started_at - job.queued_at)
        meter.service_s.observe(service_s)
    if replica.generates:
        meter.batch_rows.observe(min(replica.generating + 1, replica.spec.batch))
        if flight.num_tokens > 1:
            meter.per_token_s.observe((now - flight.first_token_at) / (flight.num_tokens - 1))
    else:
        meter.batch_rows.observe(rows)
        meter.batch(rows, device_ms=device_ms)


def _rows_due(replica: Replica, due_at: float) -> int:
    return sum(j.rows for j in replica.queue if j.due_at <= due_at)


def _usage(said: Mapping[str, Any]) -> dict[str, int]:
    """Token counts as a worker tells them; none where it tells none."""
    return {str(k): int(v) for k, v in (said.get("usage") or {}).items()}


def _as_tensors(run: Any) -> tuple[Tensor, ...]:
    return tuple(run)


def _fail(job: Job, refusal: BadRequest | Broken) -> None:
    if not job.answer.done():
        job.answer.set_exception(refusal)
