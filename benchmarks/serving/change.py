"""What a plan change, SIGTERM and a drain cost those who are being served: requests lost, and time without answers.

    python benchmarks/serving/change.py [--seconds 2] [--rate 40]

Two executors with one CPU device each and one service (a BERT of 4 layers). Requests enter at both, evenly paced, and
wait for nobody. Under that load `epara apply` brings plans of `epara plan` into force: the service moves from a to b,
back, and on to both. Then b, which has CALLERS requests in flight besides, is told to leave: by SIGTERM, and, started
anew, by `epara drain --exit`.

`lost` counts requests without a good answer at the end; callers of the executor that leaves call the other one when
they are answered UNAVAILABLE, as clients of two addresses do. What it had let in before has no such second chance:
`in flight, lost` counts it. A gap is the longest time between two good answers, at
either entry.

Writes benchmarks/results/serving_change.json.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import report
import yaml
from edges import Client, Edge, Flow, request_to
from outcomes import Outcome, left_behind, longest_gap_s, lost, row, statuses
from servers import ENVIRONMENT

SERVICE, SOURCE = "embed", "tiny-bert"
SERVERS = ("a", "b")
PLANS = (("a",), ("b",), ("a",), ("a", "b"))  # who has a device, generation by generation
CALLERS = 4  # that always have a request in flight at the executor that leaves
PROFILE = f"""\
model,device,tp,pp,batch,frames,latency_ms,interval_ms,prefill_ms,prompt_tokens,decode_step_ms,memory_gib,load_s,source
{SOURCE},cpu,1,1,4,1,20,,,,,0.1,0.5,assumed: plans need only know that one device is enough
"""
LONGEST_S = 60.0
BEFORE_S = 1.0  # of load until something happens
RESULT = "serving_change.json"


def epara(*arguments: str) -> None:
    """One command of the command line. Raises RuntimeError with its words if it fails."""
    command = [sys.executable, "-m", "epara_opt.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=ENVIRONMENT, check=False)
    if done.returncode:
        said = (done.stderr + done.stdout)[-1000:]
        raise RuntimeError(f"epara {arguments[0]} ended with {done.returncode}: {said}")


def topology(addresses: dict[str, str], able: tuple[str, ...]) -> dict[str, Any]:
    """The edge while `able` have a device each, and so much demand that each of them is needed."""
    return {
        "version": 1,
        "name": "change",
        "device_types": {"cpu": {"memory_gib": 2.0, "kind": "cpu"}},
        "servers": [
            {
                "name": server,
                "kind": "edge-server",
                "address": address,
                "devices": [{"type": "cpu", "count": 1}] if server in able else [],
            }
            for server, address in addresses.items()
        ],
        "links": [{"between": list(SERVERS), "rtt_ms": 1.0, "bandwidth_mbps": 1000}],
        "services": [
            {
                "name": SERVICE,
                "model": {"source": SOURCE, "task": "feature-extraction"},
                "sensitivity": "latency",
                "slo_ms": 5000,
                "request": {"input_kb": 1, "output_kb": 1, "prompt_tokens": 16},
            }
        ],
        "demand": [{"service": SERVICE, "origin": server, "rate_per_s": 50.0 * len(able)} for server in SERVERS],
        "profiles": "profile.csv",
    }


class Plans:
    """Topologies and their plans, one after the other, in files."""

    def __init__(self, edge: Edge) -> None:
        """Plans every generation ahead, so that load meets changes alone."""
        self._folder = edge.folder
        addresses = {s: e.address for s, e in edge.executors.items()}
        for i, able in enumerate(PLANS):
            self.topology(i).write_text(yaml.safe_dump(topology(addresses, able), sort_keys=False))
        (self._folder / "profile.csv").write_text(PROFILE)
        for i in range(len(PLANS)):
            previous = ["--previous", str(self.plan(i - 1))] if i else []
            epara("plan", str(self.topology(i)), "--out", str(self.plan(i)), "--time-limit", "5", *previous)

    def topology(self, i: int) -> Path:
        return self._folder / f"edge-{i}.yaml"

    def plan(self, i: int) -> Path:
        return self._folder / f"plan-{i}.json"

    def apply(self, i: int) -> None:
        epara("apply", str(self.topology(i)), str(self.plan(i)))


def under_load(client: Client, flows: list[Flow], act: Callable[[], None], seconds: float) -> dict[str, Any]:
    """`act` a second after load began; load goes on until `seconds` after it is done."""
    acted: dict[str, Any] = {}

    def when_due() -> None:
        acted["at"] = time.monotonic()
        try:
            act()
        except Exception as e:
            acted["error"] = e
        acted["took_s"] = time.monotonic() - acted["at"]
        time.sleep(seconds)
        client.end()

    timer = threading.Timer(BEFORE_S, when_due)
    timer.start()
    seen = client.load(flows, seconds=LONGEST_S)
    timer.join()
    if "error" in acted:
        raise acted["error"]
    return {"outcomes": seen, "at": acted["at"], "took_s": acted["took_s"]}


def row_of(seen: list[Outcome], took_s: float) -> dict[str, Any]:
    return {
        "requests": len({(o.flow, o.due_at) for o in seen}),
        "lost": lost(seen),
        "gap_s": max(longest_gap_s([o for o in seen if o.flow == f]) for f in {o.flow for o in seen}),
        "took_s": took_s,
        "statuses": statuses(seen),
    }


def leave(client: Client, edge: Edge, flows: list[Flow], how: Callable[[], None], seconds: float) -> dict[str, Any]:
    """Executor b is told to leave by `how`, and has left."""
    process = edge.executors["b"].process
    at_b = {**flows[1], "failover": flows[0]["address"]}
    callers = {k: v for k, v in at_b.items() if k != "rate_per_s"} | {"callers": CALLERS}
    made = under_load(client, [flows[0], at_b, callers], how, seconds)
    seen = made["outcomes"]
    return {
        **row_of(seen, made["took_s"]),
        **left_behind([o for o in seen if o.flow > 0]),
        "exit_status": process.wait(timeout=60),
    }


def measure(seconds: float = 2.0, rate: float = 40.0) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, Edge(Path(folder)) as edge, Client() as client:
        edge.make_models(SOURCE)
        for server in SERVERS:
            edge.start(server)
        plans = Plans(edge)
        plans.apply(0)
        body = request_to(edge.executors["a"].address, SERVICE)
        even = {"request": body, "rate_per_s": rate / 2, "arrivals": "even"}
        flows: list[Flow] = [{**even, "address": edge.executors[s].address} for s in SERVERS]
        changes: list[dict[str, Any]] = []
        for i in range(1, len(PLANS)):
            made = under_load(client, flows, lambda i=i: plans.apply(i), seconds)
            changes.append({"to": " and ".join(PLANS[i]), **row_of(made["outcomes"], made["took_s"])})
        process = edge.executors["b"].process
        if not edge.state("b").replicas:
            raise RuntimeError("b: expected a replica under the last plan, got none")
        leaving = {"SIGTERM": leave(client, edge, flows, lambda: process.send_signal(signal.SIGTERM), seconds)}
        edge.start("b", listen=flows[1]["address"])
        edge.until_ready("b", SERVICE)
        client.load(flows, seconds=1.0)  # the client has found it again
        last = str(plans.topology(len(PLANS) - 1))
        leaving["epara drain"] = leave(client, edge, flows, lambda: epara("drain", last, "b", "--exit"), seconds)
    rows = [
        row("plan change: requests lost", sum(c["lost"] for c in changes), "", law="==", target=0),
        row("plan change: longest gap", max(c["gap_s"] for c in changes), "s", law="<=", target=0.3),
    ]
    for name, left in leaving.items():
        rows += [
            row(f"{name}: in flight, lost", left["in_flight_lost"], "", law="==", target=0),
            row(f"{name}: all requests, lost", left["lost"], "", law="==", target=0),
            row(f"{name}: in flight", left["in_flight"], ""),
        ]
    return {"rows": rows, "changes": changes, "leaving": leaving}


if __name__ == "__main__":
    report.main(__doc__, measure, RESULT, seconds=2.0, rate=40.0)
