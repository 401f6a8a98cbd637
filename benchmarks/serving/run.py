"""What serving costs beside the arithmetic: a tiny network behind different servers, under the same client.

    python benchmarks/serving/run.py [--clients 1,8,32] [--seconds 6] [--servers floor,epara]

The network is a perceptron of 256-256-256 (FP32, one row per request), so nearly all of the time is the server's own.
One client process keeps N calls in flight (grpc.aio, Open Inference Protocol, raw contents, closed loop). The seconds
of a server at a number of clients are cut into short rounds in which the servers take turns; figures are medians over
rounds, ratios are taken to the floor (floor.py) within a round. `cpu_ms` is what all processes of a server used per
answer. Everything runs on loopback, ports are the system's choice, and every process ends with the run.

Writes benchmarks/results/serving.json with the machine and the date.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from epara_executors.tiny_models import make
from rich.console import Console
from rich.table import Table
from rows import Round, rows_of
from servers import ENVIRONMENT, HERE, PEERS, SERVICE, SOURCE, STARTERS, Server, absent_peer

RESULTS = HERE.parent / "results" / "serving.json"
NUM_ROUNDS = 8
SHAPE = (1, 256)


class Client:
    """The one client process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "client.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=ENVIRONMENT,
            text=True,
        )

    def load(self, address: str, *, clients: int, seconds: float) -> dict[str, Any]:
        """One stretch of load. Raises RuntimeError when a call failed; the client said why on stderr."""
        order = {"address": address, "model": SERVICE, "input": "x", "shape": SHAPE}
        stdin, stdout = self._process.stdin, self._process.stdout
        line = ""
        if stdin is not None and stdout is not None:
            stdin.write(json.dumps({**order, "clients": clients, "seconds": seconds}) + "\n")
            stdin.flush()
            line = stdout.readline()
        if not line:
            raise RuntimeError(f"the client ended with {self._process.wait()} while it called {address}")
        return json.loads(line)

    def stop(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def measure(index: int, name: str, server: Server, client: Client, clients: int, seconds: float) -> Round:
    """One server's turn in a round."""
    before_s = server.cpu_s()
    seen = client.load(server.address, clients=clients, seconds=seconds)
    cpu_s = server.cpu_s() - before_s
    return Round(
        index=index,
        model=SOURCE,
        server=name,
        clients=clients,
        throughput=seen["answers"] / seen["seconds"],
        p50_ms=seen["p50_ms"],
        p99_ms=seen["p99_ms"],
        cpu_ms=1000 * cpu_s / seen["all_answers"],
    )


def machine() -> str:
    """What the figures were measured on, without naming the host."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    return f"{os.cpu_count()} x {model}, Python {platform.python_version()}"


def table_of(results: dict[str, Any]) -> Table:
    heads = ("server", "callers", "per s", "p50 ms", "p99 ms", "CPU ms", "x per s", "x p50", "x p99", "x CPU")
    table = Table(*heads, title=f"{SOURCE}, {results['machine']}, {results['date']}", caption="x: times the floor")
    for r in results["rows"]:
        figures = (f"{r['throughput']:.0f}", f"{r['p50_ms']:.2f}", f"{r['p99_ms']:.2f}", f"{r['cpu_ms']:.2f}")
        keys = ("throughput_ratio", "p50_ratio", "p99_ratio", "cpu_ratio")
        ratios = ("-" if r[key] is None else f"{r[key]:.2f}" for key in keys)
        table.add_row(r["server"], str(r["clients"]), *figures, *ratios)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = (*STARTERS, *PEERS)
    parser.add_argument("--clients", default="1,8,32", help="numbers of concurrent callers, comma-separated")
    parser.add_argument("--seconds", type=float, default=6.0, help="of load per server and number of callers")
    parser.add_argument("--servers", default=",".join(known), help=f"of {', '.join(known)}")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    clients = [int(n) for n in args.clients.split(",")]
    names = args.servers.split(",")
    if unknown := [n for n in names if n not in known]:
        parser.error(f"--servers: expected of {', '.join(known)}, got {', '.join(unknown)}")
    if min(clients) < 1 or args.seconds <= 0:
        parser.error(f"--clients, --seconds: expected >= 1 and > 0, got {args.clients} and {args.seconds:g}")
    console = Console()
    rounds: list[Round] = []
    notes = [f"load average when it began: {os.getloadavg()[0]:.1f}"]
    notes += [absent_peer(n) for n in names if n in PEERS]
    for note in notes:
        console.print(note, highlight=False)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        make(SOURCE, Path(folder) / SOURCE)
        client = Client()
        stack.callback(client.stop)
        running = {n: stack.enter_context(STARTERS[n](Path(folder))) for n in names if n in STARTERS}
        for num_clients in clients:
            for index in range(NUM_ROUNDS):
                order = list(running.items())
                for name, server in order if index % 2 == 0 else reversed(order):
                    seconds = args.seconds / NUM_ROUNDS
                    rounds.append(measure(index, name, server, client, num_clients, seconds))
    date = datetime.now(UTC).date().isoformat()
    results = {"machine": machine(), "date": date, "notes": notes, "rows": rows_of(rounds)}
    args.out.write_text(json.dumps(results, indent=1) + "\n")
    console.print(table_of(results))


if __name__ == "__main__":
    main()
