"""Open Inference Protocol v2: what clients speak. Thin: reads messages, asks the handler, maps refusals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from importlib.metadata import version
from typing import Any, NoReturn

from epara_executors.agent.decode import set_parameter
from epara_executors.agent.executor import Executor
from epara_executors.agent.handler import RETRY_PARAMETER, STATUS_PARAMETER, RequestHandler
from epara_executors.agent.peers import RETRY_AFTER_KEY, PeerLost, Peers
from epara_executors.agent.requests import NotOffered, Passport, Refusal, Unavailable, UnknownService
from epara_executors.agent.routing_table import ServiceRouting
from epara_executors.rpc import open_inference_pb2 as oip
from epara_executors.rpc.open_inference_pb2_grpc import GRPCInferenceServiceServicer

PLATFORM = "epara_torch"
MAX_PIPELINED = 64  # requests of one ModelStreamInfer call that are handled at a time
PLACEMENT_IS_PLANNED = "what is loaded where is the planner's choice: change the topology's services or demand instead"

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
        """Requests are handled as they come, side by side; responses go out as they are made, matched by id."""
        try:
            passport = _passport(context)
        except Refusal as e:
            await _abort(context, e)
        outbox: asyncio.Queue[oip.ModelStreamInferResponse | None] = asyncio.Queue()
        places = asyncio.Semaphore(MAX_PIPELINED)
        running: set[asyncio.Task[None]] = set()

        async def handle(request: oip.ModelInferRequest) -> None:
            def on_response(response: oip.ModelInferResponse) -> None:
                outbox.put_nowait(oip.ModelStreamInferResponse(infer_response=response))

            try:
                await self._handler.infer(
                    request, passport, call_remaining_s=context.time_remaining(), on_response=on_response
                )
            except Refusal as e:
                outbox.put_nowait(_stream_error(request, e))
            finally:
                places.release()

        async def read_all() -> None:
            try:
                async for request in request_iterator:
                    await places.acquire()
                    task = asyncio.create_task(handle(request))
                    running.add(task)
                    task.add_done_callback(running.discard)
                if running:
                    await asyncio.gather(*running)
            finally:
                outbox.put_nowait(None)

        reading = asyncio.create_task(read_all())
        try:
            while (response := await outbox.get()) is not None:
                yield response
            await reading
        finally:
            reading.cancel()
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
    await context.abort(refusal.status, refusal.message, trailing)
    raise refusal


def _stream_error(request: oip.ModelInferRequest, refusal: Refusal) -> oip.ModelStreamInferResponse:
    response = oip.ModelStreamInferResponse(error_message=f"[{refusal.status.name}] {refusal.message}")
    response.infer_response.model_name = request.model_name
    response.infer_response.id = request.id
    set_parameter(response.infer_response.parameters[STATUS_PARAMETER], refusal.status.name)
    if refusal.retry_after_ms:
        set_parameter(response.infer_response.parameters[RETRY_PARAMETER], refusal.retry_after_ms)
    return response
