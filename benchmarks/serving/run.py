"""What serving costs beside the arithmetic: a tiny network behind different servers, under the same load.

    python benchmarks/serving/run.py [--clients 1,8,32] [--seconds 6] [--servers floor,epara,...] [--peers DIR]

The network is a perceptron of 256-256-256 (FP32, one row per request), so nearly all of the time is the server's own.
A client process keeps N calls in flight (closed loop; client.py). The executor, the floor, MLServer and Ray Serve are
called by grpc.aio with the Open Inference Protocol and raw contents; LitServe by aiohttp with the FP32 as the body,
BentoML by aiohttp with the FP32 as base64 in JSON. Answers are held against the network's own.

The seconds of a server at a number of clients are cut into short rounds in which the servers take turns; figures are
medians over rounds, ratios are taken to the floor (floor.py) within a round. `cpu_ms` is what all processes of a server
used per answer. All but Ray's HAProxy listens on loopback, ports are free ones, and every process ends with the run.
Peers are installed by peers/setup.sh and reported absent otherwise (peer_servers.py).

Writes benchmarks/results/serving.json with the machine and the date.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import tempfile
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from epara_executors.tiny_models import make
from peer_servers import ENVIRONMENTS, PEERS, absence, names_of, peer
from rich.console import Console
from rich.table import Table
from rows import Round, rows_of, spent_by_clients
from servers import ENVIRONMENT, HERE, SERVICE, SOURCE, START_TIMEOUT_S, STARTERS, Server

RESULTS = HERE.parent / "results" / "serving.json"
NUM_ROUNDS = 8
WIDTH = 256
NUM_ROWS = 256


class Client:
    """A client process, with the interpreter that has the library of its protocol."""

    def __init__(self, python: str, folder: Path) -> None:
        self._given = {"model": SERVICE, "rows": str(folder / "rows.npy"), "answers": str(folder / "answers.npy")}
        self._process = subprocess.Popen(
            [python, str(HERE / "client.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=ENVIRONMENT,
            text=True,
        )

    def load(self, server: Server, *, clients: int, seconds: float) -> dict[str, Any]:
        """One stretch of load. Raises RuntimeError when a call failed; the client said why on stderr."""
        return self._done(server, {"clients": clients, "seconds": seconds})

    def await_ready(self, server: Server) -> None:
        """Returns once the server answered right. Raises RuntimeError if it ended or took too long."""
        ends_at = time.monotonic() + START_TIMEOUT_S
        while not (seen := self._done(server, {"until_s": 2.0}))["ready"]:
            if server.process.poll() is not None or time.monotonic() > ends_at:
                raise RuntimeError(f"{server.process.args} does not answer: {seen['why']}: {server.last_words()}")

    def _done(self, server: Server, order: dict[str, Any]) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        line = ""
        if stdin is not None and stdout is not None:
            stdin.write(json.dumps({**self._given, "address": server.address, "calls": server.calls, **order}) + "\n")
            stdin.flush()
            line = stdout.readline()
        if not line:
            raise RuntimeError(f"the client ended with {self._process.wait()} while it called {server.process.args}")
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


def write_reference(folder: Path) -> None:
    """Rows to ask for and what the network makes of them, for the clients to hold answers against."""
    rows = np.random.default_rng(0).standard_normal((NUM_ROWS, WIDTH), dtype=np.float32)
    with torch.inference_mode():
        answers = torch.export.load(folder / SOURCE / "model.pt2").module()(torch.from_numpy(rows)).numpy()
    np.save(folder / "rows.npy", rows)
    np.save(folder / "answers.npy", answers)


def measure(index: int, name: str, server: Server, client: Client, clients: int, seconds: float) -> Round:
    """One server's turn in a round."""
    server.wake()
    before_s = server.cpu_s()
    seen = client.load(server, clients=clients, seconds=seconds)
    cpu_s = server.cpu_s() - before_s
    server.rest()
    return Round(
        index=index,
        model=SOURCE,
        server=name,
        clients=clients,
        throughput=seen["answers"] / seen["seconds"],
        p50_ms=seen["p50_ms"],
        p99_ms=seen["p99_ms"],
        cpu_ms=1000 * cpu_s / seen["all_answers"],
        client_cpu_ms=seen["client_cpu_ms"],
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
    table.columns[0].no_wrap, table.columns[0].min_width = True, max(len(r["server"]) for r in results["rows"])
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
    parser.add_argument("--peers", type=Path, default=ENVIRONMENTS, help="where peers/setup.sh put the environments")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    clients = [int(n) for n in args.clients.split(",")]
    try:
        names = names_of(args.servers)
    except ValueError as error:
        parser.error(str(error))
    if min(clients) < 1 or args.seconds <= 0:
        parser.error(f"--clients, --seconds: expected >= 1 and > 0, got {args.clients} and {args.seconds:g}")
    environments = args.peers.resolve()
    absent = {n: why for n in names if n in PEERS and (why := absence(n, environments)) is not None}
    console = Console()
    notes = [f"load average when it began: {os.getloadavg()[0]:.1f}", *absent.values()]
    for note in notes:
        console.print(note, highlight=False, soft_wrap=True)
    rounds: list[Round] = []
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = Path(scratch)
        make(SOURCE, folder / SOURCE)
        write_reference(folder)
        running: dict[str, tuple[Server, Client]] = {}
        callers: dict[str, Client] = {}
        for name in (n for n in names if n not in absent):
            console.print(f"starting {name}", highlight=False)
            starter = STARTERS[name](folder) if name in STARTERS else peer(name, environments, folder)
            server = stack.enter_context(starter)
            if server.client not in callers:
                callers[server.client] = Client(server.client, folder)
                stack.callback(callers[server.client].stop)
            callers[server.client].await_ready(server)
            server.rest()
            running[name] = server, callers[server.client]
        for num_clients in clients:
            console.print(f"{num_clients} callers", highlight=False)
            for index in range(NUM_ROUNDS):
                order = list(running.items())
                for name, (server, client) in order if index % 2 == 0 else reversed(order):
                    seconds = args.seconds / NUM_ROUNDS
                    rounds.append(measure(index, name, server, client, num_clients, seconds))
    date = datetime.now(UTC).date().isoformat()
    notes += spent_by_clients(rounds)
    results = {"machine": machine(), "date": date, "notes": notes, "rows": rows_of(rounds)}
    args.out.write_text(json.dumps(results, indent=1) + "\n")
    console.print(table_of(results))


if __name__ == "__main__":
    main()
