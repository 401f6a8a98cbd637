"""Server-sent events, and work that ends when its client leaves."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from epara_executors.agent.http_front import errors
from epara_executors.agent.http_front.shapes import Made, Shape
from epara_executors.agent.requests import Broken, Refusal
from epara_executors.agent.ticket import OnResponse
from epara_executors.rpc import open_inference_pb2 as oip

log = logging.getLogger(__name__)

T = TypeVar("T")
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # a proxy that gathers pieces would undo the point
]


class ClientLeft(Exception):
    """Nobody is there to be answered."""


async def while_there(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client leaves; then raises ClientLeft."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_left(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeft
        return working.result()
    finally:
        await _end(working, leaving)


async def _left(receive: Receive) -> None:
    """Until the connection is gone. The body has been read, so nothing else comes."""
    while (await receive())["type"] != "http.disconnect":
        continue


async def _end(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class TokenStream(Response):
    """One generation as events. The status waits for the first of them, so that a refusal is a proper response."""

    def __init__(
        self, work: Callable[[OnResponse], Coroutine[Any, Any, object]], shape: Shape, *, include_usage: bool
    ) -> None:
        """work: makes the answer, handing out each response as it comes."""
        super().__init__()
        self._work = work
        self._shape = shape
        self._include_usage = include_usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        outbox: asyncio.Queue[oip.ModelInferResponse | None] = asyncio.Queue()
        working = asyncio.create_task(self._work(outbox.put_nowait))
        working.add_done_callback(lambda _: outbox.put_nowait(None))
        leaving = asyncio.create_task(_left(receive))
        writing = asyncio.create_task(self._write(outbox, working, scope, receive, send))
        try:
            await asyncio.wait({writing, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                writing.result()
        finally:
            await _end(writing, working, leaving)

    async def _write(
        self,
        outbox: asyncio.Queue[oip.ModelInferResponse | None],
        working: asyncio.Task[object],
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        response = await outbox.get()
        if response is None and (refusal := _refusal_of(working)) is not None:
            await errors.response_of(refusal)(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})

        async def say(event: dict[str, Any] | None) -> None:
            data = "[DONE]" if event is None else json.dumps(event, ensure_ascii=False)
            await send({"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": True})

        opening = self._shape.opening()
        if opening is not None:
            await say(opening)
        last: Made | None = None
        while response is not None:
            made = Made.of(response)
            if made.text:
                await say(self._shape.piece(made.text))
            last = made if made.final else last
            response = await outbox.get()
        refusal = _refusal_of(working)
        if refusal is not None:
            await say(errors.body_of(refusal))
        else:
            await say(self._shape.ending(last.finish_reason if last else ""))
            if self._include_usage:
                await say(self._shape.usage(last.usage if last else {}))
            await say(None)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _refusal_of(working: asyncio.Task[object]) -> Refusal | None:
    """Why work that has ended made no answer, or not all of it."""
    if working.cancelled():
        return Broken("the executor is leaving")
    error = working.exception()
    if error is None or isinstance(error, Refusal):
        return error
    log.error("a streamed request failed: %r", error, exc_info=error)
    return Broken("the executor failed; its log says why")
