"""How one row is asked for, by protocol. What can be made before the clock runs is made in `request`.

Each protocol imports its library when it is used: the client runs with the project's interpreter for gRPC and with the
peer's for HTTP, so that aiohttp is no requirement of the project.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Calls:
    """One connection pool to one server, or one channel."""

    request: Callable[[np.ndarray], Any]  # of a row, shape (256,)
    call: Callable[[Any], Awaitable[Any]]
    answer: Callable[[Any], np.ndarray]  # of a response, shape (256,)


@asynccontextmanager
async def open_inference(order: Mapping[str, Any]) -> AsyncGenerator[Calls]:
    """gRPC, Open Inference Protocol, raw contents."""
    import grpc.aio
    from epara_executors.rpc import open_inference_pb2 as oip

    def request(row: np.ndarray) -> oip.ModelInferRequest:
        made = oip.ModelInferRequest(model_name=order["model"])
        made.inputs.add(name="x", datatype="FP32", shape=(1, *row.shape))
        made.raw_input_contents.append(row.tobytes())
        return made

    def answer(response: oip.ModelInferResponse) -> np.ndarray:
        if response.raw_output_contents:
            return np.frombuffer(response.raw_output_contents[0], np.float32)
        return np.asarray(response.outputs[0].contents.fp32_contents, np.float32)

    async with grpc.aio.insecure_channel(order["address"]) as channel:
        infer: Any = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=oip.ModelInferRequest.SerializeToString,
            response_deserializer=oip.ModelInferResponse.FromString,
        )
        yield Calls(request, infer, answer)


@asynccontextmanager
async def raw_http(order: Mapping[str, Any]) -> AsyncGenerator[Calls]:
    """HTTP, FP32 as the body both ways (LitServe's path)."""
    async with posts(f"http://{order['address']}/predict", "application/octet-stream") as post:
        yield Calls(np.ndarray.tobytes, post, lambda body: np.frombuffer(body, np.float32))


@asynccontextmanager
async def base64_http(order: Mapping[str, Any]) -> AsyncGenerator[Calls]:
    """HTTP, JSON with FP32 in base64 both ways (BentoML's path and names)."""

    def request(row: np.ndarray) -> bytes:
        return json.dumps({"x": [base64.b64encode(row.tobytes()).decode()]}).encode()

    def answer(body: bytes) -> np.ndarray:
        return np.frombuffer(base64.b64decode(json.loads(body)[0]), np.float32)

    async with posts(f"http://{order['address']}/infer", "application/json") as post:
        yield Calls(request, post, answer)


@asynccontextmanager
async def posts(url: str, content_type: str) -> AsyncGenerator[Callable[[bytes], Awaitable[bytes]]]:
    """Bodies to `url` over connections that are kept. A status other than 200 raises RuntimeError."""
    import aiohttp

    headers = {"content-type": content_type, "accept-encoding": "identity"}  # or LitServe packs random numbers
    connections = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connections, headers=headers) as session:

        async def post(body: bytes) -> bytes:
            async with session.post(url, data=body) as response:
                answered = await response.read()
                if response.status != 200:
                    raise RuntimeError(f"{url}: expected status 200, got {response.status}: {answered[:500]!r}")
                return answered

        yield post


CALLS: Mapping[str, Callable[[Mapping[str, Any]], AbstractAsyncContextManager[Calls]]] = {
    "open_inference": open_inference,
    "raw_http": raw_http,
    "base64_http": base64_http,
}
