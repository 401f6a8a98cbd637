"""Executors as the planner reaches them: `epara_opt.control.ports.Fleet` over gRPC. Synchronous, with deadlines.

Status codes mean: UNAVAILABLE, DEADLINE_EXCEEDED -> ExecutorUnreachable (try again later); FAILED_PRECONDITION with
the stale-fence mark -> StaleFence (never again); anything else -> ExecutorRefused in the executor's words.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

import grpc

from epara_executors.rpc import epara_pb2 as pb
from epara_executors.rpc.convert import (
    commit_to_pb,
    fence_to_pb,
    fetch_from_pb,
    fetch_spec_to_pb,
    group_to_pb,
    state_from_pb,
)
from epara_executors.rpc.epara_pb2_grpc import ExecutorControlStub
from epara_opt.control.ports import CommitSpec, ExecutorState, Fence, FetchSpec, FleetState, GroupSpec
from epara_opt.errors import ExecutorRefused, ExecutorUnreachable, FleetError, ModelsOnTheWay, StaleFence

OBSERVE_DEADLINE_S = 3.0
FETCH_POLL_S = 5.0  # how long one call waits for models: an executor that is gone is noticed in about that time
MAX_PARALLEL = 32
REASON_KEY = "epara-reason"  # agent/control_plane.py sets it
STALE_FENCE = "stale-fence"
_OPTIONS = (
    ("grpc.max_receive_message_length", 64 * 2**20),
    ("grpc.max_send_message_length", 64 * 2**20),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
)
_UNREACHABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)

T = TypeVar("T")


class GrpcFleet:
    """One channel per address, kept. Safe to use from several threads. Close it, or use it as a context."""

    def __init__(self, *, observe_deadline_s: float = OBSERVE_DEADLINE_S) -> None:
        self._observe_deadline_s = observe_deadline_s
        self._channels: dict[str, grpc.Channel] = {}
        self._names: dict[str, str] = {}  # address to the server last called there by its name, for errors
        self._lock = threading.Lock()

    def __enter__(self) -> GrpcFleet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every channel."""
        with self._lock:
            for channel in self._channels.values():
                channel.close()
            self._channels.clear()

    def observe(
        self, servers: Mapping[str, str], *, with_plan: bool = False, with_histograms: bool = False
    ) -> FleetState:
        """Ask all at once; who fails is `down`, with the reason. An answer under another name counts as down."""
        executors: dict[str, ExecutorState] = {}
        down: dict[str, str] = {}
        if not servers:
            return FleetState()
        request = pb.WatchStateRequest(interval_ms=0, with_plan=with_plan, with_histograms=with_histograms)
        with ThreadPoolExecutor(max_workers=min(MAX_PARALLEL, len(servers))) as pool:
            asked = {s: pool.submit(self._observe, s, address, request) for s, address in servers.items()}
        for server, future in asked.items():
            try:
                state = future.result()
            except FleetError as e:
                down[server] = str(e)
                continue
            if state.server == server:
                executors[server] = state
            else:
                down[server] = f"{servers[server]}: expected the executor of {server}, got that of {state.server}"
        return FleetState(executors=executors, down=down)

    def _observe(self, server: str, address: str, request: pb.WatchStateRequest) -> ExecutorState:
        def ask(stub: Any) -> pb.StateResponse:
            for response in stub.WatchState(request, timeout=self._observe_deadline_s):
                return response
            raise ExecutorRefused(server, "ended without a state")

        return state_from_pb(self._call(address, ask, server=server))

    def describe(self, address: str, *, deadline_s: float = OBSERVE_DEADLINE_S) -> pb.DescribeResponse:
        """Who is there, and what devices it drives."""
        return self._call(address, lambda stub: stub.Describe(pb.DescribeRequest(), timeout=deadline_s))

    def fetch(
        self, address: str, models: tuple[FetchSpec, ...], fence: Fence, *, server: str, deadline_s: float
    ) -> None:
        """Have models brought to the server's disk. Returns when they are there, or raises ModelsOnTheWay."""
        request = pb.FetchRequest(fence=fence_to_pb(fence), models=[fetch_spec_to_pb(m) for m in models])
        ends_at = time.monotonic() + deadline_s

        def ask(stub: Any) -> pb.FetchResponse:
            return stub.Fetch(request, timeout=request.wait_ms / 1000.0 + self._observe_deadline_s)

        while True:
            left_s = ends_at - time.monotonic()
            request.wait_ms = max(1, int(1000 * min(FETCH_POLL_S, left_s)))
            left = self._call(address, ask, server=server).left
            if not left:
                return
            if left_s <= FETCH_POLL_S:
                raise ModelsOnTheWay(server, "; ".join(str(fetch_from_pb(f)) for f in left))

    def prepare(self, address: str, groups: tuple[GroupSpec, ...], fence: Fence, *, deadline_s: float) -> None:
        """Load and warm up groups beside what runs. Returns when all are ready."""
        request = pb.PrepareRequest(fence=fence_to_pb(fence), groups=[group_to_pb(g) for g in groups])
        server = groups[0].server if groups else ""
        self._call(address, lambda stub: stub.Prepare(request, timeout=deadline_s), server=server)

    def commit(self, address: str, spec: CommitSpec, fence: Fence, *, deadline_s: float) -> None:
        """Switch routes and live groups atomically at one executor."""
        request = commit_to_pb(spec, fence)
        self._call(address, lambda stub: stub.Commit(request, timeout=deadline_s), server=spec.server)

    def retire(self, address: str, groups: tuple[str, ...], fence: Fence, *, deadline_s: float) -> None:
        """Drain groups that no committed plan uses, then unload them."""
        request = pb.RetireRequest(fence=fence_to_pb(fence), groups=groups)
        self._call(address, lambda stub: stub.Retire(request, timeout=deadline_s))

    def drain(self, address: str, *, exit_process: bool, deadline_s: float, server: str = "") -> int:
        """Take no new work, finish what is in flight; returns what was left at the deadline. server: for errors."""
        request = pb.DrainRequest(exit=exit_process, timeout_ms=max(1, int(1000 * deadline_s)))

        def ask(stub: Any) -> pb.DrainResponse:
            return stub.Drain(request, timeout=deadline_s + 1.0)

        return int(self._call(address, ask, server=server).left_in_flight)

    def _stub(self, address: str) -> Any:
        with self._lock:
            channel = self._channels.get(address)
            if channel is None:
                channel = self._channels[address] = grpc.insecure_channel(address, options=_OPTIONS)
            return ExecutorControlStub(channel)

    def _call(self, address: str, ask: Callable[[Any], T], *, server: str = "") -> T:
        if server:
            self._names[address] = server
        try:
            return ask(self._stub(address))
        except grpc.RpcError as e:
            raise _meaning(e, self._names.get(address, address)) from None


def _meaning(error: Any, server: str) -> FleetError:
    """What a failed call means to the planner."""
    status: grpc.StatusCode = error.code()
    details = str(error.details() or "")
    if status in _UNREACHABLE:
        return ExecutorUnreachable(server, f"{status.name}: {details}")
    marks = {str(k): v for k, v in error.trailing_metadata() or ()}
    if marks.get(REASON_KEY) == STALE_FENCE:
        return StaleFence(details)
    return ExecutorRefused(
        server, details if status is grpc.StatusCode.FAILED_PRECONDITION else f"{status.name}: {details}"
    )
