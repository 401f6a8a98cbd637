"""How a plan's route rates become choices: smooth weighted round robin, and streams that stick to their routes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class SmoothWeighted:
    """Deterministic choice in proportion to weights, evenly spread (nginx's smooth weighted round robin).

    Each turn every candidate gains its weight; the richest is chosen and pays the sum of all. Mutable, one owner.
    """

    weights: Mapping[str, float]
    _credit: dict[str, float] = field(default_factory=dict[str, float])

    def __post_init__(self) -> None:
        for key, weight in self.weights.items():
            if weight < 0:
                raise ValueError(f"weights.{key}: expected >= 0, got {weight}")

    def choose(self, among: Collection[str] | None = None) -> str | None:
        """The next key, only among those given if any are; None when nothing is left."""
        able = [k for k in self.weights if among is None or k in among]
        if not able:
            return None
        for k in able:
            self._credit[k] = self._credit.get(k, 0.0) + self.weights[k]
        best = max(able, key=lambda k: self._credit[k])
        self._credit[best] -= sum(self.weights[k] for k in able)
        return best


@dataclass(slots=True)
class _Stream:
    shares: Mapping[str, float]  # frames per second that it takes of each of its routes
    turns: SmoothWeighted  # of runs
    seen_at: float
    route: str = ""  # of the run under way
    left: int = 0  # frames of that run still to come


@dataclass(slots=True)
class StreamTable:
    """Which routes each stream of one service uses at its origin, and for how long that holds.

    A new stream takes the route with the most rate not yet taken by other streams; if that is less than the
    stream's fps, further routes are added until the rate suffices (DP: its frames then go round robin over them,
    weighted). It keeps them while frames come, so that consecutive frames meet in one batch (MF). Where a route's
    replica batches several frames, they go to it as a run of so many, and the turns are turns of runs.
    """

    fps: float
    rates: Mapping[str, float]  # key of a route to frames per second
    frames: Mapping[str, int] = field(default_factory=dict[str, int])  # key of a route to frames of a run; 1 if absent
    forget_after_s: float = 5.0
    _streams: dict[str, _Stream] = field(default_factory=dict[str, _Stream])
    _taken: dict[str, float] = field(default_factory=dict[str, float])

    def choose(self, stream: str, *, now: float, among: Collection[str] | None = None) -> str | None:
        """The route of this stream's next frame; None when none of its routes is among those given."""
        self._forget(now)
        known = self._streams.get(stream)
        if known is None:
            shares = self._assign()
            turns = SmoothWeighted({k: share / self._run(k) for k, share in shares.items()})
            known = self._streams[stream] = _Stream(shares, turns, now)
        known.seen_at = now
        if known.left > 0 and (among is None or known.route in among):
            known.left -= 1
            return known.route
        chosen = known.turns.choose(among)
        if chosen is not None:
            known.route, known.left = chosen, self._run(chosen) - 1
        return chosen

    def end(self, stream: str) -> None:
        """The stream says that it is over: its rate is free at once. Nothing where it is not known."""
        known = self._streams.pop(stream, None)
        for key, share in known.shares.items() if known is not None else ():
            self._taken[key] -= share

    def num_streams(self, now: float) -> int:
        """Streams seen lately."""
        self._forget(now)
        return len(self._streams)

    def _run(self, key: str) -> int:
        return max(1, self.frames.get(key, 1))

    def _assign(self) -> dict[str, float]:
        free = {k: rate - self._taken.get(k, 0.0) for k, rate in self.rates.items()}
        weights: dict[str, float] = {}
        need = self.fps
        for key in sorted(free, key=lambda k: (-free[k], k)):
            if need <= 1e-6 * self.fps and weights:
                break
            share = min(need, free[key]) if free[key] > 0 else (need if not weights else 0.0)
            if share > 0 or not weights:
                weights[key] = max(share, 1e-9)
                need -= share
        for key, share in weights.items():
            self._taken[key] = self._taken.get(key, 0.0) + share
        return weights

    def _forget(self, now: float) -> None:
        for name in [n for n, s in self._streams.items() if now - s.seen_at > self.forget_after_s]:
            self.end(name)
