"""Executors as real processes with echo workers, and builders for what a planner would send them."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from epara_executors.client import GrpcFleet
from epara_executors.infer_client import InferClient
from epara_executors.local import LocalExecutor
from epara_executors.runners.arrays import from_array, to_array
from epara_executors.worker.frames import Frame
from epara_executors.worker.launch import Launcher
from epara_executors.worker.wire import Wire

from epara_opt.control.ports import (
    CommitSpec,
    ExecutorState,
    Fence,
    GroupSpec,
    PeerSpec,
    RouteSpec,
    TenantSpec,
)


class EchoEdge:
    """Some executors with echo workers, and a planner's hand on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fleet = GrpcFleet()
        self.executors: dict[str, LocalExecutor] = {}
        self._clients: dict[str, InferClient] = {}

    def start(self, server: str, listen: str = "127.0.0.1:0", *arguments: str) -> LocalExecutor:
        executor = LocalExecutor(
            server,
            state_dir=self.folder / server,
            model_root=self.folder,
            listen=listen,
            log_file=self.folder / f"{server}.log",
            arguments=("--worker", "echo", *arguments),
        )
        self.executors[server] = executor
        return executor

    def close(self) -> None:
        for client in self._clients.values():
            client.close()
        self.fleet.close()
        for executor in self.executors.values():
            executor.stop(timeout_s=10)

    def address(self, server: str) -> str:
        return self.executors[server].address

    def client(self, server: str) -> InferClient:
        address = self.address(server)
        if address not in self._clients:
            self._clients[address] = InferClient(address)
        return self._clients[address]

    @staticmethod
    def tenant(
        service: str = "echo", group: str = "g0", source: str = "echo?latency_ms=1", **over: object
    ) -> TenantSpec:
        values: dict[str, object] = {
            "replica": f"{service}@{group}",
            "service": service,
            "source": source,
            "task": "feature-extraction",
            "batch": 4,
            "frames": 1,
            "sensitivity": "latency",
            "deadline_ms": 5000.0,
            "fps": 0.0,
            "response_ms": 20.0,
            "work_per_s": 100.0,
            "prompt_tokens": 0,
            "output_tokens": 0,
        }
        return TenantSpec(**{**values, **over})  # type: ignore[arg-type]

    @staticmethod
    def group(server: str, *tenants: TenantSpec, name: str = "g0", device: int = 0) -> GroupSpec:
        return GroupSpec(
            group=name,
            server=server,
            device_type="cpu",
            device_kind="cpu",
            devices=(device,),
            tp=1,
            pp=1,
            tenants=tenants,
        )

    def route(self, tenant: TenantSpec, server: str, rate: float = 10.0) -> RouteSpec:
        return RouteSpec(
            service=tenant.service,
            replica=tenant.replica,
            server=server,
            address=self.address(server),
            rate_per_s=rate,
            network_ms=1.0,
        )

    def peer(self, service: str, server: str) -> PeerSpec:
        return PeerSpec(
            service=service, server=server, address=self.address(server), network_ms=1.0, capacity_per_s=100.0
        )

    def apply(
        self,
        server: str,
        *groups: GroupSpec,
        routes: tuple[RouteSpec, ...] | None = None,
        peers: tuple[PeerSpec, ...] = (),
        generation: int = 1,
        epoch: int = 1,
    ) -> None:
        """Prepare and commit at one executor; routes default to every tenant here."""
        fence = Fence(epoch=epoch, generation=generation)
        if routes is None:
            routes = tuple(self.route(t, server) for g in groups for t in g.tenants)
        spec = CommitSpec(server=server, groups=groups, routes=routes, peers=peers, plan_json='{"plan": 1}')
        self.fleet.prepare(self.address(server), groups, fence, deadline_s=30)
        self.fleet.commit(self.address(server), spec, fence, deadline_s=10)

    def state(self, server: str) -> ExecutorState:
        found = self.fleet.observe({server: self.address(server)}, with_plan=True)
        return found.executors[server]

    @staticmethod
    def until(true: Callable[[], bool], *, deadline_s: float = 20.0) -> None:
        """Poll until something holds; fail at the deadline."""
        end = time.monotonic() + deadline_s
        while not true():
            if time.monotonic() > end:
                raise TimeoutError("what was waited for did not come")
            time.sleep(0.01)


@pytest.fixture
def echo_edge(tmp_path: Path) -> Iterator[EchoEdge]:
    """No executor yet; start them by name."""
    edge = EchoEdge(tmp_path)
    try:
        yield edge
    finally:
        edge.close()


@pytest.fixture(scope="module")
def shared_edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EchoEdge]:
    """For tests of a file that change nothing the others of it would notice."""
    edge = EchoEdge(tmp_path_factory.mktemp("edge"))
    try:
        yield edge
    finally:
        edge.close()


@pytest.fixture
def ones() -> np.ndarray:
    """One row that the echo model takes."""
    return np.ones((1, 4), np.float32)


# Real workers: launched as an agent launches them, spoken to over their socket. Torch is imported only where used.


class WorkerAtHand:
    """A worker and the agent's end of its socket."""

    def __init__(
        self, launcher: Launcher, folder: Path, *, tp: int = 1, pp: int = 1, stages: Sequence[dict[str, Any]] = ()
    ) -> None:
        """stages: of a chain over "several servers", all of them here; the first one's is the worker's."""
        self._group = {"group": "g", "device_kind": "cpu", "devices": list(range(tp * pp)), "tp": tp, "pp": pp}
        self.others: list[Any] = []
        path = str(folder / "s")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, socket.socket() as meeting:
            listener.bind(path)
            listener.listen(1)
            listener.settimeout(60)
            if stages:
                meeting.bind(("127.0.0.1", 0))
                meeting.listen()
                there = {"stages": stages, "rendezvous": f"127.0.0.1:{meeting.getsockname()[1]}", "pp": len(stages)}
                for server in {s["server"] for s in stages} - {stages[0]["server"]}:
                    self.others.append(launcher.launch({**self._group, **there, "server": server}, ""))
                self._group |= {**there, "server": stages[0]["server"]}
            self.handle = launcher.launch(self._group, path, meeting if stages else None)
            self.connection, _ = listener.accept()
        Path(path).unlink()
        self.connection.settimeout(60)
        self.wire = Wire(self.connection)

    def load(self, *tenants: dict[str, Any]) -> dict[str, Frame]:
        """Answers by replica, or by `failed`."""
        self.wire.write(Frame("load", {**self._group, "tenants": list(tenants)}))
        answers: dict[str, Frame] = {}
        while (frame := self.wire.read()).type in ("loaded", "refused"):
            answers[frame.fields["replica"]] = frame
        if frame.type == "failed":
            answers["failed"] = frame
        return answers

    @staticmethod
    def tenant(source: str, task: str, **over: Any) -> dict[str, Any]:
        return {"replica": f"{source}@g", "service": source, "source": source, "task": task, "batch": 4, **over}

    def send(self, key: str, source: str, *requests: dict[str, np.ndarray], **params: Any) -> None:
        heads = [{"id": f"{key}.{i}", "rows": 1, "params": params} for i in range(len(requests))]
        fields = {"id": key, "replica": f"{source}@g", "requests": heads, "counts": [len(r) for r in requests]}
        tensors = [from_array(name, array) for r in requests for name, array in r.items()]
        self.wire.write(Frame("infer", fields, tensors))

    def result(self) -> tuple[Frame, list[dict[str, np.ndarray]]]:
        """The next result frame and the arrays of each of its requests; token frames are passed over."""
        while (frame := self.wire.read()).type == "token":
            pass
        if frame.type != "result":
            raise ValueError(f"expected a result, got {frame.type}: {frame.fields}")
        arrays: list[dict[str, np.ndarray]] = []
        start = 0
        for head in frame.fields["requests"]:
            count = head.get("tensors", 0)
            arrays.append({t.name: to_array(t) for t in frame.tensors[start : start + count]})
            start += count
        return frame, arrays

    def close(self) -> None:
        self.connection.close()
        for handle in (self.handle, *self.others):
            if handle.wait(20) is None:
                handle.kill()
                handle.wait(20)


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder with every tiny model."""
    from epara_executors.tiny_models import make_all

    root = tmp_path_factory.mktemp("models")
    make_all(root)
    return root


@pytest.fixture(scope="session")
def launcher(tiny_root: Path) -> Iterator[Launcher]:
    """One fork server for all tests with real workers."""
    launcher = Launcher(tiny_root)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HF_HUB_OFFLINE", "1")  # the hub's own retries would take long where it is out of reach
        launcher.start()
    try:
        yield launcher
    finally:
        launcher.close()


@pytest.fixture
def worker_of(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., WorkerAtHand]]:
    """Start workers of a shape; they end with the test."""
    started: list[WorkerAtHand] = []

    def start(tp: int = 1, pp: int = 1, **more: Any) -> WorkerAtHand:
        started.append(WorkerAtHand(launcher, tmp_path_factory.mktemp("w"), tp=tp, pp=pp, **more))
        return started[-1]

    yield start
    for worker in started:
        worker.close()
