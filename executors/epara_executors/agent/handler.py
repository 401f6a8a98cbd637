"""The request handler: serve here if on time, else where the plan or fresh knowledge says it will be, else refuse.

One request's life: `infer` opens a ticket (checked inputs, deadline), `_choose` names a target by the shared
policies, `_serve` runs it there. A target that is lost (worker died, peer gone or full) is not tried again, and the
next is chosen while the deadline allows. Requests that entered here are counted here, once, whatever happens.

Deadlines. due_at is the objective: the service's deadline, or the client's `timeout`, or what the sender left, and
never past the gRPC deadline; admission and order go by it. hard_at is when the call ends for certain.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import grpc

from epara_executors.agent.counters import ServiceCounters
from epara_executors.agent.decode import (
    GENERATION_PARAMETERS,
    inputs_of,
    integer,
    outputs_of,
    parameters_of,
    response_of,
    rows_of,
)
from epara_executors.agent.executor import Executor
from epara_executors.agent.group import DeviceGroup, WorkerLost
from epara_executors.agent.peers import Peer, PeerLost, Peers
from epara_executors.agent.replica import GENERATION, Replica
from epara_executors.agent.requests import (
    Answer,
    BadRequest,
    Job,
    Passport,
    Refusal,
    Scalar,
    Shed,
    Token,
    TooLate,
    Unavailable,
    UnknownService,
    refusal_of,
)
from epara_executors.agent.routing_table import ServiceRouting
from epara_executors.rpc import open_inference_pb2 as oip
from epara_executors.tensors import join_bytes
from epara_executors.worker.frames import Tensor
from epara_opt.policy.admission import admits
from epara_opt.policy.offload import MAX_HOPS, SYNC_EVERY_S, choose_peer

DEFAULT_DEADLINE_MS = 60_000.0  # of a service whose objective is not known here yet
MIN_GRACE_S = 1.0  # how long past the objective a started request may still end, unless the client says
MAX_TRIES = 4
MAX_UNKNOWN = 1024  # services counted, those of the plan included
MAX_NAME = 256  # characters of a service's name that is worth counting
DEFAULT_MAX_TOKENS = 16

OnResponse = Callable[[oip.ModelInferResponse], None]


@dataclass(slots=True, kw_only=True)
class _Ticket:
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


@dataclass(frozen=True, slots=True)
class _Here:
    group: DeviceGroup
    replica: Replica


@dataclass(frozen=True, slots=True)
class _There:
    peer: Peer
    network_ms: float


class RequestHandler:
    """Owns no state but the rng: executor and peers do."""

    def __init__(self, executor: Executor, peers: Peers, *, rng: random.Random) -> None:
        self._executor = executor
        self._peers = peers
        self._rng = rng

    async def infer(
        self,
        request: oip.ModelInferRequest,
        passport: Passport,
        *,
        call_remaining_s: float | None,
        on_response: OnResponse | None = None,
    ) -> oip.ModelInferResponse | None:
        """Answer one request. Raises Refusal.

        With on_response (a stream), every response goes there as it comes, and None is returned.
        """
        try:
            ticket = self._open(request, passport, call_remaining_s, on_response)
        except UnknownService:
            if passport.is_entry:
                self._count_unknown(request.model_name)
            raise
        counters = self._executor.counters.setdefault(request.model_name, ServiceCounters(request.model_name))
        if not passport.is_entry:
            return await self._try_targets(ticket, counters)
        counters.arrived += 1
        try:
            response = await self._try_targets(ticket, counters)
        except Shed:
            counters.shed += 1
            raise
        except TooLate:
            counters.late += 1
            raise
        except BaseException:  # a client that left counts as failed too
            counters.failed += 1
            raise
        now = asyncio.get_running_loop().time()
        latency_ms = 1000.0 * (now - ticket.arrived_at)
        counters.answered(at=now, latency_ms=latency_ms, deadline_ms=ticket.slo_ms)
        return response

    def _count_unknown(self, model: str) -> None:
        """Demand for what is placed nowhere must be seen, or nothing would ever place it. Bounded: names are theirs."""
        known = self._executor.counters
        if model in known or (len(known) < MAX_UNKNOWN and len(model) <= MAX_NAME):
            counters = known.setdefault(model, ServiceCounters(model))
            counters.arrived += 1
            counters.failed += 1

    def _open(
        self,
        request: oip.ModelInferRequest,
        passport: Passport,
        call_remaining_s: float | None,
        on_response: OnResponse | None,
    ) -> _Ticket:
        """Check the request and set its deadlines."""
        model = request.model_name
        routing = self._executor.routing.get(model)
        if routing is None:
            known = ", ".join(sorted(self._executor.routing)) or "none"
            raise UnknownService(f"model {model!r} is not known here; known: {known}")
        if self._executor.draining:
            raise Unavailable(f"executor {self._executor.server} is draining")
        if request.model_version not in ("", "1"):
            raise UnknownService(f"model {model!r}: expected version 1, got {request.model_version}")
        spec = next((r.spec for _, r in routing.hosted.values()), None)
        deadline_ms, fps, tpot_ms = self._objective(routing)
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
        timeout_us = integer(params, "timeout", default=0, model=model)
        usual_tokens = spec.output_tokens if spec is not None and spec.output_tokens else DEFAULT_MAX_TOKENS
        tokens = integer(params, "max_tokens", default=usual_tokens, model=model)
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
        return _Ticket(
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

    def _objective(self, routing: ServiceRouting) -> tuple[float, float, float]:
        """(deadline_ms, fps, tpot_ms) of a service: from a replica here, else as a peer told; zeros until then."""
        for _, replica in routing.hosted.values():
            return replica.spec.deadline_ms, replica.spec.fps, replica.spec.tpot_ms
        for server in routing.peers:
            peer = self._peers.get(server)
            if peer is not None and (said := peer.idle.get(routing.service)) is not None:
                return said.deadline_ms, said.fps, said.tpot_ms
        return 0.0, 0.0, 0.0

    async def _try_targets(self, ticket: _Ticket, counters: ServiceCounters) -> oip.ModelInferResponse | None:
        """Serve at the best target; when that is lost, at the next, while the deadline allows."""
        loop = asyncio.get_running_loop()
        last: Exception | None = None
        for _ in range(MAX_TRIES):
            target = self._choose(ticket)
            if target is None:
                break
            try:
                if isinstance(target, _Here):
                    ticket.tried.add(target.replica.spec.replica)
                    response = await self._serve_here(target, ticket)
                    counters.served += 1
                    return response
                ticket.tried.add(target.peer.server)
                response = await self._serve_there(target, ticket)
                if ticket.passport.is_entry:
                    counters.forwarded += 1
                return response
            except (WorkerLost, PeerLost, Shed, Unavailable) as e:
                last = e
                if ticket.num_responses:
                    raise Unavailable(f"{ticket.routing.service}: {e}, after part of the answer was sent") from e
                if loop.time() >= ticket.hard_at:
                    break
                # What it was opened under may be gone by now; a plan that came since knows where to.
                ticket.routing = self._executor.routing.get(ticket.routing.service, ticket.routing)
        if isinstance(last, Shed):
            raise last
        if last is not None:
            raise Unavailable(f"{ticket.routing.service}: {last}; nothing else can serve it in time")
        raise self._shed(ticket)

    def _shed(self, ticket: _Ticket) -> Refusal:
        """Refuse at once, and say when a retry makes sense."""
        now = asyncio.get_running_loop().time()
        routing = ticket.routing
        finishes = [g.finish_at(r, rows=ticket.rows, due_at=ticket.due_at) for g, r in routing.hosted.values()]
        earliest = min(finishes, default=math.inf)
        needs_s = ticket.due_at - now
        where = f"within {1000.0 * needs_s:.0f} ms"
        if earliest < math.inf:
            retry_s = max(0.001, earliest - ticket.due_at)
            here = f"the soonest here is {1000.0 * (earliest - now):.0f} ms"
        else:
            retry_s = SYNC_EVERY_S
            here = "no replica here is ready" if routing.hosted else "no replica is here"
        message = f"{routing.service}: cannot be answered {where}: {here}, and no peer can"
        return Shed(message, retry_after_ms=math.ceil(1000.0 * retry_s))

    # Choice

    def _choose(self, ticket: _Ticket) -> _Here | _There | None:
        """The plan's routes first (for what enters here), then whatever here is on time, then a peer that is."""
        now = asyncio.get_running_loop().time()
        routing = ticket.routing
        remaining_ms = 1000.0 * (ticket.due_at - now)
        finish: dict[str, float] = {}
        for name, (group, replica) in routing.hosted.items():
            if name not in ticket.tried:
                at = group.finish_at(replica, rows=ticket.rows, due_at=ticket.due_at)
                if admits(finish_at=at, due_at=ticket.due_at):
                    finish[name] = at
        may_forward = ticket.passport.hops < MAX_HOPS
        shunned = {self._executor.server, *ticket.passport.visited, *ticket.tried}
        if ticket.passport.is_entry and routing.routes:
            usable = self._usable_routes(routing, finish, shunned, remaining_ms, now)
            name = None
            if ticket.stream:
                name = routing.streams(ticket.fps).choose(ticket.stream, now=now, among=usable)
            if name is None:
                name = routing.weighted.choose(usable)
            if name is not None and name in finish:
                return _Here(*routing.hosted[name])
            if name is not None:
                route = routing.routes[name]
                peer = self._peers.get(route.server)
                if peer is not None:
                    return _There(peer, route.network_ms)
        if finish:
            return _Here(*routing.hosted[min(finish, key=lambda n: finish[n])])
        if not may_forward:
            return None
        views = [self._peers.view(p.server, routing.service, p.network_ms) for p in routing.peers.values()]
        chosen = choose_peer(
            [v for v in views if v is not None],
            remaining_ms=remaining_ms,
            visited=shunned,
            hops=ticket.passport.hops,
            draw=self._rng.random(),
        )
        peer = self._peers.get(chosen.server) if chosen is not None else None
        return _There(peer, chosen.network_ms) if peer is not None and chosen is not None else None

    def _usable_routes(
        self, routing: ServiceRouting, finish: Mapping[str, float], shunned: set[str], remaining_ms: float, now: float
    ) -> set[str]:
        """Routes that lead to an answer in time, as far as is known."""
        usable: set[str] = set()
        for name, route in routing.routes.items():
            if name in finish:
                usable.add(name)
            elif route.server not in shunned:
                peer = self._peers.get(route.server)
                if peer is None or not peer.is_usable(now) or route.network_ms > remaining_ms:
                    continue
                view = self._peers.view(route.server, routing.service, route.network_ms)
                if view is None:
                    if self._peers.is_behind(peer):
                        usable.add(name)
                elif view.network_ms + view.response_ms <= remaining_ms:
                    usable.add(name)
        return usable

    # Service

    async def _serve_here(self, target: _Here, ticket: _Ticket) -> oip.ModelInferResponse | None:
        loaded = target.replica.loaded
        if loaded is None:
            raise WorkerLost("the replica is not loaded")
        tensors = ticket.tensors if ticket.tensors is not None else inputs_of(ticket.request, loaded.inputs)
        streams_tokens = ticket.params.get("stream") is True
        done_sent = False

        def on_token(token: Token) -> None:
            nonlocal done_sent
            done_sent = done_sent or token.done
            ticket.emit(_token_response(ticket.request, token))

        job = Job(
            service=ticket.routing.service,
            rows=ticket.rows,
            tensors=tensors,
            params={k: v for k, v in ticket.params.items() if k in GENERATION_PARAMETERS and target.replica.generates},
            outputs=outputs_of(ticket.request, loaded.outputs),
            queued_at=asyncio.get_running_loop().time(),
            due_at=ticket.due_at,
            hard_at=ticket.hard_at,
            stream=ticket.stream,
            priority=integer(ticket.params, "priority", default=0, model=ticket.routing.service),
            on_token=on_token if streams_tokens else None,
        )
        target.group.submit(target.replica, job)
        answer = await _answered(job, target)
        final: dict[str, Scalar] = {"triton_final_response": True} if ticket.on_response else {}
        if streams_tokens and ticket.on_response is not None:
            if not done_sent:
                ticket.emit(response_of(ticket.request, (), final))
            return None
        response = response_of(ticket.request, answer.tensors, final)
        if ticket.on_response is not None:
            ticket.emit(response)
            return None
        return response

    async def _serve_there(self, target: _There, ticket: _Ticket) -> oip.ModelInferResponse | None:
        now = asyncio.get_running_loop().time()
        remaining_ms = 1000.0 * (ticket.due_at - now) - target.network_ms
        refused_by = tuple(s for s in sorted(ticket.tried & ticket.routing.peers.keys()) if s != target.peer.server)
        passport = Passport(hops=ticket.passport.hops, visited=(*ticket.passport.visited, *refused_by))
        metadata = passport.next_hop(self._executor.server, remaining_ms=max(0.0, remaining_ms))
        timeout_s = ticket.hard_at - now
        if ticket.on_response is None:
            return await self._peers.infer(target.peer, ticket.request, metadata, timeout_s=timeout_s)
        async for response in self._peers.stream(target.peer, ticket.request, metadata, timeout_s=timeout_s):
            if response.error_message:
                refusal = refusal_in(response)
                if isinstance(refusal, UnknownService):  # it serves that no more, or not yet: others may
                    raise PeerLost(f"{target.peer.server}: {refusal}")
                raise refusal
            ticket.emit(response.infer_response)
        return None


async def _answered(job: Job, target: _Here) -> Answer:
    """Wait for the answer, at most until the hard deadline. Whoever leaves early gives the place free."""
    try:
        async with asyncio.timeout_at(job.hard_at):
            return await job.answer
    except TimeoutError:
        raise TooLate(f"{job.service}: not answered by its deadline") from None
    finally:
        if job.answer.cancelled() or not job.answer.done():
            target.group.withdraw(target.replica, job)


def _max_rows(routing: ServiceRouting) -> int:
    return max(r.rule.max_rows for _, r in routing.hosted.values())


def _token_response(request: oip.ModelInferRequest, token: Token) -> oip.ModelInferResponse:
    tensors = [
        Tensor("text", "BYTES", (1,), join_bytes([token.text.encode()])),
        Tensor("tokens", "INT64", (1,), token.token.to_bytes(8, "little", signed=True)),
    ]
    params: dict[str, Scalar] = {"index": token.index, "triton_final_response": token.done}
    if token.finish_reason:
        params["finish_reason"] = token.finish_reason
    return response_of(request, tensors, params)


STATUS_PARAMETER = "epara_status"
RETRY_PARAMETER = "epara_retry_after_ms"


def refusal_in(response: oip.ModelStreamInferResponse) -> Refusal:
    """The refusal that a stream's error response carries."""
    params = response.infer_response.parameters
    name = params[STATUS_PARAMETER].string_param if STATUS_PARAMETER in params else ""
    status = grpc.StatusCode.__members__.get(name, grpc.StatusCode.INTERNAL)
    retry_after_ms = params[RETRY_PARAMETER].int64_param if RETRY_PARAMETER in params else 0
    message = response.error_message.removeprefix(f"[{name}] ")
    return refusal_of(status, message, retry_after_ms=retry_after_ms)
