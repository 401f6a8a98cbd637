"""Four services with mixed deadlines on one device, one and a half times what it can do: does order by deadline pay?

    python benchmarks/serving/deadlines.py [--rounds 3] [--seconds 3]

Real architectures share one device group: short texts that are wanted at once, long texts, images, and images that may
take their time. Each is offered a quarter of 1.5 times the rate at which the device serves it alone. Within a round the
same executor, with the same worker, meets the same arrivals three times, in turns:

    deadlines   as it is: earliest deadline first, what cannot be on time is refused
    admission   first come, first served over all services (each request's priority is its number in order of arrival),
                with the same refusals
    fifo        first come, first served and no notion of deadlines: every request may take FIFO_MS

Whatever the executor was told, a request counts when it came back within its service's real deadline, at the client.

Writes benchmarks/results/serving_deadlines.json.
"""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import report
from edges import Client, Edge, Flow, group, request_to, tenant
from outcomes import Outcome, goodput, on_time, row, statuses

LOAD = 1.5
FIFO_MS = 10_000
RUN_IN_S = 0.7
RESULT = "serving_deadlines.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    name: str
    source: str
    deadline_ms: float
    batch: int
    words: int = 0  # of a text


SERVICES = (
    Service(name="command", source="tiny-bert", deadline_ms=80.0, batch=4, words=5),
    Service(name="search", source="tiny-bert", deadline_ms=300.0, batch=4, words=24),
    Service(name="segment", source="tiny-segformer", deadline_ms=500.0, batch=4),
    Service(name="archive", source="tiny-vit", deadline_ms=1500.0, batch=4),
)
DEADLINES_MS = [s.deadline_ms for s in SERVICES]
ORDERS: dict[str, Flow] = {
    "deadlines": {},
    "admission": {"by_arrival": True},
    "fifo": {"params": {"timeout": 1000 * FIFO_MS}},
}


def rates(client: Client, flows: list[Flow], seconds: float) -> list[float]:
    """What each service is offered, per second: its share of LOAD times what the device does of it alone."""
    found: list[float] = []
    for flow, service in zip(flows, SERVICES, strict=True):
        patient = {**flow, "callers": 3 * service.batch, "params": {"timeout": 20_000_000}}
        seen = client.load([patient], seconds=seconds)
        answered_at = sorted(o.done_at for o in seen if o.status == "OK")
        half = len(answered_at) // 2  # the first half warms up
        found.append((len(answered_at) - 1 - half) / (answered_at[-1] - answered_at[half]))
    return [LOAD * per_s / len(SERVICES) for per_s in found]


def one_round(client: Client, flows: list[Flow], seconds: float, index: int) -> dict[str, Any]:
    """Every order once, after another in turns over the rounds, at rates measured just before."""
    per_s = rates(client, flows, 1.0)
    names = list(ORDERS)
    made: dict[str, Any] = {"offered_per_s": dict(zip((s.name for s in SERVICES), per_s, strict=True))}
    for name in names[index % 3 :] + names[: index % 3]:
        offered = [{**f, **ORDERS[name], "rate_per_s": rate} for f, rate in zip(flows, per_s, strict=True)]
        seen = client.load(offered, seconds=seconds + RUN_IN_S, seed=index)
        begins_at = min(o.due_at for o in seen) + RUN_IN_S
        good = goodput(seen, DEADLINES_MS, begins_at=begins_at, ends_at=begins_at + seconds)
        made[name] = {"goodput_per_s": good, "on_time": attainment(seen, begins_at), "statuses": statuses(seen)}
    return made


def attainment(outcomes: list[Outcome], begins_at: float) -> dict[str, float]:
    """Share of each service's requests that were on time."""
    found: dict[str, float] = {}
    for i, service in enumerate(SERVICES):
        mine = [o for o in outcomes if o.flow == i and o.due_at >= begins_at]
        found[service.name] = on_time(mine, service.deadline_ms) / max(1, len(mine))
    return found


def measure(rounds: int = 3, seconds: float = 3.0) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, Edge(Path(folder)) as edge, Client() as client:
        edge.make_models(*{s.source for s in SERVICES})
        address = edge.start("edge").address
        tenants = [tenant(s.name, s.source, batch=s.batch, deadline_ms=s.deadline_ms) for s in SERVICES]
        edge.commit({"edge": [group("edge", *tenants)]})
        flows: list[Flow] = [
            {"address": address, "request": request_to(address, s.name, words=s.words or 1)} for s in SERVICES
        ]
        rates(client, flows, 0.5)  # what is measured later has begun
        made = [one_round(client, flows, seconds, i) for i in range(rounds)]

    def ratio(other: str) -> float:
        return statistics.median(r["deadlines"]["goodput_per_s"] / max(1e-9, r[other]["goodput_per_s"]) for r in made)

    rows = [
        row("goodput by deadline / first come, first served", ratio("fifo"), "", law=">=", target=1.3),
        row("the same, refusals like ours in both", ratio("admission"), ""),
    ]
    rows += [row(f"goodput, {n}", statistics.median(r[n]["goodput_per_s"] for r in made), "/s") for n in ORDERS]
    return {"rows": rows, "rounds": made}


if __name__ == "__main__":
    report.main(__doc__, measure, RESULT, rounds=3, seconds=3.0)
