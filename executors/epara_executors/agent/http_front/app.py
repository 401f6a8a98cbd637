"""The routes: what comes in, which reader reads it, which shape it leaves in."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from epara_executors.agent.executor import Executor
from epara_executors.agent.handler import RequestHandler
from epara_executors.agent.http_front import errors
from epara_executors.agent.http_front.embed import embed, embedding_request
from epara_executors.agent.http_front.fields import parse
from epara_executors.agent.http_front.prompts import Generation, chat_request, completion_request
from epara_executors.agent.http_front.shapes import ChatShape, CompletionShape, Made, Shape
from epara_executors.agent.http_front.stream import ClientLeft, TokenStream, while_there
from epara_executors.agent.peers import Peers
from epara_executors.agent.replica import GENERATION
from epara_executors.agent.requests import BadRequest, Broken, Passport, Refusal, Unavailable, UnknownService
from epara_executors.agent.routing_table import ServiceRouting
from epara_executors.agent.ticket import OnResponse
from epara_executors.rpc import open_inference_pb2 as oip

EMBEDDING = "feature-extraction"
MAX_BODY_BYTES = 16 * 2**20
MAX_DISCARDED_BYTES = 64 * 2**20  # of a body that is too large; read, so that its client can read the answer
BODY_TIMEOUT_S = 60.0
FAILED = "the executor failed; its log says why"
CLIENT_LEFT = 499  # nobody reads it


log = logging.getLogger(__name__)


def _guarded(endpoint: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """What nobody foresaw is logged and answered here: starlette would raise it again after its answer, and uvicorn
    would close the connection under the client's next request."""

    async def guarded(request: Request) -> Response:
        try:
            return await endpoint(request)
        except (Refusal, HTTPException, ClientLeft, ClientDisconnect):
            raise
        except Exception:
            log.exception("%s %s failed", request.method, request.url.path)
            return errors.response_of(Broken(FAILED))

    return guarded


class Front:
    """The endpoints of one executor."""

    def __init__(
        self,
        executor: Executor,
        handler: RequestHandler,
        peers: Peers,
        *,
        rng: random.Random,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """rng: draws the seeds that clients leave out. clock: of the world, for `created`."""
        self._executor = executor
        self._handler = handler
        self._peers = peers
        self._rng = rng
        self._clock = clock
        self._created = int(clock())

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/healthz", _guarded(self._health), methods=["GET"]),
                Route("/v1/models", _guarded(self._models), methods=["GET"]),
                Route("/v1/models/{model:path}", _guarded(self._model), methods=["GET"]),
                Route("/v1/chat/completions", _guarded(self._chat), methods=["POST"]),
                Route("/v1/completions", _guarded(self._complete), methods=["POST"]),
                Route("/v1/embeddings", _guarded(self._embed), methods=["POST"]),
            ],
            exception_handlers={
                Refusal: _on_refusal,
                HTTPException: _on_http_error,
                ClientLeft: _on_client_left,
                ClientDisconnect: _on_client_left,
                Exception: _on_failure,
            },
        )

    # What is here

    async def _health(self, request: Request) -> Response:
        if self._executor.draining:
            return JSONResponse({"status": "draining"}, 503)
        if not self._executor.restored.is_set():
            return JSONResponse({"status": "starting"}, 503)
        return JSONResponse({"status": "ok"})

    async def _models(self, request: Request) -> Response:
        listed = [self._described(r) for _, r in sorted(self._executor.routing.items())]
        return JSONResponse({"object": "list", "data": listed})

    async def _model(self, request: Request) -> Response:
        name = str(request.path_params["model"])
        routing = self._executor.routing.get(name)
        if routing is None:
            known = ", ".join(sorted(self._executor.routing)) or "none"
            raise UnknownService(f"model {name!r} is not known here; known: {known}")
        return JSONResponse(self._described(routing))

    def _described(self, routing: ServiceRouting) -> dict[str, Any]:
        reason = self._peers.why_unready(routing)
        said: dict[str, Any] = {
            "id": routing.service,
            "object": "model",
            "created": self._created,
            "owned_by": "epara",
            "ready": not reason,
        }
        return {**said, "reason": reason} if reason else said

    # What it does

    async def _chat(self, request: Request) -> Response:
        wanted = chat_request(await _body(request), request.headers, self._rng)
        model = wanted.request.model_name
        return await self._generate(
            request, wanted, ChatShape(model, int(self._clock()), include_usage=wanted.include_usage)
        )

    async def _complete(self, request: Request) -> Response:
        wanted = completion_request(await _body(request), request.headers, self._rng)
        model = wanted.request.model_name
        return await self._generate(
            request, wanted, CompletionShape(model, int(self._clock()), include_usage=wanted.include_usage)
        )

    async def _generate(self, request: Request, wanted: Generation, shape: Shape) -> Response:
        self._require(GENERATION, wanted.request.model_name, request)
        if not wanted.stream:
            response = await while_there(request.receive, self._infer(wanted.request))
            return JSONResponse(shape.whole(Made.of(response)))

        async def work(on_response: OnResponse) -> None:
            await self._handler.infer(wanted.request, Passport(), call_remaining_s=None, on_response=on_response)

        return TokenStream(work, shape, include_usage=wanted.include_usage)

    async def _embed(self, request: Request) -> Response:
        wanted = embedding_request(await _body(request), request.headers)
        self._require(EMBEDDING, wanted.requests[0].model_name, request)
        return JSONResponse(await while_there(request.receive, embed(wanted, self._infer)))

    async def _infer(self, request: oip.ModelInferRequest) -> oip.ModelInferResponse:
        response = await self._handler.infer(request, Passport(), call_remaining_s=None)
        if response is None:
            raise Unavailable(f"{request.model_name}: ended without an answer")
        return response

    def _require(self, task: str, model: str, request: Request) -> None:
        """Say that a service is of another task, where that is known here; a host elsewhere says it itself."""
        routing = self._executor.routing.get(model)
        tasks = {r.spec.task for _, r in routing.hosted.values()} if routing is not None else set[str]()
        if tasks and task not in tasks:
            raise BadRequest(f"model: expected a {task} service for {request.url.path}, got {', '.join(tasks)}")


async def _body(request: Request) -> dict[str, Any]:
    """The JSON object of a request, read up to a limit of size and time."""
    parts: list[bytes] = []
    num_bytes = 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for part in request.stream():
                num_bytes += len(part)
                if num_bytes <= MAX_BODY_BYTES:
                    parts.append(part)
                elif num_bytes > MAX_DISCARDED_BYTES:
                    break
    except TimeoutError:
        raise HTTPException(408, f"body: expected whole within {BODY_TIMEOUT_S:g} s") from None
    if num_bytes > MAX_BODY_BYTES:
        raise HTTPException(413, f"body: expected at most {MAX_BODY_BYTES} bytes")
    return parse(b"".join(parts))


async def _on_refusal(request: Request, error: Exception) -> Response:
    return errors.response_of(error if isinstance(error, Refusal) else Broken(str(error)))


async def _on_http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        return await _on_failure(request, error)
    codes = {404: "unknown_url", 405: "method_not_allowed", 408: "request_timeout", 413: "request_too_large"}
    message = (
        f"{error.detail}: {request.method} {request.url.path}" if error.status_code in (404, 405) else error.detail
    )
    said = errors.error_object(
        message, type_="invalid_request_error", code=codes.get(error.status_code, "invalid_request")
    )
    return JSONResponse(said, error.status_code, error.headers)


async def _on_client_left(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_LEFT)


async def _on_failure(request: Request, error: Exception) -> Response:
    """What nobody foresaw outside the endpoints: starlette raises it again after this, and uvicorn logs it."""
    return errors.response_of(Broken(FAILED))
