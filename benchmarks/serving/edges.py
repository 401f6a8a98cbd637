"""Executors with real workers for the benchmarks of resilience: started, given a plan, loaded, ended.

What a planner would send is built by hand here (Prepare, Commit), so that a case is exactly what its file says; the
plan change (change.py) is the command line's own.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from epara_executors.client import GrpcFleet
from epara_executors.infer_client import InferClient, request_of
from epara_executors.load_inputs import random_inputs
from epara_executors.local import LocalExecutor
from epara_executors.tiny_models import TASK_OF_KIND, make
from outcomes import Outcome, outcomes_of
from servers import ENVIRONMENT, HERE

from epara_opt.control.ports import CommitSpec, ExecutorState, Fence, GroupSpec, PeerSpec, RouteSpec, TenantSpec

Flow = dict[str, Any]  # as open_loop.py reads it
LOAD_S = 60.0


class Edge:
    """Executors on this machine and a planner's hand on them. A context: at its end no process is left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fleet = GrpcFleet()
        self.executors: dict[str, LocalExecutor] = {}
        self._generation = 0

    def __enter__(self) -> Edge:
        return self

    def __exit__(self, *_: object) -> None:
        self.fleet.close()
        for executor in self.executors.values():
            executor.stop(timeout_s=20)

    def start(self, server: str, *arguments: str, listen: str = "127.0.0.1:0") -> LocalExecutor:
        executor = LocalExecutor(
            server,
            state_dir=self.folder / server,
            model_root=self.folder,
            listen=listen,
            log_file=self.folder / f"{server}.log",
            arguments=arguments,
        )
        self.executors[server] = executor
        return executor

    def make_models(self, *kinds: str) -> None:
        for kind in kinds:
            if not (self.folder / kind).exists():
                make(kind, self.folder / kind)

    def commit(self, hosted: Mapping[str, Sequence[GroupSpec]]) -> None:
        """Bring groups into force, by server. A service goes where it is hosted; other hosts of it are peers."""
        self._generation += 1
        fence = Fence(epoch=1, generation=self._generation)
        for server, groups in hosted.items():
            self.fleet.prepare(self.executors[server].address, tuple(groups), fence, deadline_s=LOAD_S)
        tenants = [(server, t) for server, groups in hosted.items() for g in groups for t in g.tenants]
        for server, groups in hosted.items():
            here = {t.service for g in groups for t in g.tenants}
            routes = [self._route(t, s) for s, t in tenants if s == server or t.service not in here]
            peers = [self._peer(t, s) for s, t in tenants if s != server]
            spec = CommitSpec(server=server, groups=tuple(groups), routes=tuple(routes), peers=tuple(peers))
            self.fleet.commit(self.executors[server].address, spec, fence, deadline_s=10)

    def _route(self, tenant: TenantSpec, server: str) -> RouteSpec:
        address = self.executors[server].address
        return RouteSpec(
            service=tenant.service,
            replica=tenant.replica,
            server=server,
            address=address,
            rate_per_s=tenant.work_per_s,
            network_ms=1.0,
        )

    def _peer(self, tenant: TenantSpec, server: str) -> PeerSpec:
        address = self.executors[server].address
        return PeerSpec(
            service=tenant.service, server=server, address=address, network_ms=1.0, capacity_per_s=tenant.work_per_s
        )

    def state(self, server: str) -> ExecutorState:
        return self.fleet.observe({server: self.executors[server].address}).executors[server]

    def until_ready(self, server: str, service: str, *, deadline_s: float = LOAD_S) -> None:
        ends_at = time.monotonic() + deadline_s
        with InferClient(self.executors[server].address) as client:
            while client.models().get(service) != "READY":
                if time.monotonic() > ends_at:
                    raise RuntimeError(f"{service} at {server}: not ready within {deadline_s:g} s")


def tenant(service: str, source: str, *, batch: int, deadline_ms: float, group: str = "g0", **over: Any) -> TenantSpec:
    """One of the tiny models as a service. Predictions are a start: executors follow what they observe."""
    values: dict[str, Any] = {
        "replica": f"{service}@{group}",
        "service": service,
        "source": source,
        "task": TASK_OF_KIND[source],
        "batch": batch,
        "frames": 1,
        "sensitivity": "latency",
        "deadline_ms": deadline_ms,
        "fps": 0.0,
        "response_ms": deadline_ms / 4,
        "work_per_s": 100.0,
        "prompt_tokens": 16,
        "output_tokens": 16,
    }
    return TenantSpec(**{**values, **over})


def group(server: str, *tenants: TenantSpec, name: str = "g0", device: int = 0) -> GroupSpec:
    """One CPU device with its tenants."""
    return GroupSpec(
        group=name, server=server, device_type="cpu", device_kind="cpu", devices=(device,), tp=1, pp=1, tenants=tenants
    )


def request_to(address: str, service: str, *, words: int = 16, seed: int = 0) -> str:
    """A request as a flow carries it, made from the model's own metadata; text has so many words."""
    with InferClient(address) as client:
        spec = client.metadata(service, timeout_s=10)
    inputs = random_inputs(spec, np.random.default_rng(seed), prompt_tokens=words)
    return base64.b64encode(request_of(service, inputs).SerializeToString()).decode()


class Client:
    """The one process that calls. A context."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "open_loop.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=ENVIRONMENT,
            text=True,
        )
        self.lag_ms: list[float] = []  # of the latest load

    def begin(self, flows: Sequence[Flow], *, seconds: float, seed: int = 0) -> None:
        """Start a stretch of load; `outcomes` waits for its end."""
        if self._process.stdin is not None:
            self._process.stdin.write(json.dumps({"flows": list(flows), "seconds": seconds, "seed": seed}) + "\n")
            self._process.stdin.flush()

    def end(self) -> None:
        """End the load that runs, before its seconds are over."""
        if self._process.stdin is not None:
            self._process.stdin.write("null\n")
            self._process.stdin.flush()

    def outcomes(self) -> list[Outcome]:
        """Raises RuntimeError when the client ended; it said why on stderr."""
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if not line:
            raise RuntimeError(f"the client ended with {self._process.wait()}")
        columns = json.loads(line)
        self.lag_ms = columns["lag_ms"]
        return outcomes_of(columns)

    def load(self, flows: Sequence[Flow], *, seconds: float, seed: int = 0) -> list[Outcome]:
        self.begin(flows, seconds=seconds, seed=seed)
        return self.outcomes()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
