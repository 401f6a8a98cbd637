"""An open-loop load generator over the Open Inference Protocol: it sends when its schedule says, answered or not.

Closed loops hide overload (a slow server is asked less). Everything is bounded: schedules are finite and seeded,
requests in flight are capped, and every call has a client deadline of `timeout_factor` x its objective, so that
nothing hangs. What is measured is what a client sees: from the scheduled instant to the answer, the time this
generator itself was late included.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import grpc
import numpy as np

from epara_executors.channel import DEFAULT, ChannelSettings
from epara_executors.infer_client import AsyncInferClient, InferError, ModelSpec, Scalar, request_of
from epara_executors.load_inputs import random_inputs
from epara_executors.load_report import OUTCOMES, LoadReport, RequestRecord
from epara_executors.load_spec import LoadSpec
from epara_opt.errors import EparaError, ExecutorUnreachable, InputError, Violation

VARIANTS = 4  # different inputs per spec, made once
DESCRIBE_TIMEOUT_S = 5.0
HOME_AGAIN_S = 2.0  # how often clients that failed over try their own server again
GONE = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.CANCELLED})


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadProgress:
    elapsed_s: float
    sent: int
    done: int
    outcomes: Mapping[str, int]


class _Clients:
    """One channel per address, shared by all specs; descriptions of models fetched once."""

    def __init__(self, settings: ChannelSettings) -> None:
        self._settings = settings
        self._open: dict[str, AsyncInferClient] = {}
        self._models: dict[str, ModelSpec] = {}

    def at(self, address: str) -> AsyncInferClient:
        if address not in self._open:
            self._open[address] = AsyncInferClient(address, settings=self._settings)
        return self._open[address]

    async def describe(self, spec: LoadSpec) -> ModelSpec:
        """The model's inputs, from the first executor that knows them."""
        why = ""
        for address in (spec.address, *spec.failover):
            if spec.service in self._models:
                break
            try:
                self._models[spec.service] = await self.at(address).metadata(spec.service, timeout_s=DESCRIBE_TIMEOUT_S)
            except InferError as e:
                why = why or str(e)
        if spec.service not in self._models:
            raise ExecutorUnreachable(spec.origin, f"{spec.address} describes no {spec.service}: {why}")
        return self._models[spec.service]

    async def close(self) -> None:
        for client in self._open.values():
            await client.close()


class _Population:
    """The clients of one spec. Those whose executor is gone go to the next one, and look back now and then."""

    def __init__(self, spec: LoadSpec, clients: _Clients, inputs: Sequence[Mapping[str, Any]]) -> None:
        self.spec = spec
        self._clients = clients
        self._inputs = inputs
        self._addresses = (spec.address, *spec.failover)
        self._at = 0  # index of the address in use
        self._home_failed_at = 0.0

    async def send(self, index: int, stream: str, frame: int, *, due_at: float, timeout_s: float) -> tuple[str, str]:
        """(outcome, detail) of one request that was due at `due_at` (monotonic)."""
        params: dict[str, Scalar] = {"max_tokens": self.spec.output_tokens} if self.spec.output_tokens else {}
        if stream:
            params |= {"stream": stream, "frame": frame}
        request = request_of(self.spec.service, self._inputs[index % len(self._inputs)], params=params)
        detail = ""
        for position in self._order():
            left_s = due_at + timeout_s - time.monotonic()
            if left_s <= 0:
                return "timeout", detail or "no time left"
            try:
                await self._clients.at(self._addresses[position]).send(request, timeout_s=left_s)
            except InferError as e:
                detail = str(e)
                if e.status in GONE:
                    if position == 0:
                        self._home_failed_at = time.monotonic()
                    continue
                if e.status is grpc.StatusCode.RESOURCE_EXHAUSTED:
                    return "shed", detail
                return ("timeout" if e.status is grpc.StatusCode.DEADLINE_EXCEEDED else "failed"), detail
            self._at = position
            late = (time.monotonic() - due_at) * 1000.0 > self.spec.deadline_ms
            return ("late" if late else "on_time"), ""
        return "failed", detail

    def _order(self) -> list[int]:
        """Addresses to try: home when it may be back, then the one in use, then the others in order."""
        home_due = time.monotonic() - self._home_failed_at >= HOME_AGAIN_S
        order = [0] if home_due or self._at == 0 else []
        order += [self._at, *range(1, len(self._addresses)), 0]
        return list(dict.fromkeys(order))


class LoadGenerator:
    """Runs specs against executors. `run` awaits; `LoadRun` does the same on a thread, for callers that block."""

    def __init__(
        self,
        specs: Iterable[LoadSpec],
        *,
        duration_s: float,
        seed: int = 0,
        max_requests: int = 100_000,
        max_in_flight: int = 1_000,
        timeout_factor: float = 3.0,
        settings: ChannelSettings = DEFAULT,
        on_progress: Callable[[LoadProgress], None] | None = None,
        progress_every_s: float = 1.0,
    ) -> None:
        """max_requests: schedules are cut there, in order of time. timeout_factor: client deadline / objective."""
        self._specs = tuple(specs)
        self._duration_s = duration_s
        self._seed = seed
        self._max_requests = max_requests
        self._max_in_flight = max_in_flight
        self._timeout_factor = timeout_factor
        self._settings = settings
        self._on_progress = on_progress
        self._progress_every_s = progress_every_s
        self._records: list[RequestRecord] = []
        self._sent = 0
        self._stop = asyncio.Event()
        if not self._specs or not duration_s > 0:
            law, value = "expected at least one spec and a duration > 0", f"{len(self._specs)} specs, {duration_s} s"
            raise InputError(Violation(path="load", law=law, value=value))

    def stop(self) -> None:
        """Send nothing more; what is in flight is awaited. Call it from the loop's own thread."""
        self._stop.set()

    def schedule(self) -> list[tuple[float, int, str, int]]:
        """(instant, index of the spec, stream, frame) of every request of the run. The same seed, the same list."""
        streams = np.random.default_rng(self._seed).spawn(len(self._specs))
        merged = sorted(
            (at, i, stream, frame)
            for i, (spec, rng) in enumerate(zip(self._specs, streams, strict=True))
            for at, stream, frame in spec.schedule(self._duration_s, rng)
        )
        return merged[: self._max_requests]

    async def run(self) -> LoadReport:
        """Raises ExecutorUnreachable if a service cannot be described anywhere before the load begins."""
        clients = _Clients(self._settings)
        try:
            populations = [await self._population(i, spec, clients) for i, spec in enumerate(self._specs)]
            return await self._send_all(populations)
        finally:
            await clients.close()

    async def _population(self, i: int, spec: LoadSpec, clients: _Clients) -> _Population:
        model = await clients.describe(spec)
        rng = np.random.default_rng([self._seed, i])
        inputs = [random_inputs(model, rng, prompt_tokens=spec.prompt_tokens) for _ in range(VARIANTS)]
        return _Population(spec, clients, inputs)

    async def _send_all(self, populations: Sequence[_Population]) -> LoadReport:
        started_at, began = time.time(), time.monotonic()
        in_flight: set[asyncio.Task[None]] = set()
        watch = asyncio.create_task(self._report(began))
        try:
            for n, (at, i, stream, frame) in enumerate(self.schedule()):
                if await self._wait_until(began + at):
                    break
                self._sent += 1
                spec = self._specs[i]
                if len(in_flight) >= self._max_in_flight:
                    self._note(spec, at, 0.0, "failed", f"generator: {self._max_in_flight} requests in flight")
                    continue
                task = asyncio.create_task(self._one(populations[i], n, at, stream, frame, began))
                in_flight.add(task)
                task.add_done_callback(in_flight.discard)
            else:
                await self._wait_until(began + self._duration_s)
            duration_s = min(self._duration_s, time.monotonic() - began)
            await asyncio.gather(*in_flight)
        except BaseException:
            for task in in_flight:
                task.cancel()
            await asyncio.gather(*in_flight, return_exceptions=True)
            raise
        finally:
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watch
        self._tell(began)
        records = tuple(sorted(self._records, key=lambda r: (r.sent_at, r.service, r.origin)))
        return LoadReport(started_at=started_at, duration_s=duration_s, records=records)

    async def _wait_until(self, at: float) -> bool:
        """Until a monotonic instant; True when stopped before."""
        delay_s = at - time.monotonic()
        if delay_s <= 0:
            await asyncio.sleep(0)
            return self._stop.is_set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), delay_s)
        return self._stop.is_set()

    async def _one(self, clients: _Population, n: int, at: float, stream: str, frame: int, began: float) -> None:
        due_at = began + at
        timeout_s = clients.spec.deadline_ms * self._timeout_factor / 1000.0
        outcome, detail = await clients.send(n, stream, frame, due_at=due_at, timeout_s=timeout_s)
        self._note(clients.spec, at, (time.monotonic() - due_at) * 1000.0, outcome, detail)

    def _note(self, spec: LoadSpec, at: float, latency_ms: float, outcome: str, detail: str) -> None:
        self._records.append(
            RequestRecord(
                service=spec.service,
                origin=spec.origin,
                sent_at=at,
                latency_ms=latency_ms,
                outcome=outcome,
                detail=detail,
            )
        )

    async def _report(self, began: float) -> None:
        while self._on_progress is not None:
            await asyncio.sleep(self._progress_every_s)
            self._tell(began)

    def _tell(self, began: float) -> None:
        if self._on_progress is not None:
            counts: dict[str, int] = dict.fromkeys(OUTCOMES, 0)
            for r in self._records:
                counts[r.outcome] += 1
            self._on_progress(
                LoadProgress(
                    elapsed_s=time.monotonic() - began, sent=self._sent, done=len(self._records), outcomes=counts
                )
            )


class LoadRun:
    """A load on a thread of its own: start, look, stop, take the result."""

    def __init__(self, generator: LoadGenerator) -> None:
        self._generator = generator
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        self._result: LoadReport | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name="load", daemon=True)

    def start(self) -> LoadRun:
        self._thread.start()
        self._ready.wait()
        return self

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def join(self, timeout_s: float) -> None:
        """Let up to timeout_s pass while it runs."""
        self._thread.join(max(0.0, timeout_s))

    def stop(self) -> None:
        """Send nothing more. Returns at once; `result` waits for what is in flight."""
        if self._loop is not None and self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # the loop ended between the question and the call
                self._loop.call_soon_threadsafe(self._generator.stop)

    def result(self, *, timeout_s: float | None = None) -> LoadReport:
        """The report, or whatever ended the load. Raises EparaError when it is still running after timeout_s."""
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise EparaError(f"load: expected an end within {timeout_s} s")
        if self._error is not None:
            raise self._error
        return cast("LoadReport", self._result)

    def _main(self) -> None:
        async def main() -> LoadReport:
            self._loop = asyncio.get_running_loop()
            self._ready.set()
            return await self._generator.run()

        try:
            self._result = asyncio.run(main())
        except BaseException as e:
            self._error = e
        finally:
            self._ready.set()
