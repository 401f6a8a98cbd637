"""Least-RTT paths, grown only as far as somebody asks.

networkx finds paths to all servers at once; at 1,000 servers that is a million paths, of which a plan needs a few
thousand. So each origin keeps a search (Dijkstra 1959) that stops once its question is answered and can go on.
Ties go to the path found first, links in the topology's order, as networkx breaks them.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

Neighbours = Mapping[str, Sequence[tuple[str, float, float, int]]]
"""For each server: (neighbour, rtt_ms, bandwidth in bytes/s, directed link: 2 i from between[0], 2 i + 1 back)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """The least-RTT path from an origin to a server; empty when they are the same."""

    hops: tuple[tuple[str, str], ...]  # directed, origin first
    rtt_ms: float
    bandwidth_bytes_per_s: float  # of the narrowest link; inf when there is no link to cross

    def transfer_ms(self, num_bytes: float) -> float:
        """Store-and-forward is not modelled: one transmission at the narrowest link's rate."""
        return 0.0 if not self.hops else 1000.0 * num_bytes / self.bandwidth_bytes_per_s


@dataclass(frozen=True, slots=True)
class Settled:
    """A server whose least RTT from the origin is known."""

    server: str
    rtt_ms: float
    bandwidth_bytes_per_s: float  # of the narrowest link on the way
    before: str  # the server before it on the way; itself at the origin
    link: int  # the directed link from there; -1 at the origin


class Search:
    """Servers around one origin, nearest first."""

    def __init__(self, neighbours: Neighbours, origin: str, without: frozenset[str] = frozenset()) -> None:
        self._neighbours = neighbours
        self._without = without
        self.origin = origin
        self.settled: dict[str, Settled] = {}  # in the order of their RTT
        self._tried: dict[str, float] = {origin: 0.0}
        self._heap: list[tuple[float, int, Settled]] = []
        self._count = 0
        if origin not in without:
            heapq.heappush(self._heap, (0.0, 0, Settled(origin, 0.0, math.inf, origin, -1)))

    def nearest(self) -> Iterator[Settled]:
        """Servers by rising RTT, those known already first."""
        yield from list(self.settled.values())
        while (found := self._next()) is not None:
            yield found

    def to(self, server: str) -> Settled | None:
        """The server, once its path is known; None where there is none."""
        while server not in self.settled:
            if self._next() is None:
                return None
        return self.settled[server]

    def path(self, server: str) -> Path | None:
        found = self.to(server)
        if found is None:
            return None
        return Path(
            hops=tuple((s.before, s.server) for s in self._way(found)),
            rtt_ms=found.rtt_ms,
            bandwidth_bytes_per_s=found.bandwidth_bytes_per_s,
        )

    def links(self, server: str) -> list[int]:
        """Directed links from the origin to a settled server."""
        return [s.link for s in self._way(self.settled[server])]

    def _way(self, end: Settled) -> list[Settled]:
        way: list[Settled] = []
        while end.link >= 0:
            way.append(end)
            end = self.settled[end.before]
        way.reverse()
        return way

    def _next(self) -> Settled | None:
        while self._heap:
            _, _, here = heapq.heappop(self._heap)
            if here.server in self.settled:
                continue
            self.settled[here.server] = here
            for server, rtt_ms, width, link in self._neighbours.get(here.server, ()):
                far = here.rtt_ms + rtt_ms
                if server in self.settled or server in self._without or far >= self._tried.get(server, math.inf):
                    continue
                self._tried[server] = far
                self._count += 1
                step = Settled(server, far, min(here.bandwidth_bytes_per_s, width), here.server, link)
                heapq.heappush(self._heap, (far, self._count, step))
            return here
        return None
