"""Calls that go wrong, each with the status that it must end with. For malformed.py, and for the tests.

They need two services at one executor: one that takes rows of FP32 (`rows`), one that generates text (`talk`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc.aio
import numpy as np
from epara_executors.infer_client import request_of
from epara_executors.rpc import open_inference_pb2 as oip
from epara_executors.rpc.open_inference_pb2_grpc import GRPCInferenceServiceStub

NUM_PIPELINED = 24  # answers that a slow reader leaves lying
MANY_TOKENS = 200  # of a generation that nobody waits for
OPTIONS = (("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where the calls go. The channel is shared by all but those who leave with theirs."""

    address: str
    channel: grpc.aio.Channel
    rows: str  # the service that takes FP32 [-1, width] as `x`
    width: int
    max_rows: int  # in one request
    talk: str
    prompt: str  # after which the model does not come to an end within MANY_TOKENS
    max_message_bytes: int
    timeout_s: float = 60.0

    @property
    def stub(self) -> Any:
        return GRPCInferenceServiceStub(self.channel)

    def good(self, rows: int = 1) -> oip.ModelInferRequest:
        return request_of(self.rows, {"x": np.ones((rows, self.width), np.float32)})

    def text(self, **params: Any) -> oip.ModelInferRequest:
        words = np.array([self.prompt.encode()], dtype=np.object_)
        return request_of(self.talk, {"text": words}, params={"max_tokens": MANY_TOKENS, **params})

    async def unary(self, request: oip.ModelInferRequest) -> str:
        try:
            await self.stub.ModelInfer(request, timeout=self.timeout_s)
        except grpc.aio.AioRpcError as e:
            return e.code().name
        return "OK"


async def good(to: Target) -> str:
    return await to.unary(to.good())


async def wrong_datatype(to: Target) -> str:
    return await to.unary(request_of(to.rows, {"x": np.ones((1, to.width), np.float64)}))


async def wrong_shape(to: Target) -> str:
    return await to.unary(request_of(to.rows, {"x": np.ones((1, to.width + 1), np.float32)}))


async def missing_tensor(to: Target) -> str:
    return await to.unary(request_of(to.rows, {}))


async def wrong_length(to: Target) -> str:
    request = to.good()
    request.raw_input_contents[0] = request.raw_input_contents[0][:-1]
    return await to.unary(request)


async def unknown_parameter(to: Target) -> str:
    return await to.unary(request_of(to.rows, {"x": np.ones((1, to.width), np.float32)}, params={"colour": "red"}))


async def unknown_service(to: Target) -> str:
    return await to.unary(request_of("nowhere", {"x": np.ones((1, to.width), np.float32)}))


async def oversized_message(to: Target) -> str:
    request = to.good()
    request.raw_input_contents[0] = bytes(to.max_message_bytes + 1)
    return await to.unary(request)


async def cancelled_call(to: Target) -> str:
    """A generation whose caller thinks better of it once it has begun."""
    call = to.stub.ModelInfer(to.text(), timeout=to.timeout_s)
    await good(to)
    call.cancel()
    return (await call.code()).name


async def slow_reader(to: Target) -> str:
    """Many answers, none of them read before all are made; then every one must be there."""

    async def requests() -> AsyncIterator[oip.ModelInferRequest]:
        for i in range(NUM_PIPELINED):
            request = to.good(to.max_rows)
            request.id = str(i)
            yield request

    call = to.stub.ModelStreamInfer(requests(), timeout=to.timeout_s)
    await good(to)
    ids = [r.infer_response.id async for r in call if not r.error_message]
    complete = sorted(ids, key=int) == [str(i) for i in range(NUM_PIPELINED)]
    return (await call.code()).name if complete else f"{len(ids)} of {NUM_PIPELINED} answers"


async def gone_mid_stream(to: Target) -> str:
    """A client with a connection of its own, which is gone after the first token."""

    async def one() -> AsyncIterator[oip.ModelInferRequest]:
        yield to.text(stream=True)

    channel = grpc.aio.insecure_channel(to.address, options=OPTIONS)
    stub: Any = GRPCInferenceServiceStub(channel)
    call = stub.ModelStreamInfer(one(), timeout=to.timeout_s)
    try:
        async for response in call:
            if response.error_message:
                return response.error_message
            break
    finally:
        await channel.close()
    return (await call.code()).name


Call = Callable[[Target], Awaitable[str]]
KINDS: Mapping[str, tuple[Call, str, int]] = {  # the call, its status, how many of a hundred
    "good": (good, "OK", 5),
    "wrong datatype": (wrong_datatype, "INVALID_ARGUMENT", 15),
    "wrong shape": (wrong_shape, "INVALID_ARGUMENT", 15),
    "missing tensor": (missing_tensor, "INVALID_ARGUMENT", 15),
    "wrong length": (wrong_length, "INVALID_ARGUMENT", 10),
    "unknown parameter": (unknown_parameter, "INVALID_ARGUMENT", 15),
    "unknown service": (unknown_service, "NOT_FOUND", 5),
    "oversized message": (oversized_message, "RESOURCE_EXHAUSTED", 5),
    "cancelled call": (cancelled_call, "CANCELLED", 5),
    "slow reader": (slow_reader, "OK", 5),
    "client gone mid-stream": (gone_mid_stream, "CANCELLED", 5),
}


async def make_calls(to: Target, number: int, *, seed: int, at_once: int = 32) -> dict[str, dict[str, int]]:
    """So many calls of all kinds, mixed, `at_once` side by side: how many of a kind ended with what."""
    names = [name for name, (_, _, share) in KINDS.items() for _ in range(share)]
    mixed = [names[i % len(names)] for i in range(number)]
    np.random.default_rng(seed).shuffle(mixed)
    seen: dict[str, dict[str, int]] = {name: {} for name in KINDS}
    places = asyncio.Semaphore(at_once)

    async def one(name: str) -> None:
        async with places:
            status = await KINDS[name][0](to)
            seen[name][status] = seen[name].get(status, 0) + 1

    await asyncio.gather(*(one(name) for name in mixed))
    return seen


def wrong_ends(seen: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """`kind: status` of what ended otherwise than it must, and how often."""
    return {
        f"{name}: {status}": count
        for name, ended in seen.items()
        for status, count in ended.items()
        if status != KINDS[name][1]
    }
