"""epara.v1: what the planner speaks to an executor, and what executors speak to each other. Thin."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from importlib.metadata import version
from typing import Any, NoReturn

import grpc

from epara_executors.agent.devices import DeviceSlot
from epara_executors.agent.executor import Executor
from epara_executors.agent.logistics import Logistics
from epara_executors.agent.peers import Peers
from epara_executors.agent.stages import EOF, SILENCE_S, said
from epara_executors.agent.state import StateReader
from epara_executors.agent.worker_link import LoadFailed
from epara_executors.rpc import epara_pb2 as pb
from epara_executors.rpc.convert import (
    commit_from_pb,
    fence_from_pb,
    fence_to_pb,
    fetch_spec_from_pb,
    fetch_to_pb,
    group_from_pb,
    stage_from_pb,
    state_to_pb,
)
from epara_executors.rpc.epara_pb2_grpc import ExecutorControlServicer, ExecutorPeerServicer
from epara_executors.rpc.status import details_of
from epara_opt.domain.service import Task
from epara_opt.errors import ExecutorRefused, StaleFence

log = logging.getLogger(__name__)

MIN_INTERVAL_MS = 50
REASON_KEY = "epara-reason"  # trailing metadata that tells a stale fence from another refusal
STALE_FENCE = "stale-fence"

Context = Any


class ControlPlane(ExecutorControlServicer):
    """The servicer of epara.v1.ExecutorControl."""

    def __init__(
        self,
        executor: Executor,
        peers: Peers,
        reader: StateReader,
        logistics: Logistics,
        *,
        devices: Sequence[DeviceSlot],
        leave: Callable[[], None],
    ) -> None:
        """leave: called once when a Drain asks the process to exit."""
        self._executor = executor
        self._peers = peers
        self._reader = reader
        self._logistics = logistics
        self._devices = devices
        self._leave = leave

    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:  # noqa: N802
        return pb.DescribeResponse(
            server=self._executor.server,
            version=version("epara-opt"),
            incarnation=self._executor.incarnation,
            fence=fence_to_pb(self._executor.seen),
            devices=[
                pb.Device(kind=d.kind, index=d.index, name=d.name, memory_bytes=d.memory_bytes) for d in self._devices
            ],
            tasks=[t.value for t in Task],
        )

    async def Fetch(self, request: pb.FetchRequest, context: Context) -> pb.FetchResponse:  # noqa: N802
        fence = fence_from_pb(request.fence)
        models = [fetch_spec_from_pb(m) for m in request.models]
        try:
            await self._executor.pass_fence(fence)
            left = await self._logistics.fetch(models, fence, wait_s=request.wait_ms / 1000.0)
        except (StaleFence, ExecutorRefused) as e:
            await _refuse(context, e)
        return pb.FetchResponse(left=[fetch_to_pb(f) for f in left])

    async def Prepare(self, request: pb.PrepareRequest, context: Context) -> pb.PrepareResponse:  # noqa: N802
        try:
            await self._executor.prepare([group_from_pb(g) for g in request.groups], fence_from_pb(request.fence))
        except (StaleFence, ExecutorRefused) as e:
            await _refuse(context, e)
        return pb.PrepareResponse()

    async def Commit(self, request: pb.CommitRequest, context: Context) -> pb.CommitResponse:  # noqa: N802
        try:
            await self._logistics.used()
            await self._executor.commit(commit_from_pb(request), fence_from_pb(request.fence))
        except (StaleFence, ExecutorRefused) as e:
            await _refuse(context, e)
        self._peers.refresh()
        return pb.CommitResponse()

    async def Retire(self, request: pb.RetireRequest, context: Context) -> pb.RetireResponse:  # noqa: N802
        try:
            await self._executor.retire(list(request.groups), fence_from_pb(request.fence))
        except (StaleFence, ExecutorRefused) as e:
            await _refuse(context, e)
        return pb.RetireResponse()

    async def WatchState(  # noqa: N802
        self, request: pb.WatchStateRequest, context: Context
    ) -> AsyncIterator[pb.StateResponse]:
        loop = asyncio.get_running_loop()
        while True:
            state = self._reader.state(
                now=loop.time(), with_plan=request.with_plan, with_histograms=request.with_histograms
            )
            yield state_to_pb(state)
            if request.interval_ms <= 0 or self._executor.draining:
                return
            await asyncio.sleep(max(MIN_INTERVAL_MS, request.interval_ms) / 1000.0)

    async def Drain(self, request: pb.DrainRequest, context: Context) -> pb.DrainResponse:  # noqa: N802
        self._executor.leave()
        try:
            async with asyncio.timeout(request.timeout_ms / 1000.0 if request.timeout_ms > 0 else None):
                await self._executor.quiet()
        except TimeoutError:
            log.warning("drain: %d requests left in flight", self._executor.in_flight())
        if request.exit:
            self._leave()
        return pb.DrainResponse(left_in_flight=self._executor.in_flight())


class PeerPlane(ExecutorPeerServicer):
    """The servicer of epara.v1.ExecutorPeer."""

    def __init__(self, executor: Executor, peers: Peers) -> None:
        self._executor = executor
        self._peers = peers

    async def Sync(self, request: pb.SyncMessage, context: Context) -> pb.SyncMessage:  # noqa: N802
        self._peers.heard(request)
        return self._peers.message()

    async def RunStages(self, request_iterator: Any, context: Context) -> None:  # noqa: N802
        try:
            async with asyncio.timeout(SILENCE_S):
                first = await context.read()
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"no word of the head within {SILENCE_S:.0f} s")
            return
        if first is EOF:
            return
        try:
            held = await self._executor.stages_of(first.group, [stage_from_pb(s) for s in first.stages])
            await held.serve(first, context)
        except (ExecutorRefused, LoadFailed) as e:
            detail = e.detail if isinstance(e, ExecutorRefused) else str(e)
            await said(context, pb.StageBeat(ended=True, status=-1, detail=detail))


async def _refuse(context: Context, error: StaleFence | ExecutorRefused) -> NoReturn:
    trailing = ((REASON_KEY, STALE_FENCE),) if isinstance(error, StaleFence) else ()
    await context.abort(
        grpc.StatusCode.FAILED_PRECONDITION,
        details_of(error.detail if isinstance(error, ExecutorRefused) else str(error)),
        trailing,
    )
    raise error
