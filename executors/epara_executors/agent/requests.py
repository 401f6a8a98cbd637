"""One request inside an agent, and why it may not be answered.

Refusals form a small tree; each knows its gRPC status, so that the planes map none by hand:

Refusal
|- UnknownService      NOT_FOUND            no plan in force serves it
|- BadRequest          INVALID_ARGUMENT     the client must change the request
|- Shed                RESOURCE_EXHAUSTED   cannot be on time anywhere known; carries when to retry
|- TooLate             DEADLINE_EXCEEDED    admitted, then overtaken by its deadline
|- Unavailable         UNAVAILABLE          what served it is gone and nothing else can in time
|- Broken              INTERNAL             the model failed on it
`- NotOffered          UNIMPLEMENTED        the protocol knows it, this server does not offer it
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import grpc

from epara_executors.worker.frames import Tensor

Scalar = str | int | float | bool


class Refusal(Exception):
    """A request that is not answered with tensors."""

    status = grpc.StatusCode.INTERNAL

    def __init__(self, message: str, *, retry_after_ms: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_ms = retry_after_ms


class UnknownService(Refusal):
    status = grpc.StatusCode.NOT_FOUND


class BadRequest(Refusal):
    status = grpc.StatusCode.INVALID_ARGUMENT


class Shed(Refusal):
    status = grpc.StatusCode.RESOURCE_EXHAUSTED


class TooLate(Refusal):
    status = grpc.StatusCode.DEADLINE_EXCEEDED


class Unavailable(Refusal):
    status = grpc.StatusCode.UNAVAILABLE


class Broken(Refusal):
    status = grpc.StatusCode.INTERNAL


class NotOffered(Refusal):
    status = grpc.StatusCode.UNIMPLEMENTED


_BY_STATUS: dict[grpc.StatusCode, type[Refusal]] = {
    c.status: c for c in (UnknownService, BadRequest, Shed, TooLate, Unavailable, Broken, NotOffered)
}


def refusal_of(status: grpc.StatusCode, message: str, *, retry_after_ms: int = 0) -> Refusal:
    """The refusal that another executor's status means; anything unforeseen is Unavailable."""
    return _BY_STATUS.get(status, Unavailable)(message, retry_after_ms=retry_after_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One step of a generation that streams."""

    index: int
    token: int
    text: str
    done: bool
    finish_reason: str
    usage: Mapping[str, int]  # of the last step; else empty


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Output tensors, and where they were made."""

    tensors: Sequence[Tensor]
    server: str = ""
    params: Mapping[str, Scalar] = field(default_factory=dict[str, Scalar])  # finish_reason, prompt_tokens, ...


_ids = itertools.count(1)


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """One request at one replica, from admission to answer. The device group sets `started`; `answer` ends it.

    Instants are of the event loop's clock. due_at is the objective that admission and EDF use; hard_at is when the
    caller has left for certain.
    """

    service: str
    rows: int
    tensors: Sequence[Tensor]
    params: Mapping[str, Scalar]
    queued_at: float
    due_at: float
    hard_at: float
    outputs: tuple[str, ...] = ()  # names wanted; empty: all
    stream: str = ""
    priority: int = 0
    on_token: Callable[[Token], None] | None = None
    id: str = field(default_factory=lambda: str(next(_ids)))
    started: bool = False
    answer: asyncio.Future[Answer] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


@dataclass(frozen=True, slots=True, kw_only=True)
class Passport:
    """Where a request has been. Travels between executors as gRPC metadata."""

    hops: int = 0
    visited: tuple[str, ...] = ()
    remaining_ms: float | None = None  # set by the sender; None at the entry

    ENTRY: ClassVar[Passport]  # of a client's request
    PREFIX = "epara-"
    HOPS_KEY = "epara-hops"
    VISITED_KEY = "epara-visited"
    DEADLINE_KEY = "epara-deadline-ms"

    @property
    def is_entry(self) -> bool:
        return self.hops == 0

    @staticmethod
    def from_metadata(metadata: Mapping[str, str]) -> Passport:
        """Raises BadRequest where a key does not hold what it must."""
        try:
            hops = int(metadata.get(Passport.HOPS_KEY, "0"))
            remaining = metadata.get(Passport.DEADLINE_KEY)
            remaining_ms = None if remaining is None else float(remaining)
        except ValueError as e:
            raise BadRequest(f"metadata {Passport.HOPS_KEY}, {Passport.DEADLINE_KEY}: {e}") from None
        if hops < 0:
            raise BadRequest(f"metadata {Passport.HOPS_KEY}: expected >= 0, got {hops}")
        visited = tuple(v for v in metadata.get(Passport.VISITED_KEY, "").split(",") if v)
        return Passport(hops=hops, visited=visited, remaining_ms=remaining_ms)

    def next_hop(self, server: str, *, remaining_ms: float) -> tuple[tuple[str, str], ...]:
        """Metadata for the peer, as sent by `server`."""
        return (
            (self.HOPS_KEY, str(self.hops + 1)),
            (self.VISITED_KEY, ",".join(dict.fromkeys((*self.visited, server)))),
            (self.DEADLINE_KEY, f"{remaining_ms:.3f}"),
        )


Passport.ENTRY = Passport()
