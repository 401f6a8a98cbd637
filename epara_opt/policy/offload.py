"""Where else a request could be on time: EPARA's distributed request handler, our reading of it.

A server that cannot be on time itself forwards to a peer that can, drawn with probability proportional to the
peer's idle goodput as last synchronized: proportional, not the largest, so that many origins do not all run to
the same peer between two synchronizations. At most MAX_HOPS times, never to a server that the request has visited.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

MAX_HOPS = 2
SYNC_EVERY_S = 0.2
STALE_AFTER_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerView:
    """What is known of another server that hosts a service."""

    server: str
    idle_per_s: float  # requests (or frames) per second that it could serve on time beyond what it serves
    response_ms: float  # predicted there for a request that came now
    network_ms: float  # round trip and transfers
    age_s: float  # of this knowledge


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
