"""Where else a request could be on time: EPARA's distributed request handler, our reading of it.

Servers tell each other what they could still do, each asking at most FAN_OUT others every SYNC_EVERY_S and telling its
own state with the question, so that both sides learn. Whoever was neither asked nor heard of for longest is next: of n
others each is heard of at least every ceil(n / FAN_OUT) turns, and no silent one takes another's turn.

A server that cannot be on time itself forwards to a peer that can, drawn with probability proportional to the
peer's idle goodput as last synchronized: proportional, not the largest, so that many origins do not all run to
the same peer between two synchronizations. At most MAX_HOPS times, never to a server that the request has visited.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

MAX_HOPS = 2
SYNC_EVERY_S = 0.2
STALE_AFTER_S = 1.0  # knowledge of idle goodput that is older is not used
FAN_OUT = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerView:
    """What is known of another server that hosts a service."""

    server: str
    idle_per_s: float  # requests (or frames) per second that it could serve on time beyond what it serves
    response_ms: float  # predicted there for a request that came now
    network_ms: float  # round trip and transfers
    age_s: float  # of this knowledge


def next_to_ask(last_at: Mapping[str, float]) -> tuple[str, ...]:
    """The FAN_OUT servers whose last exchange lies furthest back; of equals, in the mapping's order."""
    return tuple(sorted(last_at, key=lambda name: last_at[name])[:FAN_OUT])


def turns_around(num_others: int) -> int:
    """Turns after which every other server has been asked or heard of."""
    return max(1, ceil(num_others / FAN_OUT))


def alive_for_s(num_others: int) -> float:
    """How long silence says nothing about a server: two rounds of turns, and never less than STALE_AFTER_S."""
    return max(STALE_AFTER_S, 2 * turns_around(num_others) * SYNC_EVERY_S)


def eligible(
    peers: Sequence[PeerView], *, remaining_ms: float, visited: Collection[str], hops: int
) -> tuple[PeerView, ...]:
    """Peers that can be on time, as far as fresh knowledge goes."""
    if hops >= MAX_HOPS:
        return ()
    return tuple(
        p
        for p in peers
        if p.server not in visited
        and p.age_s <= STALE_AFTER_S
        and p.idle_per_s > 0
        and p.network_ms + p.response_ms <= remaining_ms
    )


def choose_peer(
    peers: Sequence[PeerView], *, remaining_ms: float, visited: Collection[str], hops: int, draw: float
) -> PeerView | None:
    """One eligible peer, drawn in proportion to idle goodput. draw: uniform in [0, 1)."""
    able = eligible(peers, remaining_ms=remaining_ms, visited=visited, hops=hops)
    left = draw * sum(p.idle_per_s for p in able)
    for p in able:
        left -= p.idle_per_s
        if left < 0:
            return p
    return able[-1] if able else None
