"""Load that does not wait for answers, in a process of its own, and what became of every request.

Orders are JSON lines on stdin, {seconds, seed, flows}; each is answered by a JSON line on stdout with one column per
field of `outcomes.Outcome` and `lag_ms`, how late the event loop of this process came to what was due (a sample every
LAG_EVERY_S). A line `null` ends a load before its seconds are over. Instants are of the system's monotonic clock,
which other processes share.

A flow calls `address` with `request` (a ModelInferRequest, base64) either at `rate_per_s`, at instants drawn
beforehand (`arrivals`: "poisson", given their number; or "even"), or with `callers` that call again when they are
answered (REFUSED_WAIT_S later where that was a refusal). `params` are added to the request; with `by_arrival` its
priority is its number in order of arrival, over all flows. With `failover` a call that ends UNAVAILABLE is made once
more, there, and has a second outcome.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import itertools
import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import numpy as np
from epara_executors.infer_client import request_of
from epara_executors.rpc import open_inference_pb2 as oip
from outcomes import FIELDS

LAG_EVERY_S = 0.005
REFUSED_WAIT_S = 0.02
MAX_DETAIL = 200
METHOD = "/inference.GRPCInferenceService/ModelInfer"
OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 200),
)


def arrivals(flow: dict[str, Any], seconds: float, rng: np.random.Generator) -> np.ndarray:
    """Instants from 0 on, ascending: rate x seconds of them, so that rounds of one rate offer the same.

    Shape: (N,). Uniform instants, sorted, are a Poisson process given how many there are.
    """
    number = round(flow["rate_per_s"] * seconds)
    if flow.get("arrivals", "poisson") == "even":
        return np.arange(number) / flow["rate_per_s"]
    return np.sort(rng.random(number)) * seconds


class Load:
    """One order's calls and their outcomes."""

    def __init__(self, order: dict[str, Any], channels: dict[str, grpc.aio.Channel]) -> None:
        self._order = order
        self._calls = {a: channel.unary_unary(METHOD) for a, channel in channels.items()}  # bytes to bytes
        self._bodies = [self._body(f) for f in order["flows"]]
        self._numbers = itertools.count(1)
        self._sizes: dict[int, int] = {}  # of a flow's first answer; all of them are as long
        self.outcomes: dict[str, list[Any]] = {name: [] for name in FIELDS}
        self.lag_ms: list[float] = []
        self.ended = asyncio.Event()  # before its seconds are over

    @staticmethod
    def _body(flow: dict[str, Any]) -> bytes:
        more = request_of("", {}, params=flow.get("params"))
        return base64.b64decode(flow["request"]) + more.SerializeToString()  # messages merge where they are joined

    async def call(self, index: int, due_at: float) -> str:
        """One request to its last outcome; its status."""
        flow, body = self._order["flows"][index], self._bodies[index]
        if flow.get("by_arrival"):
            number = oip.ModelInferRequest()
            number.parameters["priority"].int64_param = next(self._numbers)
            body += number.SerializeToString()
        status = ""
        for address in filter(None, (flow["address"], flow.get("failover"))):
            sent_at, detail = time.monotonic(), ""
            try:
                answer = await self._calls[address](body, timeout=flow.get("timeout_s", 30.0))
                status = "OK" if self._sizes.setdefault(index, len(answer)) == len(answer) else "WRONG"
            except grpc.aio.AioRpcError as e:
                status, detail = e.code().name, (e.details() or "")[:MAX_DETAIL]
            for key, value in zip(
                self.outcomes, (index, due_at, sent_at, time.monotonic(), status, detail), strict=True
            ):
                self.outcomes[key].append(value)
            if status != "UNAVAILABLE":
                break
        return status

    async def run(self) -> None:
        """All flows for the order's seconds, and until the last of their calls has ended."""
        flows, seconds = self._order["flows"], self._order["seconds"]
        rng = np.random.default_rng(self._order.get("seed", 0))
        due = [(t, i) for i, f in enumerate(flows) if "rate_per_s" in f for t in arrivals(f, seconds, rng)]
        begins_at = time.monotonic() + 0.05
        running: set[asyncio.Task[Any]] = set()

        def send(index: int, due_at: float) -> None:
            task = asyncio.create_task(self.call(index, due_at))
            running.add(task)
            task.add_done_callback(running.discard)

        async def caller(index: int) -> None:
            while (now := time.monotonic()) < begins_at + seconds and not self.ended.is_set():
                if await self.call(index, now) != "OK":
                    await asyncio.sleep(REFUSED_WAIT_S)

        for index, flow in enumerate(flows):
            for _ in range(flow.get("callers", 0)):
                task = asyncio.create_task(caller(index))
                running.add(task)
                task.add_done_callback(running.discard)
        watch = asyncio.create_task(self._watch())
        await self._at(begins_at, sorted(due), send)
        while running:
            await asyncio.wait(tuple(running))
        watch.cancel()

    async def _at(self, begins_at: float, due: list[tuple[float, int]], send: Callable[[int, float], None]) -> None:
        for offset_s, index in due:
            if await self._pause(begins_at + offset_s):
                return
            send(index, begins_at + offset_s)
        await self._pause(begins_at + self._order["seconds"])

    async def _pause(self, until: float) -> bool:
        """Until an instant, or the end; whether it is the end."""
        if (ahead_s := until - time.monotonic()) > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.ended.wait(), ahead_s)
        return self.ended.is_set()

    async def _watch(self) -> None:
        while True:
            due_at = time.monotonic() + LAG_EVERY_S
            await asyncio.sleep(LAG_EVERY_S)
            self.lag_ms.append(1000 * (time.monotonic() - due_at))


def _read(lines: asyncio.Queue[str], loop: asyncio.AbstractEventLoop) -> None:
    for line in sys.stdin:
        loop.call_soon_threadsafe(lines.put_nowait, line)
    loop.call_soon_threadsafe(lines.put_nowait, "")


async def serve() -> None:
    """Until stdin ends. Channels are kept, so that no order pays for connecting."""
    channels: dict[str, grpc.aio.Channel] = {}
    lines: asyncio.Queue[str] = asyncio.Queue()
    threading.Thread(target=_read, args=(lines, asyncio.get_running_loop()), daemon=True).start()
    while line := await lines.get():
        order = json.loads(line)
        if order is None:
            continue  # what it should end has ended
        addresses = {a for f in order["flows"] for a in (f["address"], f.get("failover")) if a}
        for address in addresses - channels.keys():
            channels[address] = grpc.aio.insecure_channel(address, options=OPTIONS)
        load = Load(order, channels)
        gc.freeze()
        running, told = asyncio.create_task(load.run()), asyncio.create_task(lines.get())
        await asyncio.wait({running, told}, return_when=asyncio.FIRST_COMPLETED)
        load.ended.set()
        await running
        if not told.done():
            told.cancel()
        print(json.dumps({**load.outcomes, "lag_ms": load.lag_ms}), flush=True)
    for channel in channels.values():
        await channel.close()


if __name__ == "__main__":
    asyncio.run(serve())
