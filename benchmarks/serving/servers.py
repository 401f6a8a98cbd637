"""The servers that are compared: started, asked where they listen, ended. Each is a process tree of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
SERVICE = "mlp"
SOURCE = "tiny-mlp"
MAX_BATCH = 16
START_TIMEOUT_S = 90.0
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
STOP_TIMEOUT_S = 30.0


class Server:
    """A running server's address, how it is called, and the CPU time of its processes."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        *,
        address: str | None = None,
        calls: str = "open_inference",
        client: str = sys.executable,
        environment: Mapping[str, str] = ENVIRONMENT,
        rests: bool = False,
    ) -> None:
        """Without an address it returns once the process says where it listens, a line {"listening": "HOST:PORT"}.

        Raises RuntimeError with its last words if it does not. With an address its first answer is what says that it
        is ready (run.py asks). `calls` is a protocol of calls.py, `client` an interpreter that has it. A server that
        `rests` may be stopped while others are measured.
        """
        self.log, self.calls, self.client, self.rests = log, calls, client, rests
        with log.open("ab") as words:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=words if address else subprocess.PIPE,
                stderr=words,
                env=environment,
                cwd=log.parent if address else None,
            )
        self.address: str = address or self._said()

    def _said(self) -> str:
        timer = threading.Timer(START_TIMEOUT_S, self.process.kill)
        timer.start()
        line = self.process.stdout.readline() if self.process.stdout is not None else b""
        timer.cancel()
        if not line:
            raise RuntimeError(f"{self.process.args} ended with {self.process.wait()}: {self.last_words()}")
        return json.loads(line)["listening"]

    def last_words(self) -> str:
        return self.log.read_text(errors="replace")[-1000:]

    def cpu_s(self) -> float:
        """Of the process and all that descend from it and live, user and system."""
        parents, ticks = _processes()
        return sum(ticks.get(pid, 0) for pid in tree(self.process.pid, parents)) / os.sysconf("SC_CLK_TCK")

    def rest(self) -> None:
        """Stops its processes where they are, so that what it does while idle does not cost the others their turn."""
        if self.rests:
            _signal(tree(self.process.pid, _processes()[0]), signal.SIGSTOP)

    def wake(self) -> None:
        """Lets them go on."""
        if self.rests:
            _signal(tree(self.process.pid, _processes()[0]), signal.SIGCONT)

    def stop(self) -> None:
        """Asks the process to end and ends what it leaves behind of its tree."""
        if self.process.poll() is None:
            self.wake()
            left = tree(self.process.pid, _processes()[0]) - {self.process.pid}
            self.process.terminate()
            try:
                self.process.wait(timeout=STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            _signal(left, signal.SIGKILL)
        if self.process.stdout is not None:
            self.process.stdout.close()


def _processes() -> tuple[dict[int, int], dict[int, int]]:
    """Of all processes here the parent and the clock ticks used, user and system."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it ended while we looked
            continue
        pid = int(stat.parent.name)
        parents[pid], ticks[pid] = int(fields[1]), int(fields[11]) + int(fields[12])
    return parents, ticks


def _signal(pids: Collection[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def tree(root: int, parents: Mapping[int, int]) -> set[int]:
    """A process and all that descend from it."""
    found, grown = {root}, True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        found, grown = found | more, bool(more)
    return found


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
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=ENVIRONMENT, check=False)
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command[2:4])} ended with {done.returncode}: {(done.stderr + done.stdout)[-1000:]}"
        )


STARTERS: Mapping[str, Callable[[Path], AbstractContextManager[Server]]] = {"floor": floor, "epara": epara}
