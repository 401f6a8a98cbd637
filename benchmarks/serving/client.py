"""Closed-loop load in a process of its own: N callers, each of which calls again as soon as it is answered.

Orders are JSON lines on stdin, {address, calls, model, rows, answers, clients, seconds}. `calls` names the protocol
(calls.py). `rows` and `answers` are .npy files, FP32 of shape (N, 256): caller i sends row i mod N and its last answer
must be that row's. Each order is answered by a JSON line on stdout, {answers, all_answers, seconds, p50_ms, p99_ms,
client_cpu_ms}: `answers` within the window, `all_answers` with the run-in before it and the last calls after it, and
the client's own CPU per call. Where no call is answered within the window, the latencies are those of the last calls.
The first failed call ends the process with its reason on stderr.

An order with `until_s` instead of `seconds` calls once, again and again until it is answered or that time is over: it
is how a server says that it is ready. It is answered by {"ready": bool, "why": str}. A wrong answer ends the process.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import numpy as np
from calls import CALLS, Calls
from rows import percentile

RUN_IN_S = 0.3
RETRY_S = 0.1
TOLERANCE = 1e-5  # sums of 256 products of about one, in another order in a batch than alone


class Wrong(Exception):
    """It answered, and not with what the network makes of the row."""


def require_answer(calls: Calls, response: Any, expected: np.ndarray, row: int) -> None:
    """Raises Wrong with the row and how far the answer is off."""
    made = calls.answer(response)
    if made.shape != expected.shape:
        raise Wrong(f"row {row}: expected {expected.shape[0]} numbers, got {made.size}")
    if not (off := float(np.abs(made - expected).max())) <= TOLERANCE:
        raise Wrong(f"row {row}: expected the network's answer within {TOLERANCE:g}, it is off by {off:g}")


async def ready(order: dict[str, Any]) -> dict[str, Any]:
    rows, answers = np.load(order["rows"]), np.load(order["answers"])
    ends_at = time.perf_counter() + order["until_s"]
    while True:
        try:
            async with CALLS[order["calls"]](order) as calls:
                require_answer(calls, await calls.call(calls.request(rows[0])), answers[0], 0)
            return {"ready": True, "why": ""}
        except Wrong:
            raise
        except Exception as error:  # whatever a server that is not up yet makes of a call
            if time.perf_counter() > ends_at:
                return {"ready": False, "why": f"{type(error).__name__}: {error}"[-1000:]}
        await asyncio.sleep(RETRY_S)


async def run(order: dict[str, Any]) -> dict[str, Any]:
    rows, answers = np.load(order["rows"]), np.load(order["answers"])
    taken_ms: list[float] = []  # of calls answered within the window
    late_ms: list[float] = []  # of calls answered after it
    all_answers = 0
    async with CALLS[order["calls"]](order) as calls:
        require_answer(calls, await calls.call(calls.request(rows[0])), answers[0], 0)
        cpu_began_s = time.process_time()
        begins_at = time.perf_counter() + RUN_IN_S
        ends_at = begins_at + order["seconds"]

        async def caller(row: int) -> None:
            nonlocal all_answers
            request, response = calls.request(rows[row]), None
            while (started_at := time.perf_counter()) < ends_at:
                response = await calls.call(request)
                all_answers += 1
                now = time.perf_counter()
                if now >= begins_at:
                    (taken_ms if now < ends_at else late_ms).append(1000 * (now - started_at))
            if response is not None:
                require_answer(calls, response, answers[row], row)

        await asyncio.gather(*(caller(i % len(rows)) for i in range(order["clients"])))
        cpu_s = time.process_time() - cpu_began_s
    return {
        "answers": len(taken_ms),
        "all_answers": all_answers + 1,
        "seconds": order["seconds"],
        "p50_ms": percentile(taken_ms or late_ms, 0.5),
        "p99_ms": percentile(taken_ms or late_ms, 0.99),
        "client_cpu_ms": 1000 * cpu_s / max(1, all_answers),
    }


def main() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(asyncio.run((ready if "until_s" in order else run)(order))), flush=True)


if __name__ == "__main__":
    main()
