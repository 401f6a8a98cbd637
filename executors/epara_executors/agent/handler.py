"""The request handler: serve here if on time, else where the plan or fresh knowledge says it will be, else refuse.

One request's life: `infer` opens a ticket (checked inputs, deadline), `_choose` names a target by the shared
policies, `_serve` runs it there. A target that is lost (worker died, peer gone or full) is not tried again, and the
next is chosen while the deadline allows. Requests that entered here are counted here, once, whatever happens.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import grpc

from epara_executors.agent.counters import ServiceCounters
from epara_executors.agent.decode import (
    GENERATION_PARAMETERS,
    inputs_of,
    integer,
    outputs_of,
    response_of,
)
from epara_executors.agent.dispatch import WorkerLost
from epara_executors.agent.executor import Executor
from epara_executors.agent.group import DeviceGroup
from epara_executors.agent.peers import Peer, PeerLost, Peers
from epara_executors.agent.replica import Replica
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
from epara_executors.agent.ticket import OnResponse, Ticket, open_ticket
from epara_executors.contents import join_bytes
from epara_executors.rpc import open_inference_pb2 as oip
from epara_executors.worker.frames import Tensor
from epara_opt.policy.admission import admits
from epara_opt.policy.offload import MAX_HOPS, SYNC_EVERY_S, choose_peer

MAX_TRIES = 4
MAX_UNKNOWN = 1024  # services counted, those of the plan included
MAX_NAME = 256  # characters of a service's name that is worth counting


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
        on_ticket: Callable[[Ticket], None] | None = None,
    ) -> oip.ModelInferResponse | None:
        """Answer one request. Raises Refusal.

        With on_response (a stream), every response goes there as it comes, and None is returned. on_ticket is called
        once the request is checked and its deadlines are known.
        """
        try:
            ticket = open_ticket(
                request,
                passport,
                executor=self._executor,
                peers=self._peers,
                call_remaining_s=call_remaining_s,
                on_response=on_response,
            )
        except UnknownService:
            if passport.is_entry:
                self._count_unknown(request.model_name)
            raise
        if on_ticket is not None:
            on_ticket(ticket)
        counters = self._executor.counters.get(request.model_name)
        if counters is None:
            counters = self._executor.counters[request.model_name] = ServiceCounters(request.model_name)
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
            if ticket.given_up:
                counters.late += 1
            else:
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

    async def _try_targets(self, ticket: Ticket, counters: ServiceCounters) -> oip.ModelInferResponse | None:
        """Serve at the best target; when that is lost, at the next, while the deadline allows."""
        loop = asyncio.get_running_loop()
        last: Exception | None = None
        declined: BadRequest | None = None
        for _ in range(MAX_TRIES):
            target = self._choose(ticket)
            if target is None:
                break
            try:
                if isinstance(target, _Here):
                    ticket.tried.add(target.replica.spec.replica)
                    response = await self._serve_here(target, ticket)
                    counters.served += 1
                    target.replica.meter.e2e_s.observe(loop.time() - ticket.arrived_at)
                    return response
                ticket.tried.add(target.peer.server)
                response = await self._serve_there(target, ticket)
                if ticket.passport.is_entry:
                    counters.forwarded += 1
                return response
            except BadRequest as e:
                # Checked here: it is wrong. Checked by a peer alone, it may be too many rows for that one's batch.
                if ticket.tensors is not None or ticket.num_responses:
                    raise
                declined = declined or e
            except (WorkerLost, PeerLost, Shed, Unavailable) as e:
                last = e
                if ticket.num_responses:
                    raise Unavailable(f"{ticket.routing.service}: {e}, after part of the answer was sent") from e
                if loop.time() >= ticket.hard_at:
                    break
                # What it was opened under may be gone by now; a plan that came since knows where to.
                ticket.routing = self._executor.routing.get(ticket.routing.service, ticket.routing)
        if declined is not None and last is None:
            raise declined
        if isinstance(last, Shed):
            raise last
        if last is not None:
            raise Unavailable(f"{ticket.routing.service}: {last}; nothing else can serve it in time")
        raise self._shed(ticket)

    def _shed(self, ticket: Ticket) -> Refusal:
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

    def _choose(self, ticket: Ticket) -> _Here | _There | None:
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
                table = routing.streams(ticket.fps)
                name = table.choose(ticket.stream, now=now, among=usable)
                if ticket.ends_stream:
                    table.end(ticket.stream)
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
            if ticket.stream and len(finish) > 1:  # consecutive frames from a peer shall meet here, too
                name = routing.streams_here(ticket.fps).choose(ticket.stream, now=now, among=finish)
                if name is not None:
                    return _Here(*routing.hosted[name])
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

    async def _serve_here(self, target: _Here, ticket: Ticket) -> oip.ModelInferResponse | None:
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
            params=_for_model(ticket.params, target.replica),
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
                ticket.emit(response_of(ticket.request, (), {**answer.params, **final}))
            return None
        response = response_of(ticket.request, answer.tensors, {**answer.params, **final})
        if ticket.on_response is not None:
            ticket.emit(response)
            return None
        return response

    async def _serve_there(self, target: _There, ticket: Ticket) -> oip.ModelInferResponse | None:
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


def _for_model(params: Mapping[str, Scalar], replica: Replica) -> Mapping[str, Scalar]:
    """What of a request's parameters the model itself is told."""
    if not params or not replica.generates:
        return {}
    return {k: v for k, v in params.items() if k in GENERATION_PARAMETERS}


async def _answered(job: Job, target: _Here) -> Answer:
    """Wait for the answer, at most until the hard deadline. Whoever leaves early gives the place free."""
    alarm = asyncio.get_running_loop().call_at(job.hard_at, _expire, job, target)  # leaner than asyncio.timeout_at
    try:
        return await job.answer
    finally:
        alarm.cancel()
        if job.answer.cancelled():
            target.group.withdraw(target.replica, job)


def _expire(job: Job, target: _Here) -> None:
    if not job.answer.done():
        job.answer.set_exception(TooLate(f"{job.service}: not answered by its deadline"))
        target.group.withdraw(target.replica, job)


def _token_response(request: oip.ModelInferRequest, token: Token) -> oip.ModelInferResponse:
    tensors = [
        Tensor("text", "BYTES", (1,), join_bytes([token.text.encode()])),
        Tensor("tokens", "INT64", (1,), token.token.to_bytes(8, "little", signed=True)),
    ]
    params: dict[str, Scalar] = {"index": token.index, "triton_final_response": token.done, **token.usage}
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
