"""Text generation measured: continuous batching through an executor, and without one against transformers' own.

    python benchmarks/serving/generation.py [--rounds 5]

A Llama of 5 million parameters (tiny_llm.py), 32 requests with prompts and answers of 4 to 64 tokens. Each round has,
in turn, on the same machine and with the same requests:

  at once     all 32 through a real executor (gRPC, `epara plan`, `epara apply`, 32 slots), against one at a time there
  alone       the engine in a process of its own: ours, transformers' continuous batching (paged, on sdpa), both
              against `model.generate`, one at a time
  first token streams: one at a time (unloaded), then arriving at random at a share of the requests per second that
              `at once` reached, then 32 in one instant

Every greedy answer is compared with that of `generate`: exact or not. Figures are medians over rounds, ratios are taken
within a round. `cpu` is what the processes used, which neighbours on the machine disturb less. `rules` is what
transformers' continuous batching makes of a request's own parameters.

Writes benchmarks/results/generation.json with the machine and the date.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from epara_executors.infer_client import AsyncInferClient
from rich.console import Console
from rich.table import Table
from rows import percentile
from run import machine
from servers import ENVIRONMENT, HERE, Server, epara
from tiny_llm import LONGEST, SOURCE, Job, jobs, make_model

RESULTS = HERE.parent / "results" / "generation.json"
SERVICE = "llm"
NUM_JOBS = 32
LOADS = (0.3, 0.5, 0.7)  # shares of the throughput reached at once
PATIENCE_MS = 120_000


@dataclass(slots=True)
class Paces:
    """Milliseconds of streams: to the first token, and between tokens."""

    first_ms: list[float] = field(default_factory=list[float])
    next_ms: list[float] = field(default_factory=list[float])

    def figures(self) -> dict[str, float]:
        return {
            "ttft_p50_ms": percentile(self.first_ms, 0.5),
            "ttft_p99_ms": percentile(self.first_ms, 0.99),
            "itl_p50_ms": percentile(self.next_ms, 0.5),
            "itl_p99_ms": percentile(self.next_ms, 0.99),
        }


class Engines:
    """engines.py as a process."""

    def __init__(self, root: Path) -> None:
        command = [sys.executable, str(HERE / "engines.py"), str(root), str(NUM_JOBS)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT, text=True
        )

    def ask(self, engine: str, asked: Sequence[Job]) -> tuple[float, float, Any]:
        """Seconds, CPU seconds and answer. Raises RuntimeError where it ended; it said why on stderr."""
        stdin, stdout = self._process.stdin, self._process.stdout
        line = ""
        if stdin is not None and stdout is not None:
            stdin.write(json.dumps({"engine": engine, "jobs": asked}) + "\n")
            stdin.flush()
            line = stdout.readline()
        if not line:
            raise RuntimeError(f"engines.py ended with {self._process.wait()} at {engine}")
        found = json.loads(line)
        return found["seconds"], found["cpu_s"], found["answer"]

    def stop(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


class Caller:
    """Requests to the executor from this process."""

    def __init__(self, client: AsyncInferClient) -> None:
        self._client = client

    async def whole(self, job: Job) -> list[int]:
        answer = await self._client.infer(
            SERVICE, _ids(job), params={"max_tokens": job[1]}, timeout_s=PATIENCE_MS / 1000
        )
        return [int(t) for t in answer.outputs["tokens"]]

    async def stream(self, job: Job, paces: Paces) -> None:
        began_at = last_at = time.perf_counter()
        async for _ in self._client.stream(
            SERVICE, _ids(job), params={"max_tokens": job[1]}, timeout_s=PATIENCE_MS / 1000
        ):
            now = time.perf_counter()
            (paces.next_ms if last_at > began_at else paces.first_ms).append(1000 * (now - last_at))
            last_at = now

    async def one_by_one(self, asked: Sequence[Job]) -> tuple[float, list[list[int]]]:
        began_at = time.perf_counter()
        made = [await self.whole(job) for job in asked]
        return time.perf_counter() - began_at, made

    async def at_once(self, asked: Sequence[Job]) -> tuple[float, list[list[int]]]:
        began_at = time.perf_counter()
        made = await asyncio.gather(*map(self.whole, asked))
        return time.perf_counter() - began_at, list(made)

    async def unloaded(self, asked: Sequence[Job]) -> Paces:
        paces = Paces()
        for job in asked:
            await self.stream(job, paces)
        return paces

    async def burst(self, asked: Sequence[Job]) -> Paces:
        paces = Paces()
        await asyncio.gather(*(self.stream(job, paces) for job in asked))
        return paces

    async def arriving(self, asked: Sequence[Job], per_s: float, seed: int) -> Paces:
        """Poisson arrivals, whatever is still under way."""
        paces, rng = Paces(), random.Random(seed)
        under_way: list[asyncio.Task[None]] = []
        due_at = time.perf_counter()
        for job in asked:
            due_at += rng.expovariate(per_s)
            await asyncio.sleep(max(0.0, due_at - time.perf_counter()))
            under_way.append(asyncio.create_task(self.stream(job, paces)))
        await asyncio.gather(*under_way)
        return paces


def _ids(job: Job) -> dict[str, Any]:
    return {"input_ids": np.array([job[0]], dtype=np.int64)}


def edge(address: str) -> dict[str, object]:
    """One server with one CPU slot; no queue of this benchmark comes near the deadline."""
    service = {
        "name": SERVICE,
        "model": {"source": SOURCE, "task": "text-generation"},
        "sensitivity": "latency",
        "slo_ms": PATIENCE_MS,
        "request": {"input_kb": 1, "output_kb": 1, "prompt_tokens": LONGEST, "output_tokens": LONGEST},
    }
    return {
        "version": 1,
        "name": "generation",
        "device_types": {"cpu": {"memory_gib": 2.0, "kind": "cpu"}},
        "servers": [
            {"name": "edge", "kind": "edge-server", "address": address, "devices": [{"type": "cpu", "count": 1}]}
        ],
        "services": [service],
        "demand": [{"service": SERVICE, "origin": "edge", "rate_per_s": 1000}],
        "profiles": "profile.csv",
    }


async def one_round(index: int, caller: Caller, engines: Engines, server: Server) -> dict[str, Any]:
    """Every figure of one round, by name."""
    asked = jobs(NUM_JOBS, index)
    found: dict[str, Any] = {}
    generate_s, generate_cpu_s, truth = engines.ask("generate", asked)
    found |= {"generate_s": generate_s, "generate_cpu_s": generate_cpu_s}
    for name in ("ours", "library") if index % 2 == 0 else ("library", "ours"):
        seconds, cpu_s, made = engines.ask(name, asked)
        found |= {f"{name}_s": seconds, f"{name}_cpu_s": cpu_s, f"{name}_exact": _same(made, truth)}
        found |= {f"{name}_speedup": generate_s / seconds, f"{name}_cpu_ratio": generate_cpu_s / cpu_s}
    found["ours_over_library"] = found["library_s"] / found["ours_s"]
    found["ours_over_library_cpu"] = found["library_cpu_s"] / found["ours_cpu_s"]
    before_s = server.cpu_s()
    one_s, one = await caller.one_by_one(asked)
    between_s = server.cpu_s()
    all_s, together = await caller.at_once(asked)
    one_cpu_s, all_cpu_s = between_s - before_s, server.cpu_s() - between_s
    found |= {"executor_one_by_one_s": one_s, "executor_at_once_s": all_s, "executor_speedup": one_s / all_s}
    found |= {"executor_one_by_one_cpu_s": one_cpu_s, "executor_at_once_cpu_s": all_cpu_s}
    found |= {"executor_cpu_ratio": one_cpu_s / all_cpu_s, "executor_speedup_over_generate": generate_s / all_s}
    found |= {"executor_one_by_one_exact": _same(one, truth), "executor_at_once_exact": _same(together, truth)}
    per_s = NUM_JOBS / all_s
    unloaded = (await caller.unloaded(asked)).figures()
    found["unloaded"] = unloaded
    for share in LOADS:
        found[f"load_{share}"] = _beside(unloaded, await caller.arriving(asked, share * per_s, index)) | {
            "requests_per_s": share * per_s
        }
    before_s = server.cpu_s()
    found["burst"] = _beside(unloaded, await caller.burst(asked))
    streamed_s = server.cpu_s() - before_s - all_cpu_s
    found["streaming_cpu_ms_per_token"] = 1000 * streamed_s / sum(n for _, n in asked)
    return found


def _beside(unloaded: dict[str, float], paces: Paces) -> dict[str, float]:
    """Figures, and the median time to the first token over that of the unloaded executor."""
    figures = paces.figures()
    return figures | {"ttft_ratio": figures["ttft_p50_ms"] / unloaded["ttft_p50_ms"]}


def _same(made: Sequence[Sequence[int]], truth: Sequence[Sequence[int]]) -> int:
    """How many answers are, token for token, those expected."""
    return sum(list(a) == list(b) for a, b in zip(made, truth, strict=True))


def medians(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The median of each figure; of counts of exact answers the smallest."""
    found: dict[str, Any] = {}
    for name, first in rounds[0].items():
        values = [r[name] for r in rounds]
        if isinstance(first, dict):
            found[name] = medians(values)
        else:
            found[name] = min(values) if name.endswith("_exact") else statistics.median(values)
    return found


def table_of(results: dict[str, Any]) -> Table:
    table = Table("what", "figure", title=f"{SOURCE}, {NUM_JOBS} requests, {results['machine']}, {results['date']}")
    for name, value in results["medians"].items():
        if isinstance(value, dict):
            table.add_row(name, ", ".join(f"{k} {v:.2f}" for k, v in value.items()))
        else:
            table.add_row(name, str(value) if isinstance(value, int) else f"{value:.2f}")
    table.add_row("rules of the library", ", ".join(f"{k}: {v}" for k, v in results["rules_of_the_library"].items()))
    return table


async def _measured(server: Server, num_rounds: int, engines: Engines) -> list[dict[str, Any]]:
    async with AsyncInferClient(server.address) as client:
        caller = Caller(client)
        warm: Sequence[Callable[[], Awaitable[Any]]] = (
            lambda: caller.at_once(jobs(NUM_JOBS, 99)),
            lambda: caller.burst(jobs(NUM_JOBS, 99)),
        )
        for run in warm:
            await run()
        for name in ("generate", "ours", "library"):
            engines.ask(name, jobs(NUM_JOBS, 99))
        return [await one_round(i, caller, engines, server) for i in range(num_rounds)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error(f"--rounds: expected >= 1, got {args.rounds}")
    console = Console()
    notes = [f"load average when it began: {os.getloadavg()[0]:.1f}"]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        make_model(Path(folder) / SOURCE)
        server = stack.enter_context(epara(Path(folder), edge, NUM_JOBS))
        engines = Engines(Path(folder))
        stack.callback(engines.stop)
        rounds = asyncio.run(_measured(server, args.rounds, engines))
        _, _, rules = engines.ask("rules", jobs(8, 0))
    results = {
        "machine": machine(),
        "date": datetime.now(UTC).date().isoformat(),
        "notes": notes,
        "medians": medians(rounds),
        "rules_of_the_library": rules,
        "rounds": rounds,
    }
    args.out.write_text(json.dumps(results, indent=1) + "\n")
    console.print(table_of(results))


if __name__ == "__main__":
    main()
