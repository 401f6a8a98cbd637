"""The servers that are compared: started, asked where they listen, ended. Each is a process tree of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
SERVICE = "mlp"
SOURCE = "tiny-mlp"
MAX_BATCH = 16
START_TIMEOUT_S = 90.0
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
PEERS: Mapping[str, str] = {"litserve": "litserve", "mlserver": "mlserver", "ray": "ray.serve", "bentoml": "bentoml"}


class Server:
    """A running server's address, and the CPU time of its processes."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        """Returns once it says where it listens. Raises RuntimeError with its last words if it does not."""
        with log.open("ab") as words:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=words, env=ENVIRONMENT
            )
        timer = threading.Timer(START_TIMEOUT_S, self.process.kill)
        timer.start()
        line = self.process.stdout.readline() if self.process.stdout is not None else b""
        timer.cancel()
        if not line:
            raise RuntimeError(f"{command} ended with {self.process.wait()}: {log.read_text()[-1000:]}")
        self.address: str = json.loads(line)["listening"]

    def cpu_s(self) -> float:
        """Of the process and all that descend from it and live, user and system."""
        parent: dict[int, int] = {}
        used: dict[int, int] = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:  # it ended while we looked
                continue
            pid = int(stat.parent.name)
            parent[pid], used[pid] = int(fields[1]), int(fields[11]) + int(fields[12])
        tree, grown = {self.process.pid}, True
        while grown:
            more = {pid for pid, above in parent.items() if above in tree} - tree
            tree, grown = tree | more, bool(more)
        return sum(used.get(pid, 0) for pid in tree) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


@contextmanager
def floor(folder: Path) -> Generator[Server]:
    """grpc.aio and the module, see floor.py."""
    server = Server([sys.executable, str(HERE / "floor.py"), str(folder / SOURCE)], folder / "floor.log")
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def epara(
    folder: Path, describe: Callable[[str], dict[str, object]] | None = None, batch: int = 0
) -> Generator[Server]:
    """`epara executor` with a plan that `epara plan` made from measured profiles and `epara apply` brought there.

    `describe` makes the edge for its address, `edge` if absent; replicas have this batch, MAX_BATCH if 0.
    """
    cli = [sys.executable, "-m", "epara_opt.cli"]
    here = ["--model-root", str(folder)]
    arguments = ["executor", "--server", "edge", "--listen", "127.0.0.1:0", "--state-dir", str(folder / "state"), *here]
    server = Server([*cli, *arguments], folder / "epara.log")
    try:
        topology, plan = folder / "edge.yaml", folder / "plan.json"
        topology.write_text(yaml.safe_dump((describe or edge)(server.address), sort_keys=False))
        batches = ["--batches", str(batch or MAX_BATCH), "--budget", "1"]
        _done([*cli, "profile", str(topology), "--out", str(folder / "profile.csv"), *batches, *here])
        _done([*cli, "plan", str(topology), "--out", str(plan), "--time-limit", "10"])
        _done([*cli, "apply", str(topology), str(plan)])
        yield server
    finally:
        server.stop()


def edge(address: str) -> dict[str, object]:
    """One server with one CPU slot, one service with a deadline that no queue of this benchmark comes near."""
    return {
        "version": 1,
        "name": "serving",
        "device_types": {"cpu": {"memory_gib": 2.0, "kind": "cpu"}},
        "servers": [
            {"name": "edge", "kind": "edge-server", "address": address, "devices": [{"type": "cpu", "count": 1}]}
        ],
        "services": [
            {
                "name": SERVICE,
                "model": {"source": SOURCE, "task": "tensor"},
                "sensitivity": "latency",
                "slo_ms": 2000,
                "request": {"input_kb": 1, "output_kb": 1},
            }
        ],
        "demand": [{"service": SERVICE, "origin": "edge", "rate_per_s": 1000}],
        "profiles": "profile.csv",
    }


def _done(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=ENVIRONMENT, check=False)
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command[2:4])} ended with {done.returncode}: {(done.stderr + done.stdout)[-1000:]}"
        )


STARTERS: Mapping[str, Callable[[Path], AbstractContextManager[Server]]] = {"floor": floor, "epara": epara}


def absent_peer(name: str) -> str:
    """Why a peer is not measured here."""
    package = PEERS[name].split(".")[0]
    if find_spec(package) is None:
        return f"{name}: absent, {package} is not installed here"
    return f"{name}: installed, but this benchmark does not know how to start it yet"
