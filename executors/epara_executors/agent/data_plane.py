"""Open Inference Protocol v2: what clients speak. Thin: reads messages, asks the handler, maps refusals."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator
from importlib.metadata import version
from typing import Any, NoReturn

from epara_executors.agent.call_streams import CallStreams, Frame, stream_error
from epara_executors.agent.executor import Executor
from epara_executors.agent.handler import RequestHandler
from epara_executors.agent.peers import RETRY_AFTER_KEY, PeerLost, Peers
from epara_executors.agent.requests import NotOffered, Passport, Refusal, Unavailable, UnknownService
from epara_executors.agent.routing_table import ServiceRouting
from epara_executors.rpc import open_inference_pb2 as oip
from epara_executors.rpc.open_inference_pb2_grpc import GRPCInferenceServiceServicer
from epara_executors.rpc.status import details_of

PLATFORM = "epara_torch"
MAX_PIPELINED = 64  # requests of one ModelStreamInfer call that are handled at a time
PLACEMENT_IS_PLANNED = "what is loaded where is the planner's choice: change the topology's services or demand instead"


class _Mark(enum.Enum):
    """What stands between responses in an outbox."""

    LEFT = enum.auto()  # a request's last response stands before this
    END = enum.auto()


Context = Any  # grpc.aio.ServicerContext, whose type parameters nobody fills


class DataPlane(GRPCInferenceServiceServicer):
    """The servicer of inference.GRPCInferenceService."""

    def __init__(self, executor: Executor, handler: RequestHandler, peers: Peers) -> None:
        self._executor = executor
        self._handler = handler
        self._peers = peers
        self._metadata: dict[tuple[str, int], oip.ModelMetadataResponse] = {}  # by service and generation

    async def ServerLive(self, request: oip.ServerLiveRequest, context: Context) -> oip.ServerLiveResponse:  # noqa: N802
        return oip.ServerLiveResponse(live=True)

    async def ServerReady(self, request: oip.ServerReadyRequest, context: Context) -> oip.ServerReadyResponse:  # noqa: N802
        return oip.ServerReadyResponse(ready=self._executor.restored.is_set() and not self._executor.draining)

    async def ServerMetadata(  # noqa: N802
        self, request: oip.ServerMetadataRequest, context: Context
    ) -> oip.ServerMetadataResponse:
        return oip.ServerMetadataResponse(
            name=f"epara-executor {self._executor.server}",
            version=version("epara-opt"),
            extensions=["model_repository", "streaming"],
        )

    async def ModelReady(self, request: oip.ModelReadyRequest, context: Context) -> oip.ModelReadyResponse:  # noqa: N802
        routing = await self._known(request.name, request.version, context)
        return oip.ModelReadyResponse(ready=not self._peers.why_unready(routing))

    async def ModelMetadata(  # noqa: N802
        self, request: oip.ModelMetadataRequest, context: Context
    ) -> oip.ModelMetadataResponse:
        routing = await self._known(request.name, request.version, context)
        for _, replica in routing.hosted.values():
            if replica.loaded is not None:
                response = oip.ModelMetadataResponse(name=request.name, versions=["1"], platform=PLATFORM)
                for name, datatype, shape in replica.loaded.inputs:
                    response.inputs.add(name=name, datatype=datatype, shape=shape)
                for name, datatype, shape in replica.loaded.outputs:
                    response.outputs.add(name=name, datatype=datatype, shape=shape)
                return response
        key = (request.name, self._executor.generation)
        for server in routing.peers if key not in self._metadata else ():
            peer = self._peers.get(server)
            try:
                # A host answers for itself; one that hosts nothing would ask further, so ask only hosts.
                if peer is not None and (request.name in peer.idle or not peer.idle):
                    self._metadata[key] = await self._peers.metadata(peer, request.name)
                    break
            except (PeerLost, Refusal):
                continue
        if key not in self._metadata:
            await _abort(context, Unavailable(f"model {request.name!r}: no replica is ready: nobody to describe it"))
        return self._metadata[key]

    async def ModelInfer(self, request: oip.ModelInferRequest, context: Context) -> oip.ModelInferResponse:  # noqa: N802
        try:
            passport = _passport(context)
            response = await self._handler.infer(request, passport, call_remaining_s=context.time_remaining())
        except Refusal as e:
            await _abort(context, e)
        if response is None:
            await _abort(context, Unavailable(f"{request.model_name}: ended without an answer"))
        return response

    async def ModelStreamInfer(  # noqa: N802
        self, request_iterator: AsyncIterator[oip.ModelInferRequest], context: Context
    ) -> AsyncIterator[oip.ModelStreamInferResponse]:
        """Requests are handled as they come, side by side.

        Frames of a stream are answered in their order (`in_order`); everything else as soon as it can be, matched by
        id. A place is free again once the last response of its request has been taken by the transport, so that a
        client that reads slowly is read slowly.
        """
        try:
            passport = _passport(context)
        except Refusal as e:
            await _abort(context, e)
        outbox: asyncio.Queue[oip.ModelStreamInferResponse | _Mark] = asyncio.Queue()
        places = asyncio.Semaphore(MAX_PIPELINED)
        running: set[asyncio.Task[None]] = set()
        streams = CallStreams(
            self._executor, self._peers, let_out=outbox.put_nowait, left=lambda: outbox.put_nowait(_Mark.LEFT)
        )

        async def handle(request: oip.ModelInferRequest) -> None:
            def on_response(response: oip.ModelInferResponse) -> None:
                outbox.put_nowait(oip.ModelStreamInferResponse(infer_response=response))

            try:
                await self._handler.infer(
                    request, passport, call_remaining_s=context.time_remaining(), on_response=on_response
                )
            except Refusal as e:
                outbox.put_nowait(stream_error(request, e))
            finally:
                outbox.put_nowait(_Mark.LEFT)

        async def handle_frame(request: oip.ModelInferRequest, frame: Frame) -> None:
            try:
                await self._handler.infer(
                    request,
                    passport,
                    call_remaining_s=context.time_remaining(),
                    on_response=frame.respond,
                    on_ticket=frame.opened,
                )
            except Refusal as e:
                frame.place.answer(stream_error(request, e))
            finally:
                frame.end()

        async def read_all() -> None:
            try:
                async for request in request_iterator:
                    await places.acquire()
                    frame = streams.enter(request) if passport.is_entry else None
                    task = asyncio.create_task(handle(request) if frame is None else handle_frame(request, frame))
                    if frame is not None:
                        frame.task = task
                    running.add(task)
                    task.add_done_callback(running.discard)
                if running:
                    done, _ = await asyncio.wait(running)
                    for error in (t.exception() for t in done if not t.cancelled()):  # a frame given up is cancelled
                        if error is not None:
                            raise error
            finally:
                outbox.put_nowait(_Mark.END)

        reading = asyncio.create_task(read_all())
        try:
            while (item := await outbox.get()) is not _Mark.END:
                if isinstance(item, _Mark):
                    places.release()
                else:
                    yield item
            await reading
        finally:
            reading.cancel()
            streams.close()
            for task in tuple(running):
                task.cancel()

    async def RepositoryIndex(  # noqa: N802
        self, request: oip.RepositoryIndexRequest, context: Context
    ) -> oip.RepositoryIndexResponse:
        response = oip.RepositoryIndexResponse()
        for name, routing in self._executor.routing.items():
            reason = self._peers.why_unready(routing)
            if not (request.ready and reason):
                response.models.add(name=name, version="1", state="UNAVAILABLE" if reason else "READY", reason=reason)
        return response

    async def RepositoryModelLoad(  # noqa: N802
        self, request: oip.RepositoryModelLoadRequest, context: Context
    ) -> oip.RepositoryModelLoadResponse:
        await _abort(context, NotOffered(PLACEMENT_IS_PLANNED))

    async def RepositoryModelUnload(  # noqa: N802
        self, request: oip.RepositoryModelUnloadRequest, context: Context
    ) -> oip.RepositoryModelUnloadResponse:
        await _abort(context, NotOffered(PLACEMENT_IS_PLANNED))

    async def _known(self, name: str, wanted: str, context: Context) -> ServiceRouting:
        routing = self._executor.routing.get(name)
        if routing is None or wanted not in ("", "1"):
            known = ", ".join(sorted(self._executor.routing)) or "none"
            what = f"model {name!r}" if routing is None else f"model {name!r} version {wanted}"
            await _abort(context, UnknownService(f"{what} is not known here; known: {known}"))
        return routing


def _passport(context: Context) -> Passport:
    """Raises BadRequest where another executor's keys do not hold what they must."""
    keys = {k: v for k, v in context.invocation_metadata() or () if k.startswith(Passport.PREFIX)}
    return Passport.from_metadata(keys) if keys else Passport.ENTRY


async def _abort(context: Context, refusal: Refusal) -> NoReturn:
    """End the call with the refusal's status; grpc raises inside abort."""
    trailing = ((RETRY_AFTER_KEY, str(refusal.retry_after_ms)),) if refusal.retry_after_ms else ()
    await context.abort(refusal.status, details_of(refusal.message), trailing)
    raise refusal
