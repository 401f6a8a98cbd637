"""Other executors as this one sees them: channels, what they said last, forwarded requests.

Whom to ask and how often is `policy.offload`'s: a bounded number per turn, the longest unheard first. Knowledge of idle
goodput older than STALE_AFTER_S is not used; a plan's route leads to a peer as long as its silence says nothing (two
rounds of turns). A peer that cannot be reached is passed over until a synchronization
succeeds again; gRPC's own back-off paces the attempts to reach it. One that is merely slow to answer (its machine may
be loading a model) is as good as what it said last, until that is stale.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from epara_executors.agent.executor import Executor
from epara_executors.agent.requests import refusal_of
from epara_executors.agent.routing_table import ServiceRouting
from epara_executors.channel import DEFAULT, ChannelSettings
from epara_executors.rpc import epara_pb2 as pb
from epara_executors.rpc import open_inference_pb2 as oip
from epara_executors.rpc.epara_pb2_grpc import ExecutorPeerStub
from epara_executors.rpc.open_inference_pb2_grpc import GRPCInferenceServiceStub
from epara_opt.policy.offload import STALE_AFTER_S, SYNC_EVERY_S, PeerView, alive_for_s, next_to_ask

log = logging.getLogger(__name__)

SYNC_TIMEOUT_S = 0.5
CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
)
RETRY_AFTER_KEY = "retry-after-ms"

Metadata = tuple[tuple[str, str], ...]


class PeerLost(Exception):
    """The peer did not take the request; another may."""


@dataclass(slots=True)
class Peer:
    """One other executor. Mutable; owned by Peers."""

    server: str
    address: str
    channel: grpc.aio.Channel
    idle: Mapping[str, pb.IdleGoodput] = field(default_factory=dict[str, pb.IdleGoodput])
    synced_at: float = -math.inf
    tried_at: float = -math.inf  # when it was asked last, whatever came of it
    asked_at: float = -math.inf  # when the question was sent whose answer came last
    known_since: float = 0.0
    is_down: bool = False
    alive_for_s: float = STALE_AFTER_S  # how long its silence says nothing

    def is_usable(self, now: float) -> bool:
        """Whether a plan's route may lead there: heard of lately, or new and not yet asked."""
        return not self.is_down and now - max(self.synced_at, self.known_since) <= self.alive_for_s


class Peers:
    """Everyone the committed plan names. `run` keeps the knowledge fresh until cancelled."""

    def __init__(self, executor: Executor, *, settings: ChannelSettings = DEFAULT) -> None:
        self._executor = executor
        self._settings = settings
        self._peers: dict[str, Peer] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._met = asyncio.Event()  # another table is in force: ask at once
        self._busy: dict[str, tuple[float, float, float]] = {}  # group: (at, busy_s then, busy share since before)

    def get(self, server: str) -> Peer | None:
        return self._peers.get(server)

    def refresh(self) -> None:
        """Follow the committed plan: channels to new peers, none to those that are gone; ask all of them at once."""
        wanted = {p.server: p.address for s in self._executor.routing.values() for p in s.peers.values() if p.address}
        for server, peer in list(self._peers.items()):
            if wanted.get(server) != peer.address:
                del self._peers[server]
                task = asyncio.create_task(peer.channel.close(grace=30.0))  # what it still answers may end
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
        now = asyncio.get_running_loop().time()
        for server, address in wanted.items():
            if server not in self._peers:
                channel = grpc.aio.insecure_channel(
                    address,
                    options=(*self._settings.options, *CHANNEL_OPTIONS),
                    compression=self._settings.algorithm,
                )
                self._peers[server] = Peer(server, address, channel, known_since=now)
        for peer in self._peers.values():
            peer.alive_for_s = alive_for_s(len(self._peers))
        self._met.set()

    # Synchronization

    async def run(self) -> None:
        """Synchronize with up to FAN_OUT peers every SYNC_EVERY_S, in turns."""
        loop = asyncio.get_running_loop()
        while True:
            started_at = loop.time()
            self.refresh()
            self._met.clear()
            await self.turn()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(started_at + SYNC_EVERY_S):
                    await self._met.wait()

    async def turn(self) -> None:
        """Exchange states with those whose turn it is, at most FAN_OUT of them."""
        # What a peer says by itself counts, but for one whose answer is owed since the last switch.
        last_at = {
            name: p.tried_at if self.is_behind(p) else max(p.tried_at, p.synced_at) for name, p in self._peers.items()
        }
        chosen = [self._peers[name] for name in next_to_ask(last_at)]
        if chosen:
            message = self.message()
            await asyncio.gather(*(self._sync(p, message) for p in chosen))

    async def _sync(self, peer: Peer, message: pb.SyncMessage) -> None:
        stub: Any = ExecutorPeerStub(peer.channel)
        asked_at = peer.tried_at = asyncio.get_running_loop().time()
        try:
            self.heard(await stub.Sync(message, timeout=SYNC_TIMEOUT_S))
            peer.asked_at = asked_at
        except grpc.aio.AioRpcError as e:
            if e.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                return  # slow, not gone: what it said last goes stale by itself
            if not peer.is_down:
                log.warning("peer %s at %s does not answer: %s", peer.server, peer.address, e.code().name)
            peer.is_down = True

    def heard(self, message: pb.SyncMessage) -> None:
        """A peer told its state, in its question or its answer."""
        peer = self._peers.get(message.server)
        if peer is not None:
            peer.idle = {i.service: i for i in message.idle}
            peer.synced_at = asyncio.get_running_loop().time()
            peer.is_down = False

    def is_behind(self, peer: Peer) -> bool:
        """Whether the plan in force here may know more of a peer than the peer has said.

        A change opens replicas at their hosts before it switches routes to them, so that only an answer to a question
        asked since the switch is sure to name them.
        """
        return peer.asked_at < self._executor.switched_at

    def why_unready(self, routing: ServiceRouting) -> str:
        """Empty where a request could be served, here or by a peer."""
        if any(g.is_ready for g, _ in routing.hosted.values()):
            return ""
        now = asyncio.get_running_loop().time()
        found = (self._peers.get(s) for s in routing.peers)
        if any(p is not None and p.is_usable(now) for p in found):
            return ""
        states = [f"{r.spec.replica} is {g.state} {g.detail}".strip() for g, r in routing.hosted.values()]
        states += [f"{s} does not answer" for s in routing.peers]
        return "; ".join(states)

    def message(self) -> pb.SyncMessage:
        """What this executor could still serve on time."""
        executor = self._executor
        now = asyncio.get_running_loop().time()
        idle: list[pb.IdleGoodput] = []
        for name, service in executor.routing.items():
            able = [(g, r) for g, r in service.hosted.values() if g.is_ready and not executor.draining]
            if not able:
                continue
            spec = able[0][1].spec
            due_at = now + spec.deadline_ms / 1000.0
            idle.append(
                pb.IdleGoodput(
                    service=name,
                    idle_per_s=sum(r.idle_per_s(busy_share=self._busy_share(g.spec.group, g.busy_s)) for g, r in able),
                    response_ms=1000.0 * (min(g.finish_at(r, rows=1, due_at=due_at) for g, r in able) - now),
                    deadline_ms=spec.deadline_ms,
                    fps=spec.fps,
                    tpot_ms=spec.tpot_ms,
                )
            )
        return pb.SyncMessage(server=executor.server, generation=executor.generation, at=time.time(), idle=idle)

    def _busy_share(self, group: str, busy_s: float) -> float:
        """Share of time a group's devices were busy, over about the last second."""
        now = asyncio.get_running_loop().time()
        at, then_s, share = self._busy.get(group, (now, busy_s, 0.0))
        if now - at >= 1.0 or group not in self._busy:
            share = min(1.0, (busy_s - then_s) / (now - at)) if now > at else 0.0
            self._busy[group] = (now, busy_s, share)
        return share

    def view(self, server: str, service: str, network_ms: float) -> PeerView | None:
        """What is known of a peer for one service; None while nothing is, or while it is down."""
        peer = self._peers.get(server)
        if peer is None or peer.is_down or service not in peer.idle:
            return None
        said = peer.idle[service]
        return PeerView(
            server=server,
            idle_per_s=said.idle_per_s,
            response_ms=said.response_ms,
            network_ms=network_ms,
            age_s=asyncio.get_running_loop().time() - peer.synced_at,
        )

    # Forwarding

    async def infer(
        self, peer: Peer, request: oip.ModelInferRequest, metadata: Metadata, *, timeout_s: float
    ) -> oip.ModelInferResponse:
        """Let a peer answer. Raises PeerLost, or the peer's Refusal."""
        stub: Any = GRPCInferenceServiceStub(peer.channel)
        try:
            return await stub.ModelInfer(request, metadata=metadata, timeout=max(0.001, timeout_s))
        except grpc.aio.AioRpcError as e:
            raise self._meaning(peer, e) from None

    async def stream(
        self, peer: Peer, request: oip.ModelInferRequest, metadata: Metadata, *, timeout_s: float
    ) -> AsyncIterator[oip.ModelStreamInferResponse]:
        """Let a peer answer one request as a stream. Raises PeerLost or the peer's Refusal."""
        stub: Any = GRPCInferenceServiceStub(peer.channel)

        async def one() -> AsyncIterator[oip.ModelInferRequest]:
            yield request

        call = stub.ModelStreamInfer(one(), metadata=metadata, timeout=max(0.001, timeout_s))
        try:
            async for response in call:
                yield response
        except grpc.aio.AioRpcError as e:
            raise self._meaning(peer, e) from None
        finally:
            call.cancel()

    async def metadata(self, peer: Peer, service: str) -> oip.ModelMetadataResponse:
        """A model's tensors as a host of it declares them. Raises PeerLost or the peer's Refusal."""
        stub: Any = GRPCInferenceServiceStub(peer.channel)
        try:
            return await stub.ModelMetadata(oip.ModelMetadataRequest(name=service), timeout=2.0)
        except grpc.aio.AioRpcError as e:
            raise self._meaning(peer, e) from None

    def _meaning(self, peer: Peer, error: grpc.aio.AioRpcError) -> Exception:
        status, details = error.code(), error.details() or ""
        if status in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNIMPLEMENTED):
            peer.is_down = True  # until the next synchronization says otherwise
            return PeerLost(f"{peer.server} at {peer.address}: {details}")
        if status is grpc.StatusCode.NOT_FOUND:  # it serves that no more, or not yet: others may
            return PeerLost(f"{peer.server}: {details}")
        return refusal_of(status, details, retry_after_ms=retry_after_of(error.trailing_metadata()))

    async def close(self) -> None:
        for peer in self._peers.values():
            with contextlib.suppress(asyncio.CancelledError):
                await peer.channel.close()
        for task in self._closing:
            task.cancel()


def retry_after_of(metadata: Any) -> int:
    """The retry-after-ms of trailing metadata; 0 where there is none."""
    for key, value in metadata or ():
        if key == RETRY_AFTER_KEY:
            with contextlib.suppress(ValueError):
                return int(value)
    return 0
