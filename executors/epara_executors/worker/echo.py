"""A worker without a model: it answers its input after a set time. For tests, and for measuring everything around it.

Speaks the whole frame protocol. What it does is set by a tenant's `source`, a URL query, e.g.
`echo?latency_ms=5&per_row_ms=1&width=4`:

    latency_ms     a batch takes this long, plus per_row_ms for each row; one step of a generation takes this long
    per_row_ms
    width          input `x` is FP32 [-1, width]; output `y` equals it
    load_ms        loading takes this long
    fail_load      a text: loading fails with it
    crash_load     not 0: loading it beside others ends the process with status 70
    refuse_above   a request with a larger element is answered INVALID_ARGUMENT
    crash_above    a larger element ends the process with status 70, without a word
    hang_above     a larger element is never answered

Generation (task text-generation) takes `text`, or the last of `messages`, and answers its words, repeated, one token
each.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np

from epara_executors.tensors import from_array, to_array
from epara_executors.worker.frames import Frame, Splitter, Tensor, encode

CRASH_STATUS = 70
MEMORY_BYTES = 2**20
DEFAULT_MAX_TOKENS = 16


@dataclass(slots=True, kw_only=True)
class _Tenant:
    replica: str
    generates: bool
    batch: int
    latency_ms: float = 0.0
    per_row_ms: float = 0.0
    load_ms: float = 0.0
    width: int = 4
    fail_load: str = ""
    crash_load: float = 0.0
    refuse_above: float = np.inf
    crash_above: float = np.inf
    hang_above: float = np.inf
    slots: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self.slots = asyncio.Semaphore(self.batch)

    @staticmethod
    def from_fields(tenant: Mapping[str, Any]) -> _Tenant:
        settings = dict(parse_qsl(urlsplit(str(tenant["source"])).query))
        numbers = {k: float(v) for k, v in settings.items() if k not in ("fail_load", "width")}
        return _Tenant(
            replica=str(tenant["replica"]),
            generates=tenant["task"] == "text-generation",
            batch=int(tenant["batch"]),
            width=int(settings.get("width", "4")),
            fail_load=settings.get("fail_load", ""),
            **numbers,
        )

    def loaded(self, load_s: float) -> Frame:
        if self.generates:
            inputs: list[Any] = [["text", "BYTES", [1]], ["messages", "BYTES", [1]]]
            outputs: list[Any] = [["text", "BYTES", [1]], ["tokens", "INT64", [-1]]]
        else:
            inputs, outputs = [["x", "FP32", [-1, self.width]]], [["y", "FP32", [-1, self.width]]]
        fields = {"replica": self.replica, "memory_bytes": MEMORY_BYTES, "load_s": load_s}
        return Frame("loaded", {**fields, "inputs": inputs, "outputs": outputs})


class EchoWorker:
    """One process's conversation with its agent."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._tenants: dict[str, _Tenant] = {}
        self._batches: asyncio.Queue[Frame] = asyncio.Queue()
        self._generations: dict[str, asyncio.Task[None]] = {}
        self._loads: list[asyncio.Task[None]] = []

    async def serve(self) -> int:
        """Until told to stop, or the agent is gone. Returns the exit status."""
        running = asyncio.create_task(self._run_batches())
        try:
            async for frame in self._frames():
                if frame.type == "load":
                    if self._tenants:
                        self._loads.append(asyncio.create_task(self._load_beside(frame.fields)))
                    elif not await self._load(frame.fields):
                        return 1
                elif frame.type == "infer":
                    self._take(frame)
                elif frame.type == "cancel":
                    task = self._generations.pop(str(frame.fields["id"]), None)
                    if task is not None:
                        task.cancel()
                elif frame.type == "tune":
                    self._tenants[str(frame.fields["replica"])].batch = int(frame.fields["batch"])
                elif frame.type == "stop":
                    await self._batches.join()
                    await asyncio.gather(*self._generations.values(), return_exceptions=True)
                    await self._writer.drain()
                    return 0
            return 0  # the agent left: so do we
        except ConnectionError:
            return 0
        finally:
            running.cancel()

    async def _frames(self) -> AsyncIterator[Frame]:
        splitter = Splitter()
        while data := await self._reader.read(2**18):
            for frame in splitter.feed(data):
                yield frame

    def _send(self, frame: Frame) -> None:
        self._writer.write(encode(frame))

    async def _load(self, fields: Mapping[str, Any]) -> bool:
        for raw in fields["tenants"]:
            started_at = time.monotonic()
            tenant = _Tenant.from_fields(raw)
            await asyncio.sleep(tenant.load_ms / 1000.0)
            if tenant.fail_load:
                self._send(Frame("failed", {"detail": tenant.fail_load}))
                await self._writer.drain()
                return False
            self._tenants[tenant.replica] = tenant
            self._send(tenant.loaded(time.monotonic() - started_at))
        self._send(Frame("ready"))
        return True

    async def _load_beside(self, fields: Mapping[str, Any]) -> None:
        wanted = {str(t["replica"]): t for t in fields["tenants"]}
        self._tenants = {n: t for n, t in self._tenants.items() if n in wanted}
        for name, raw in wanted.items():
            started_at = time.monotonic()
            tenant = self._tenants.get(name) or _Tenant.from_fields(raw)
            if name not in self._tenants:
                await asyncio.sleep(tenant.load_ms / 1000.0)
            tenant.batch = int(raw["batch"])
            if tenant.fail_load:
                self._send(Frame("refused", {"replica": name, "detail": tenant.fail_load}))
                continue
            if tenant.crash_load:
                os._exit(CRASH_STATUS)
            self._tenants[name] = tenant
            self._send(tenant.loaded(time.monotonic() - started_at))
        self._send(Frame("ready"))

    def _take(self, frame: Frame) -> None:
        tenant = self._tenants[str(frame.fields["replica"])]
        if not tenant.generates:
            self._batches.put_nowait(frame)
            return
        name = str(frame.fields["id"])
        task = asyncio.create_task(self._generate(tenant, frame))
        self._generations[name] = task
        task.add_done_callback(lambda _: self._generations.pop(name, None))

    async def _run_batches(self) -> None:
        while True:
            frame = await self._batches.get()
            tenant = self._tenants[str(frame.fields["replica"])]
            requests = frame.fields["requests"]
            started_at = time.monotonic()
            rows = sum(int(r["rows"]) for r in requests)
            await asyncio.sleep((tenant.latency_ms + tenant.per_row_ms * rows) / 1000.0)
            verdicts: list[dict[str, Any]] = []
            outputs: list[Tensor] = []
            for request, tensor in zip(requests, frame.tensors, strict=True):
                largest = float(to_array(tensor).max())
                if largest > tenant.crash_above:
                    os._exit(CRASH_STATUS)
                if largest > tenant.hang_above:
                    await asyncio.Event().wait()
                if largest > tenant.refuse_above:
                    law = f"expected elements <= {tenant.refuse_above:g}, got {largest:g}"
                    refused = {"ok": False, "code": "INVALID_ARGUMENT", "message": law}
                    verdicts.append({"id": request["id"], **refused})
                    continue
                verdicts.append({"id": request["id"], "ok": True, "tensors": 1})
                outputs.append(Tensor("y", tensor.datatype, tensor.shape, tensor.data))
            batch_ms = 1000.0 * (time.monotonic() - started_at)
            said = {"id": frame.fields["id"], "replica": tenant.replica, "batch_ms": batch_ms, "requests": verdicts}
            self._send(Frame("result", said, outputs))
            self._batches.task_done()

    async def _generate(self, tenant: _Tenant, frame: Frame) -> None:
        request = frame.fields["requests"][0]
        params = request["params"]
        text = bytes(to_array(frame.tensors[0])[0]).decode()
        if frame.tensors[0].name == "messages":
            text = str(json.loads(text)[-1]["content"])
        words: Sequence[str] = text.split() or [""]
        num_tokens = int(params.get("max_tokens", DEFAULT_MAX_TOKENS))
        name = {"id": frame.fields["id"], "replica": tenant.replica}
        started_at = time.monotonic()
        said: list[str] = []
        usage = {"prompt_tokens": len(words), "completion_tokens": num_tokens}
        async with tenant.slots:
            for index in range(num_tokens):
                await asyncio.sleep(tenant.latency_ms / 1000.0)
                said.append(words[index % len(words)])
                if params.get("stream"):
                    done = index + 1 == num_tokens
                    token = {"index": index, "token": index % len(words), "text": said[-1] + " ", "done": done}
                    end = {"finish_reason": "length", "usage": usage} if done else {}
                    self._send(Frame("token", {**name, **token, **end}))
        answer = from_array("text", np.array([" ".join(said).encode()], dtype=np.object_))
        tokens = from_array("tokens", np.arange(num_tokens, dtype=np.int64) % len(words))
        verdict = {"id": request["id"], "ok": True, "tensors": 2, "usage": usage, "finish_reason": "length"}
        batch_ms = 1000.0 * (time.monotonic() - started_at)
        self._send(Frame("result", {**name, "batch_ms": batch_ms, "requests": [verdict]}, [answer, tokens]))


async def _main(socket_path: str) -> int:
    if not socket_path:
        sys.stdin.read()
        return 0
    reader, writer = await asyncio.open_unix_connection(socket_path, limit=2**22)
    return await EchoWorker(reader, writer).serve()


if __name__ == "__main__":
    os._exit(asyncio.run(_main(sys.argv[1])))
