"""The streams of frames within one ModelStreamInfer call: who belongs to which, and their order (`in_order`).

A frame says its stream by the parameter `stream` or `sequence_id`. Of a service that has frames per second to keep, a
call whose requests say nothing is one stream by itself, over when the call is.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass

from epara_executors.agent.decode import set_parameter
from epara_executors.agent.executor import Executor
from epara_executors.agent.handler import RETRY_PARAMETER, STATUS_PARAMETER
from epara_executors.agent.in_order import InOrder, Place
from epara_executors.agent.peers import Peers
from epara_executors.agent.requests import Refusal, TooLate
from epara_executors.agent.ticket import Ticket, objective_of
from epara_executors.rpc import open_inference_pb2 as oip

Response = oip.ModelStreamInferResponse

_calls = itertools.count(1)


@dataclass(slots=True, eq=False)
class Frame:
    """One frame of a stream while it is at work."""

    request: oip.ModelInferRequest
    place: Place[Response]
    ticket: Ticket | None = None
    task: asyncio.Task[None] | None = None

    def opened(self, ticket: Ticket) -> None:
        """The handler knows its deadline."""
        self.ticket = ticket
        self.place.due_at = ticket.due_at
        if len(self.place.order) > 1:
            self.place.order.advance()

    def respond(self, response: oip.ModelInferResponse) -> None:
        self.place.answer(Response(infer_response=response))

    def end(self) -> None:
        """Its handler has ended. What pointed back here is let go, so that nothing waits for the collector."""
        self.place.end()
        self.ticket = self.task = None

    def give_up(self) -> Response:
        """Its deadline has come, and answers of later frames are waiting."""
        if self.ticket is not None:
            self.ticket.given_up = True
        if self.task is not None:
            self.task.cancel()
        model = self.request.model_name
        return stream_error(
            self.request, TooLate(f"{model}: not answered by its deadline, and later frames of its stream are")
        )


class CallStreams:
    """Of one call; close it with the call."""

    def __init__(
        self, executor: Executor, peers: Peers, *, let_out: Callable[[Response], None], left: Callable[[], None]
    ) -> None:
        """let_out: takes responses in order. left: called once per frame, after its last response was let out."""
        self._executor = executor
        self._peers = peers
        self._let_out = let_out
        self._left = left
        self._orders: dict[tuple[str, str], InOrder[Response]] = {}
        self._own = ""  # name of the call as a stream, once it is one
        self._owned: set[str] = set()  # services of which it is one

    def enter(self, request: oip.ModelInferRequest) -> Frame | None:
        """The request as the next frame of its stream; None where it belongs to none."""
        routing = self._executor.routing.get(request.model_name)
        if routing is None:
            return None
        stream = _named(request)
        if not stream:
            if "stream" in request.parameters or objective_of(routing, self._peers)[1] <= 0:
                return None
            stream = self._own = self._own or f"call {self._executor.incarnation[:8]}.{next(_calls)}"
            self._owned.add(request.model_name)
            request.parameters["stream"].string_param = stream
        key = (request.model_name, stream)
        order = self._orders.get(key)
        if order is None:
            order = self._orders[key] = InOrder(let_out=self._let_out, left=lambda: self._gone(key))
        frame: Frame
        frame = Frame(request, order.enter(lambda: frame.give_up()))
        return frame

    def close(self) -> None:
        """The call is over: its own streams are, too."""
        for order in self._orders.values():
            order.close()
        self._orders.clear()
        for service in self._owned:
            routing = self._executor.routing.get(service)
            if routing is not None:
                routing.end_stream(self._own)

    def _gone(self, key: tuple[str, str]) -> None:
        if key in self._orders and not len(self._orders[key]):  # names are the client's: kept as long as frames are
            del self._orders[key]
        self._left()


def stream_error(request: oip.ModelInferRequest, refusal: Refusal) -> Response:
    """A refusal as a response of a stream; `handler.refusal_in` reads it."""
    response = Response(error_message=f"[{refusal.status.name}] {refusal.message}")
    response.infer_response.model_name = request.model_name
    response.infer_response.id = request.id
    set_parameter(response.infer_response.parameters[STATUS_PARAMETER], refusal.status.name)
    if refusal.retry_after_ms:
        set_parameter(response.infer_response.parameters[RETRY_PARAMETER], refusal.retry_after_ms)
    return response


def _named(request: oip.ModelInferRequest) -> str:
    """The stream that the request names; what is wrong with it the ticket will say."""
    parameters = request.parameters
    if "stream" in parameters and (name := parameters["stream"].string_param):
        return name
    if "sequence_id" in parameters:
        sequence = parameters["sequence_id"]
        return sequence.string_param or (str(sequence.int64_param) if sequence.int64_param else "")
    return ""
