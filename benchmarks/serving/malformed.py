"""Ten thousand calls that go wrong, mixed: does each get its status, and are memory and slots back where they were?

    python benchmarks/serving/malformed.py [--calls 10000]

One executor with a perceptron and a Llama of 4 layers on a device each. The kinds of calls and the status that each
must end with stand in wrong_calls.py; 32 are made side by side. A tenth as many are made before, so that what grows
with the first use of anything has grown. Then the resident memory of agent and workers, the agent's open files and
what is queued or in flight are looked at after every quarter of the calls. What leaks leaks in every quarter, so the
median slope is what counts. Executors are told to give large blocks back to the system (ALLOCATOR):
else how many of the large messages met by chance would be all that is seen.

Writes benchmarks/results/serving_malformed.json.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import psutil
import report
from edges import Edge, group, tenant
from epara_executors.infer_client import InferClient
from epara_executors.load_inputs import WORDS
from outcomes import row
from wrong_calls import MANY_TOKENS, OPTIONS, Target, make_calls, wrong_ends

MAX_MESSAGE_MIB = 4
ROWS = 16
QUIET_WITHIN_S = 10.0
QUARTERS = 4
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}  # glibc's
RESULT = "serving_malformed.json"


def footprint(edge: Edge) -> dict[str, float]:
    """Resident memory of the agent and of its workers together, and the agent's open files, once nothing runs."""
    ends_at = time.monotonic() + QUIET_WITHIN_S
    while in_flight(edge) and time.monotonic() < ends_at:
        time.sleep(0.05)
    agent = psutil.Process(edge.executors["edge"].pid)
    workers = [w for child in agent.children() for w in child.children()]
    return {
        "agent_mib": agent.memory_info().rss / 2**20,
        "workers_mib": sum(w.memory_info().rss for w in workers) / 2**20,
        "agent_files": agent.num_fds(),
        "in_flight": in_flight(edge),
    }


def grown(looks: Sequence[Mapping[str, float]], key: str) -> float:
    """Growth from one look to the next: the median slope between any two looks (Theil and Sen)."""
    pairs = combinations(enumerate(look[key] for look in looks), 2)
    return statistics.median((after - before) / (j - i) for (i, before), (j, after) in pairs)


def in_flight(edge: Edge) -> int:
    return sum(r.queued for r in edge.state("edge").replicas)


def endless(address: str) -> str:
    """A prompt after which the model, whose weights mean nothing, goes on talking for MANY_TOKENS."""
    with InferClient(address) as client:
        for word in WORDS:
            text = np.array([word.encode()], dtype=np.object_)
            answer = client.infer("talk", {"text": text}, params={"max_tokens": MANY_TOKENS})
            if answer.parameters["completion_tokens"] == MANY_TOKENS:
                return word
    raise RuntimeError(f"prompts: expected one of {', '.join(WORDS)} to have {MANY_TOKENS} tokens, got none")


async def ask(address: str, number: int, seed: int) -> dict[str, dict[str, int]]:
    async with grpc.aio.insecure_channel(address, options=OPTIONS) as channel:
        to = Target(
            address=address,
            channel=channel,
            rows="rows",
            width=256,
            max_rows=ROWS,
            talk="talk",
            prompt=endless(address),
            max_message_bytes=MAX_MESSAGE_MIB * 2**20,
        )
        return await make_calls(to, number, seed=seed)


def measure(calls: int = 10_000) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, Edge(Path(folder)) as edge:
        edge.make_models("tiny-mlp", "tiny-llama")
        os.environ.update(ALLOCATOR)
        address = edge.start("edge", "--max-message-mib", str(MAX_MESSAGE_MIB)).address
        for name in ALLOCATOR:
            del os.environ[name]
        rows = tenant("rows", "tiny-mlp", batch=ROWS, deadline_ms=60_000.0)
        talk = tenant("talk", "tiny-llama", batch=8, deadline_ms=60_000.0, group="g1", tpot_ms=20.0, response_ms=100.0)
        edge.commit({"edge": [group("edge", rows), group("edge", talk, name="g1", device=1)]})
        asyncio.run(ask(address, calls // 10, 0))
        looks = [footprint(edge)]
        began_at = time.monotonic()
        parts: list[dict[str, dict[str, int]]] = []
        for quarter in range(QUARTERS):
            parts.append(asyncio.run(ask(address, calls // QUARTERS, quarter + 1)))
            looks.append(footprint(edge))
        took_s = time.monotonic() - began_at
    seen = {kind: dict(sum((Counter(p[kind]) for p in parts), Counter())) for kind in parts[0]}
    wrong = wrong_ends(seen)
    figures = [
        row("calls", sum(sum(ended.values()) for ended in seen.values()), ""),
        row("with another status than theirs", sum(wrong.values()), "", law="==", target=0),
        row("agent's memory, growth per quarter", grown(looks, "agent_mib"), "MiB", law="<=", target=1.0),
        row("workers' memory, growth per quarter", grown(looks, "workers_mib"), "MiB", law="<=", target=1.0),
        row("agent's memory, from first to last", looks[-1]["agent_mib"] - looks[0]["agent_mib"], "MiB"),
        row("agent's open files, more by", looks[-1]["agent_files"] - looks[0]["agent_files"], "", law="<=", target=0),
        row("queued or in flight afterwards", looks[-1]["in_flight"], "", law="==", target=0),
    ]
    return {"rows": figures, "looks": looks, "took_s": took_s, "ended": seen, "wrong": wrong}


if __name__ == "__main__":
    report.main(__doc__, measure, RESULT, calls=10_000)
