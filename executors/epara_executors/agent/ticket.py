"""A request as it enters an executor: checked inputs, its deadlines, where it has been tried.

due_at is the objective: the service's deadline, or the client's `timeout`, or what the sender left, and never past
the gRPC deadline; admission and order go by it. hard_at is when the call ends for certain.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from epara_executors.agent.decode import inputs_of, integer, parameters_of, rows_of
from epara_executors.agent.executor import Executor
from epara_executors.agent.peers import Peers
from epara_executors.agent.replica import GENERATION
from epara_executors.agent.requests import BadRequest, Passport, Scalar, Unavailable, UnknownService
from epara_executors.agent.routing_table import ServiceRouting
from epara_executors.rpc import open_inference_pb2 as oip
from epara_executors.worker.frames import Tensor

DEFAULT_DEADLINE_MS = 60_000.0  # of a service whose objective is not known here yet
MIN_GRACE_S = 1.0  # how long past the objective a started request may still end, unless the client says
DEFAULT_MAX_TOKENS = 16

OnResponse = Callable[[oip.ModelInferResponse], None]


@dataclass(slots=True, kw_only=True)
class Ticket:
    """One request on its way through this executor. Instants of the event loop's clock."""

    request: oip.ModelInferRequest
    passport: Passport
    routing: ServiceRouting
    params: Mapping[str, Scalar]
    arrived_at: float
    due_at: float
    hard_at: float
    slo_ms: float  # 0: not known
    fps: float
    stream: str
    tensors: list[Tensor] | None  # checked inputs; None where no host here can check them
    rows: int
    on_response: OnResponse | None
    num_responses: int = 0
    tried: set[str] = field(default_factory=set[str])

    def emit(self, response: oip.ModelInferResponse) -> None:
        if self.on_response is not None:
            self.num_responses += 1
            self.on_response(response)


def open_ticket(
    request: oip.ModelInferRequest,
    passport: Passport,
    *,
    executor: Executor,
    peers: Peers,
    call_remaining_s: float | None,
    on_response: OnResponse | None,
) -> Ticket:
    """Check the request and set its deadlines. Raises Refusal."""
    model = request.model_name
    routing = executor.routing.get(model)
    if routing is None:
        known = ", ".join(sorted(executor.routing)) or "none"
        raise UnknownService(f"model {model!r} is not known here; known: {known}")
    if executor.draining:
        raise Unavailable(f"executor {executor.server} is draining")
    if request.model_version not in ("", "1"):
        raise UnknownService(f"model {model!r}: expected version 1, got {request.model_version}")
    spec = next((r.spec for _, r in routing.hosted.values()), None)
    deadline_ms, fps, tpot_ms = _objective(routing, peers)
    # A service that only others host is checked there; its parameters are anything that could be right.
    params = parameters_of(request, generates=spec is None or spec.task == GENERATION)
    if params.get("stream") is True and on_response is None:
        raise BadRequest(f"{model}: parameter 'stream': expected a ModelStreamInfer call for token streams")
    tensors: list[Tensor] | None = None
    rows = 1
    for _, replica in routing.hosted.values():
        if replica.loaded is not None:
            tensors = inputs_of(request, replica.loaded.inputs)
            if not replica.generates:
                rows = rows_of(model, tensors, replica.loaded.inputs, max_rows=_max_rows(routing))
            break
    stream = params.get("stream", "")
    now = asyncio.get_running_loop().time()
    timeout_us = integer(params, "timeout", default=0, model=model) if params else 0
    usual_tokens = spec.output_tokens if spec is not None and spec.output_tokens else DEFAULT_MAX_TOKENS
    tokens = integer(params, "max_tokens", default=usual_tokens, model=model) if params else usual_tokens
    pace_ms = tpot_ms * tokens
    objective_ms = deadline_ms or DEFAULT_DEADLINE_MS
    if passport.remaining_ms is not None:
        objective_ms = passport.remaining_ms
    if timeout_us:
        objective_ms = timeout_us / 1000.0
    due_at = now + objective_ms / 1000.0
    hard_at = due_at + pace_ms / 1000.0
    if not timeout_us:
        hard_at += max(MIN_GRACE_S, objective_ms / 1000.0)
    if call_remaining_s is not None:
        hard_at = min(hard_at if timeout_us else math.inf, now + call_remaining_s)
        due_at = min(due_at, hard_at)
    return Ticket(
        request=request,
        passport=passport,
        routing=routing,
        params=params,
        arrived_at=now,
        due_at=due_at,
        hard_at=hard_at,
        slo_ms=deadline_ms + pace_ms if deadline_ms else 0.0,
        fps=fps,
        stream=stream if isinstance(stream, str) else "",
        tensors=tensors,
        rows=rows,
        on_response=on_response,
    )


def _objective(routing: ServiceRouting, peers: Peers) -> tuple[float, float, float]:
    """(deadline_ms, fps, tpot_ms) of a service: from a replica here, else as a peer told; zeros until then."""
    for _, replica in routing.hosted.values():
        return replica.spec.deadline_ms, replica.spec.fps, replica.spec.tpot_ms
    for server in routing.peers:
        peer = peers.get(server)
        if peer is not None and (said := peer.idle.get(routing.service)) is not None:
            return said.deadline_ms, said.fps, said.tpot_ms
    return 0.0, 0.0, 0.0


def _max_rows(routing: ServiceRouting) -> int:
    return max(r.rule.max_rows for _, r in routing.hosted.values())
