"""The demo's edge: three executors and a planner as processes of their own, which all end with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from epara_opt.domain.performance import configurations, evaluate
from epara_opt.domain.profile import ProfileCatalogue
from epara_opt.domain.topology import Topology
from epara_opt.errors import EparaError

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


def epara(*arguments: str, cwd: Path) -> list[str]:
    """Run a command of this very installation in a process of its own; its lines of output. Raises EparaError."""
    command = [sys.executable, "-m", "epara_opt.cli", *arguments]
    environment = os.environ | ENVIRONMENT
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EparaError(f"epara {' '.join(arguments)} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done.stdout.splitlines()


def busy_cores(topology: Topology, catalogue: ProfileCatalogue) -> float:
    """CPU cores that the declared demand keeps busy at batch 1, by the measured profiles."""
    total = 0.0
    for demand in topology.demand:
        service = topology.services[demand.service]
        rates: list[float] = []
        for device_type in topology.device_types:
            profile = catalogue.shapes(service.model.profile_name, device_type).get((1, 1))
            if profile is not None:
                smallest = min(configurations(service, profile), key=lambda c: c.items)
                rates.append(evaluate(service, profile, smallest).work_per_s)
        total += demand.offered / max(rates, default=float("inf"))
    return total


def write_topology(source: Path, target: Path, *, addresses: Mapping[str, str], profiles: str, factor: float) -> None:
    """The demo topology with the addresses that the system chose, its own profiles, and demand times `factor`.

    Streams are whole: at least one of each stays.
    """
    document: dict[str, Any] = yaml.safe_load(source.read_text())
    for server in document["servers"]:
        server["address"] = addresses.get(server["name"], server["address"])
    for demand in document["demand"]:
        if "streams" in demand:
            demand["streams"] = max(1, round(demand["streams"] * factor))
        else:
            demand["rate_per_s"] = round(demand["rate_per_s"] * factor, 3)
    document["profiles"] = profiles
    target.write_text(yaml.safe_dump(document, sort_keys=False))


class Planner:
    """`epara run --json` as a process; its events are heard on a thread."""

    def __init__(self, topology: Path, store: Path, *, every_s: float, solver: str, log: Path) -> None:
        command = [sys.executable, "-m", "epara_opt.cli", "run", str(topology), "--store", str(store), "--json"]
        command += ["--every", f"{every_s}s", "--solver", solver, "--time-limit", "5"]
        self._log = log.open("ab")
        environment = os.environ | ENVIRONMENT
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self._log, env=environment, text=True, start_new_session=True
        )
        self.events: list[dict[str, Any]] = []
        self._heard = threading.Condition()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        if self.process.stdout is None:
            return
        for line in self.process.stdout:
            with self._heard:
                self.events.append(json.loads(line))
                self._heard.notify_all()
        with self._heard:
            self._heard.notify_all()

    def wait_for(self, wanted: Callable[[dict[str, Any]], bool], *, timeout_s: float) -> dict[str, Any]:
        """The first event that is wanted, past ones included. Raises EparaError if it does not come."""

        def found() -> bool:
            return any(map(wanted, self.events)) or self.process.poll() is not None

        with self._heard:
            self._heard.wait_for(found, timeout=timeout_s)
            event = next(filter(wanted, self.events), None)
        if event is None:
            ended = self.process.poll()
            why = f"ended with {ended}" if ended is not None else f"said nothing of the kind in {timeout_s:g} s"
            raise EparaError(f"the planner {why}; see {self._log.name}")
        return event

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._listener.join(timeout=5)
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._log.close()


@contextmanager
def executors(names: list[str], folder: Path) -> Generator[dict[str, Any]]:
    """A running executor per name, started side by side. Whoever is in the mapping at the end is stopped."""
    from epara_executors.local import LocalExecutor

    running: dict[str, Any] = {}
    failures: list[BaseException] = []

    def start(name: str) -> None:
        try:
            running[name] = start_executor(name, folder)
        except BaseException as e:
            failures.append(e)

    def end(executor: LocalExecutor) -> None:
        executor.stop(timeout_s=20.0)

    try:
        threads = [threading.Thread(target=start, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        yield running
    finally:
        with ExitStack() as stack:
            for executor in running.values():
                stack.callback(end, executor)


def start_executor(name: str, folder: Path, *, listen: str = "127.0.0.1:0") -> Any:
    """One executor with its state, models and log under `folder`."""
    from epara_executors.local import LocalExecutor

    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    return LocalExecutor(
        name, state_dir=folder / "state" / name, model_root=folder, listen=listen, log_file=logs / f"{name}.log"
    )


def with_addresses(topology: Topology, addresses: Mapping[str, str]) -> Topology:
    """The same edge at other addresses."""
    servers = {n: replace(s, address=addresses.get(n, s.address)) for n, s in topology.servers.items()}
    return replace(topology, servers=servers)
