"""Rank 0's loop: read what the agent asks, give every tenant its turn, answer.

Turns go round robin between the queue of one-pass batches (first come, first served: the agent has already put
them in order of deadline) and each generating tenant's next iteration. A turn is one batch or one iteration, so
nobody waits for more than one piece of every other tenant: the rule by which the planner prices sharing.
"""

from __future__ import annotations

import statistics
import threading
import time
import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from epara_executors.runners.arrays import from_array, to_array
from epara_executors.runners.contract import Answer, LoadError, Request, RequestError
from epara_executors.worker.engine import Emitted
from epara_executors.worker.frames import Frame, Tensor
from epara_executors.worker.hosting import Host, Hosted, Tenant, run_steps
from epara_executors.worker.inbox import Inbox
from epara_executors.worker.wire import Wire


class Loop:
    """One worker's life between `load` and `stop`."""

    def __init__(self, wire: Wire, host: Host, *, loads_beside: bool) -> None:
        """`loads_beside`: later loads run in a thread while tenants serve; not where other ranks take part."""
        self._wire = wire
        self._host = host
        self._loads_beside = loads_beside
        self._inbox = Inbox(wire)
        self._hosted: dict[str, Hosted] = {}
        self._batches: deque[Frame] = deque()
        self._turns: deque[str] = deque([""])  # "" stands for the queue of batches
        self._stopping = False
        self._loading = 0

    def run(self) -> None:
        """Serve until told to stop. The end of the socket ends the process at once, mid-batch if need be."""
        self._inbox.watch()
        while not (self._stopping and self._idle and not self._loading):
            for item in self._inbox.take(block=self._idle):
                if isinstance(item, Frame):
                    self._take(item)
                else:
                    item()
            self._turn()

    @property
    def _idle(self) -> bool:
        return not self._batches and all(h.engine is None or h.engine.idle for h in self._hosted.values())

    def _take(self, frame: Frame) -> None:
        match frame.type:
            case "load":
                self._load(frame.fields)
            case "infer":
                self._infer(frame)
            case "cancel":
                hosted = self._hosted.get(str(frame.fields["replica"]))
                if hosted is not None and hosted.engine is not None:
                    hosted.engine.cancel(str(frame.fields["id"]))
            case "tune":
                hosted = self._hosted.get(str(frame.fields["replica"]))
                if hosted is not None:
                    self._host.tune(hosted, int(frame.fields["batch"]), int(frame.fields.get("frames", 1)))
            case "measure":
                self._measure(frame.fields)
            case "stop":
                self._stopping = True
            case _:
                raise ValueError(f"frame {frame.type}: expected load, infer, cancel, tune, measure or stop")

    # Loading ----------------------------------------------------------------------------------------------------

    def _load(self, fields: Mapping[str, Any]) -> None:
        """Host exactly the tenants listed: new ones are loaded, others tuned, those not listed are dropped."""
        wanted = {t.replica: t for t in map(Tenant.from_fields, fields["tenants"])}
        for replica in [r for r in self._hosted if r not in wanted]:
            self._drop(replica)
        fresh: list[Tenant] = []
        for replica, tenant in wanted.items():
            held = self._hosted.get(replica)
            if held is not None and (held.tenant.source, held.tenant.task) == (tenant.source, tenant.task):
                self._host.tune(held, tenant.batch, tenant.frames)
                self._wire.write(held.loaded())
            else:
                fresh.append(tenant)
        held = bool(self._hosted)  # then nobody's load may cost the others their lives
        if self._loads_beside and held and fresh:
            self._loading += 1
            threading.Thread(target=self._load_beside, args=(fresh,), name="load", daemon=True).start()
            return
        for tenant in fresh:
            try:
                self._enter(self._host.host(tenant))
            except LoadError as error:
                if not held:
                    raise
                self._host.close(tenant.replica)
                self._refuse(tenant.replica, str(error))
        self._wire.write(Frame("ready"))

    def _load_beside(self, tenants: Sequence[Tenant]) -> None:
        for tenant in tenants:
            try:
                hosted = self._host.host(tenant)
            except Exception as error:
                detail = explained(error)
                self._inbox.call(lambda replica=tenant.replica, detail=detail: self._refuse(replica, detail))
            else:
                self._inbox.call(lambda hosted=hosted: self._enter(hosted))
        self._inbox.call(self._loaded_beside)

    def _refuse(self, replica: str, detail: str) -> None:
        self._wire.write(Frame("refused", {"replica": replica, "detail": detail}))

    def _loaded_beside(self) -> None:
        self._loading -= 1
        self._wire.write(Frame("ready"))

    def _enter(self, hosted: Hosted) -> None:
        replica = hosted.tenant.replica
        if replica in self._hosted:
            self._drop(replica)
        self._hosted[replica] = hosted
        if hosted.engine is not None:
            self._turns.append(replica)
        self._wire.write(hosted.loaded())

    def _drop(self, replica: str) -> None:
        hosted = self._hosted.pop(replica)
        if hosted.engine is not None:
            self._turns.remove(replica)
            while hosted.engine.in_flight:  # what other stages hold must be taken from them
                hosted.engine.step()
            for sequence in hosted.engine.scheduler.drain():
                answer = Answer(sequence.request, code="INTERNAL", message=f"{replica} was unloaded")
                self._answer(sequence.key, replica, [answer], sequence.arrived_at)
        self._host.close(replica)

    # Work -------------------------------------------------------------------------------------------------------

    def _infer(self, frame: Frame) -> None:
        replica = str(frame.fields["replica"])
        hosted = self._hosted.get(replica)
        if hosted is None:
            message = f"{replica}: expected a replica of this group ({', '.join(self._hosted)})"
            answers = [Answer(str(r["id"]), code="INTERNAL", message=message) for r in frame.fields["requests"]]
            self._answer(str(frame.fields["id"]), replica, answers, time.perf_counter())
        elif hosted.engine is None:
            self._batches.append(frame)
        else:
            self._start_sequences(frame, hosted)

    def _start_sequences(self, frame: Frame, hosted: Hosted) -> None:
        requests = _requests(frame)
        key = str(frame.fields["id"])
        try:
            if len(requests) != 1:
                raise RequestError(f"requests: expected one generation per infer, got {len(requests)}")
            if isinstance(requests[0], Answer):
                raise RequestError(requests[0].message)
            if hosted.generation is not None and hosted.engine is not None:
                hosted.engine.add(hosted.generation.sequence(key, requests[0]))
        except RequestError as error:
            answers = [Answer(r.id, code="INVALID_ARGUMENT", message=str(error)) for r in requests]
            self._answer(key, hosted.tenant.replica, answers, time.perf_counter())

    def _turn(self) -> None:
        """One piece of work of the next tenant in turn that has any."""
        for _ in range(len(self._turns)):
            name = self._turns[0]
            self._turns.rotate(-1)
            if name == "" and self._batches:
                self._run_batch(self._batches.popleft())
                return
            if name and (engine := self._hosted[name].engine) is not None and not engine.idle:
                self._step(self._hosted[name])
                return

    def _run_batch(self, frame: Frame) -> None:
        started_at = time.perf_counter()
        replica = str(frame.fields["replica"])
        hosted = self._hosted.get(replica)
        requests = _requests(frame)
        if hosted is None or hosted.one_pass is None:
            answers = [Answer(r.id, code="INTERNAL", message=f"{replica} was unloaded") for r in requests]
        else:
            valid = [r for r in requests if isinstance(r, Request)]
            made = iter(hosted.one_pass.run(valid))
            answers = [r if isinstance(r, Answer) else next(made) for r in requests]
        self._answer(str(frame.fields["id"]), replica, answers, started_at)

    def _step(self, hosted: Hosted) -> None:
        engine, runner, replica = hosted.engine, hosted.generation, hosted.tenant.replica
        if engine is None or runner is None:
            return
        try:
            emitted = engine.step()
        except Exception as error:
            if runner.part.ranks.world > 1:
                raise  # ranks may no longer agree on what comes next
            traceback.print_exc()
            runner.forget()
            for sequence in engine.scheduler.drain():
                answer = Answer(sequence.request, code="INTERNAL", message=explained(error))
                self._answer(sequence.key, replica, [answer], sequence.arrived_at)
            return
        for item in emitted:
            if item.sequence.stream:
                self._wire.write(_token(replica, item))
            if item.done:
                answer = runner.answer(item.sequence)
                reason = {"finish_reason": item.sequence.finish_reason}
                self._answer(item.sequence.key, replica, [answer], item.sequence.arrived_at, reason)

    def _measure(self, fields: Mapping[str, Any]) -> None:
        """For the profiler, on a worker of its own: milliseconds of repeated batches or steps."""
        hosted = self._hosted[str(fields["replica"])]
        rows, repeats = int(fields["rows"]), int(fields["repeats"])
        samples: list[float] = []
        for _ in range(repeats):
            if hosted.generation is not None:
                samples.append(run_steps(hosted.generation, rows, int(fields["width"]), int(fields["start"])))
            elif hosted.one_pass is not None:
                example = hosted.one_pass.example(rows)
                started_at = time.perf_counter()
                hosted.one_pass.run([example])
                samples.append(time.perf_counter() - started_at)
        self._wire.write(Frame("measured", {"median_ms": 1000 * statistics.median(samples)}))

    def _answer(
        self,
        key: str,
        replica: str,
        answers: Sequence[Answer],
        started_at: float,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        heads: list[dict[str, Any]] = []
        tensors: list[Tensor] = []
        counts: list[int] = []
        for answer in answers:
            if answer.code:
                counts.append(0)
                heads.append({"id": answer.id, "ok": False, "code": answer.code, "message": answer.message})
                continue
            made = [from_array(name, array) for name, array in answer.outputs.items()]
            usage = {"usage": dict(answer.usage)} if answer.usage else {}
            heads.append({"id": answer.id, "ok": True, "tensors": len(made), **usage, **(more or {})})
            counts.append(len(made))
            tensors += made
        batch_ms = 1000 * (time.perf_counter() - started_at)
        fields = {"id": key, "replica": replica, "batch_ms": batch_ms, "requests": heads, "counts": counts}
        self._wire.write(Frame("result", fields, tensors))


def explained(error: Exception) -> str:
    """An error of ours as it is; any other with its type."""
    return str(error) if isinstance(error, (LoadError, RequestError)) else f"{type(error).__name__}: {error}"


def _token(replica: str, item: Emitted) -> Frame:
    sequence = item.sequence
    return Frame(
        "token",
        {
            "replica": replica,
            "id": sequence.key,
            "index": len(sequence.tokens) - 1,
            "token": item.token,
            "text": item.text,
            "done": item.done,
            "finish_reason": sequence.finish_reason,
            "usage": sequence.usage if item.done else {},
        },
    )


def _requests(frame: Frame) -> list[Request | Answer]:
    """The frame's requests with their arrays; an Answer in place of one whose tensors cannot be read."""
    described: Sequence[Mapping[str, Any]] = frame.fields["requests"]
    counts: Sequence[int] = frame.fields["counts"]
    found: list[Request | Answer] = []
    start = 0
    for head, count in zip(described, counts, strict=True):
        mine = frame.tensors[start : start + count]
        start += count
        key = str(head["id"])
        try:
            inputs = {t.name: to_array(t) for t in mine}
        except ValueError as error:
            found.append(Answer(key, code="INVALID_ARGUMENT", message=str(error)))
            continue
        found.append(Request(key, inputs, head.get("params") or {}, tuple(head.get("outputs") or ())))
    return found
