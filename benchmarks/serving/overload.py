"""Twice as much as it can do: does goodput hold, and is what cannot be on time refused at once?

    python benchmarks/serving/overload.py [--rounds 5] [--seconds 2.5]

One service (a BERT of 4 layers, texts of about 130 tokens) on one CPU device, so that the device is what runs out. Each
round measures the capacity with callers that wait for each other, then offers one and two times that, with Poisson
arrivals that wait for nobody; so both meet the same machine. Goodput is what came back within the service's deadline,
at the client. How long a refusal took is measured at the client too, which shares the machine: `client_lag` is how late
its event loop was to what was due, the part of a refusal's time that is no server's.

Writes benchmarks/results/serving_overload.json.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import report
from edges import Client, Edge, Flow, group, request_to, tenant
from outcomes import Outcome, goodput, percentiles_ms, row, statuses

SERVICE = "embed"
DEADLINE_MS = 300.0
BATCH = 4
WORDS = 24
RUN_IN_S = 0.5
RESULT = "serving_overload.json"


def capacity(client: Client, flow: Flow, seconds: float) -> float:
    """Answers per second with the device never idle."""
    seen = client.load([{**flow, "callers": 3 * BATCH, "params": {"timeout": 20_000_000}}], seconds=seconds + RUN_IN_S)
    begins_at = min(o.sent_at for o in seen) + RUN_IN_S
    return sum(o.status == "OK" and begins_at <= o.done_at < begins_at + seconds for o in seen) / seconds


def offer(client: Client, flow: Flow, rate_per_s: float, seconds: float, seed: int) -> tuple[float, list[Outcome]]:
    """Goodput per second at a rate, and the outcomes it is made of."""
    seen = client.load([{**flow, "rate_per_s": rate_per_s}], seconds=seconds + RUN_IN_S, seed=seed)
    begins_at = min(o.due_at for o in seen) + RUN_IN_S
    return goodput(seen, [DEADLINE_MS], begins_at=begins_at, ends_at=begins_at + seconds), seen


def one_round(client: Client, flow: Flow, seconds: float, seed: int) -> dict[str, Any]:
    per_s = capacity(client, flow, seconds / 2)
    once, _ = offer(client, flow, per_s, seconds, seed)
    twice, seen = offer(client, flow, 2 * per_s, seconds, seed + 1)
    refused = [o for o in seen if o.status == "RESOURCE_EXHAUSTED"]
    return {
        "capacity_per_s": per_s,
        "goodput_1x_per_s": once,
        "goodput_2x_per_s": twice,
        "ratio": twice / once,
        "refused": percentiles_ms([o.taken_ms for o in refused]),
        "sent_late": percentiles_ms([o.late_ms for o in seen]),
        "client_lag": percentiles_ms(client.lag_ms),
        "statuses_2x": statuses(seen),
    }


def measure(rounds: int = 5, seconds: float = 2.5) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, Edge(Path(folder)) as edge, Client() as client:
        edge.make_models("tiny-bert")
        address = edge.start("edge").address
        spec = tenant(SERVICE, "tiny-bert", batch=BATCH, deadline_ms=DEADLINE_MS)
        edge.commit({"edge": [group("edge", spec)]})
        flow = {"address": address, "request": request_to(address, SERVICE, words=WORDS)}
        client.load([{**flow, "callers": 3 * BATCH}], seconds=1.0)  # what is measured later has begun
        made = [one_round(client, flow, seconds, seed=10 * i) for i in range(rounds)]
    ratio = statistics.median(r["ratio"] for r in made)
    refused = statistics.median(r["refused"]["p99_ms"] if r["refused"] else 0.0 for r in made)
    return {
        "rows": [
            row("goodput at 2x / at 1x", ratio, "", law=">=", target=0.9),
            row("refused, p99", refused, "ms", law="<=", target=5.0),
            row("the client's own lag meanwhile, p99", _median(made, "client_lag", "p99_ms"), "ms"),
            row("refused, p50", _median(made, "refused", "p50_ms"), "ms"),
            row("capacity", statistics.median(r["capacity_per_s"] for r in made), "/s"),
        ],
        "rounds": made,
    }


def _median(rounds: list[dict[str, Any]], key: str, part: str) -> float:
    return statistics.median(r[key][part] for r in rounds if r[key])


if __name__ == "__main__":
    report.main(__doc__, measure, RESULT, rounds=5, seconds=2.5)
