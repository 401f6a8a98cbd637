"""Closed-loop load in a process of its own: N callers, each of which calls again as soon as it is answered.

Orders are JSON lines on stdin, {address, model, input, shape, clients, seconds}; each is answered by a JSON line on
stdout, {answers, all_answers, seconds, p50_ms, p99_ms}: `answers` within the window, `all_answers` with the run-in
before it and the last calls after it. The first failed call ends the process with its status on stderr.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import grpc.aio
import numpy as np
from epara_executors.rpc import open_inference_pb2 as oip
from rows import percentile

RUN_IN_S = 0.3


async def run(order: dict[str, Any]) -> dict[str, Any]:
    shape = order["shape"]
    request = oip.ModelInferRequest(model_name=order["model"])
    request.inputs.add(name=order["input"], datatype="FP32", shape=shape)
    request.raw_input_contents.append(np.random.default_rng(0).standard_normal(shape, dtype=np.float32).tobytes())
    num_bytes = len(request.raw_input_contents[0])
    taken_ms: list[float] = []
    all_answers = 0
    async with grpc.aio.insecure_channel(order["address"]) as channel:
        infer: Any = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=oip.ModelInferRequest.SerializeToString,
            response_deserializer=oip.ModelInferResponse.FromString,
        )
        response = await infer(request)
        if len(response.raw_output_contents[0]) != num_bytes:  # of this model: as wide out as in
            raise ValueError(f"expected {num_bytes} bytes, got {len(response.raw_output_contents[0])}")
        begins_at = time.perf_counter() + RUN_IN_S
        ends_at = begins_at + order["seconds"]

        async def call() -> None:
            nonlocal all_answers
            while (started_at := time.perf_counter()) < ends_at:
                await infer(request)
                all_answers += 1
                now = time.perf_counter()
                if begins_at <= now < ends_at:
                    taken_ms.append(1000 * (now - started_at))

        await asyncio.gather(*(call() for _ in range(order["clients"])))
    return {
        "answers": len(taken_ms),
        "all_answers": all_answers + 1,
        "seconds": order["seconds"],
        "p50_ms": percentile(taken_ms, 0.5),
        "p99_ms": percentile(taken_ms, 0.99),
    }


def main() -> None:
    for line in sys.stdin:
        print(json.dumps(asyncio.run(run(json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
