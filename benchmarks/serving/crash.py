"""A worker dies under load: whose requests does it take down, and when is its service back?

    python benchmarks/serving/crash.py [--kills 3] [--seconds 4]

One executor, two device groups with a worker each. `alone` has one replica, in the group that is hit; `twice` has one
in each; `beside` is only in the other group. Callers keep requests for the first two in flight, those for `beside`
are evenly paced and wait for nobody; a second after they began the worker of the first group is killed (SIGKILL).
Each kill is a round; the executor starts the worker again after half a second, twice as long with every further
death.

`twice` and `beside` must lose nothing: what the dead worker had is tried at the other. `alone` may lose what it had and
what comes until it is back, each with a status of its own: UNAVAILABLE, RESOURCE_EXHAUSTED or DEADLINE_EXCEEDED, never
later than its deadline and the grace after it. `back` is from the kill to the first good answer.

Writes benchmarks/results/serving_crash.json.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import report
from edges import Client, Edge, Flow, group, request_to, tenant
from outcomes import Outcome, in_flight, lost, row, statuses

from epara_opt.control.ports import TenantSpec

SOURCE = "tiny-bert"
SERVICES = ("alone", "twice", "beside")
DEADLINE_MS = 3000.0
GRACE_MS = 3000.0  # how long past its deadline the agent lets a started request end, as it documents
RATE_PER_S = 10.0
CALLERS = 4
WORDS = 16
BEFORE_S = 1.0
TYPED = frozenset({"OK", "UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"})
RESULT = "serving_crash.json"


def back_s(outcomes: Sequence[Outcome], at: float) -> float:
    """From an instant to the first good answer to a request sent after it; infinite where there is none."""
    return min((o.done_at for o in outcomes if o.status == "OK" and o.sent_at > at), default=float("inf")) - at


def workers(edge: Edge) -> set[int]:
    """Processes that serve: what the agent's fork server has forked."""
    return {w.pid for child in psutil.Process(edge.executors["edge"].pid).children() for w in child.children()}


def one_kill(client: Client, flows: Sequence[Flow], pid: int, seconds: float) -> dict[str, Any]:
    killed: dict[str, float] = {}

    def kill() -> None:
        killed["at"] = time.monotonic()
        os.kill(pid, signal.SIGKILL)

    timer = threading.Timer(BEFORE_S, kill)
    timer.start()
    seen = client.load(flows, seconds=BEFORE_S + seconds)
    timer.join()
    mine = {name: [o for o in seen if o.flow == i] for i, name in enumerate(SERVICES)}
    return {
        "back_s": back_s(mine["alone"], killed["at"]),
        "in_flight": {name: len(in_flight(outcomes, killed["at"])) for name, outcomes in mine.items()},
        "longest_ms": max(o.taken_ms for o in seen),
        "untyped": sum(o.status not in TYPED for o in seen),
        "lost": {name: lost(outcomes) for name, outcomes in mine.items()},
        "statuses": {name: statuses(outcomes) for name, outcomes in mine.items()},
    }


def measure(kills: int = 3, seconds: float = 4.0) -> dict[str, Any]:
    def one(service: str, name: str) -> TenantSpec:
        return tenant(service, SOURCE, batch=4, deadline_ms=DEADLINE_MS, group=name)

    hit = group("edge", one("alone", "hit"), one("twice", "hit"), name="hit")
    other = group("edge", one("twice", "other"), one("beside", "other"), name="other", device=1)
    with tempfile.TemporaryDirectory() as folder, Edge(Path(folder)) as edge, Client() as client:
        edge.make_models(SOURCE)
        address = edge.start("edge").address
        edge.commit({"edge": [other]})
        spared = workers(edge)
        edge.commit({"edge": [hit, other]})
        paces: dict[str, Flow] = {"beside": {"rate_per_s": RATE_PER_S, "arrivals": "even"}}
        flows: list[Flow] = [
            {"address": address, "request": request_to(address, name, words=WORDS)}
            | paces.get(name, {"callers": CALLERS})
            for name in SERVICES
        ]
        client.load(flows, seconds=1.0)  # what is measured later has begun
        made: list[dict[str, Any]] = []
        for _ in range(kills):
            (pid,) = workers(edge) - spared
            made.append(one_kill(client, flows, pid, seconds))
            edge.until_ready("edge", "alone")
    flying = sum(sum(r["in_flight"].values()) for r in made)
    rows = [
        row("lost beside the crash", sum(r["lost"]["beside"] for r in made), "", law="==", target=0),
        row("lost with a second replica", sum(r["lost"]["twice"] for r in made), "", law="==", target=0),
        row("without a status of ours", sum(r["untyped"] for r in made), "", law="==", target=0),
        row("longest call", max(r["longest_ms"] for r in made), "ms", law="<=", target=DEADLINE_MS + GRACE_MS),
        row("back after the kill, longest", max(r["back_s"] for r in made), "s", law="<=", target=5.0),
        row("back after the first kill", made[0]["back_s"], "s"),
        row("in flight when it was killed", flying, ""),
    ]
    return {"rows": rows, "rounds": made}


if __name__ == "__main__":
    report.main(__doc__, measure, RESULT, kills=3, seconds=4.0)
