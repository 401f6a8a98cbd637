"""One model of many layers over nodes of unlike speed: the problem. Semantics: Helix (ASPLOS'25), whole runs only.

Every node n holds one run of consecutive layers, [start, start + k), and passes at most rate_n(k) tokens/s through it.
A token enters at the source, meets every layer once in order, and leaves at the sink:

    source -> i  where start_i = 0;   i -> j  where end_i = start_j;   i -> sink  where end_i = num_layers

each over a link that there is, and no faster than it. Wanted: the runs with the largest flow from source to sink.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from epara_opt.errors import InputError, Violation

SOURCE, SINK = "source", "sink"

Interval = tuple[int, int]  # [start, end) in layers


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerNode:
    """A server, and how fast it is with 1, 2, ... layers on it. What it has no memory for is not listed."""

    id: str
    layers_to_tokens_per_s: tuple[float, ...]  # [k - 1] with k layers; need not fall with k

    def __post_init__(self) -> None:
        path = f"nodes.{self.id}"
        if not self.id or self.id in (SOURCE, SINK):
            raise InputError(
                Violation(path="nodes.id", law=f"expected a name other than {SOURCE}, {SINK}", value=self.id)
            )
        if not self.layers_to_tokens_per_s:
            raise InputError(Violation(path=f"{path}.layers_to_tokens_per_s", law="expected >= 1 rate", value="none"))
        for k, rate in enumerate(self.layers_to_tokens_per_s, start=1):
            if not (math.isfinite(rate) and rate >= 0):
                place = f"{path}.layers_to_tokens_per_s[{k}]"
                raise InputError(Violation(path=place, law="expected finite and >= 0", value=str(rate)))


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerLink:
    """One direction of a connection. `source` and `sink` are the client's side."""

    origin: str
    target: str
    max_tokens_per_s: float

    def __post_init__(self) -> None:
        path = f"links.{self.origin}->{self.target}"
        if self.origin == self.target or self.origin == SINK or self.target == SOURCE:
            raise InputError(Violation(path=path, law="expected from one node or the source to another or the sink"))
        if not (math.isfinite(self.max_tokens_per_s) and self.max_tokens_per_s >= 0):
            law = "expected finite and >= 0"
            raise InputError(Violation(path=f"{path}.max_tokens_per_s", law=law, value=str(self.max_tokens_per_s)))


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSplit:
    """The problem. Links that are not listed do not exist."""

    num_layers: int
    nodes: tuple[LayerNode, ...]
    links: tuple[LayerLink, ...]

    def __post_init__(self) -> None:
        if self.num_layers < 1:
            raise InputError(Violation(path="num_layers", law="expected >= 1", value=str(self.num_layers)))
        if not self.nodes:
            raise InputError(Violation(path="nodes", law="expected >= 1", value="none"))
        ids = [n.id for n in self.nodes]
        for i, node in enumerate(ids):
            if node in ids[:i]:
                raise InputError(Violation(path=f"nodes[{i}].id", law="expected every name once", value=node))
        known, seen = {*ids, SOURCE, SINK}, set[tuple[str, str]]()
        for i, link in enumerate(self.links):
            for end in (link.origin, link.target):
                if end not in known:
                    raise InputError(Violation(path=f"links[{i}]", law="expected ends among the nodes", value=end))
            if (link.origin, link.target) in seen:
                value = f"{link.origin}->{link.target}"
                raise InputError(Violation(path=f"links[{i}]", law="expected every direction once", value=value))
            seen.add((link.origin, link.target))

    def max_layers(self, node: int) -> int:
        return min(self.num_layers, len(self.nodes[node].layers_to_tokens_per_s))

    def reachable_rates(self) -> tuple[tuple[float, ...], ...]:
        """Per node, with 1, 2, ... layers: the most that can pass through it wherever its run lies.

        No more than its rate, than what its links bring (from the source if the run begins the model, else from other
        nodes), and than what they take away.
        """
        at = self.link_rates()
        rates: list[tuple[float, ...]] = []
        for i, node in enumerate(self.nodes):
            first, last = at.get((SOURCE, node.id), 0.0), at.get((node.id, SINK), 0.0)
            brought = sum(at.get((o.id, node.id), 0.0) for o in self.nodes)
            taken = sum(at.get((node.id, o.id), 0.0) for o in self.nodes)
            links = min(first, last), max(min(first, taken), min(brought, last)), min(brought, taken)
            row: list[float] = []
            for k, rate in enumerate(node.layers_to_tokens_per_s[: self.max_layers(i)], start=1):
                spare = self.num_layers - k  # layers outside the run: in none, on one side, on both
                row.append(min(rate, links[0] if spare == 0 else links[1] if spare == 1 else max(links[1:])))
            rates.append(tuple(row))
        return tuple(rates)

    def link_rates(self) -> Mapping[tuple[str, str], float]:
        return {(link.origin, link.target): link.max_tokens_per_s for link in self.links}

    def check(self, intervals: tuple[Interval, ...]) -> None:
        """Raises InputError unless every node holds one run that it has memory for."""
        if len(intervals) != len(self.nodes):
            law, value = "expected a run of layers for every node", str(len(intervals))
            raise InputError(Violation(path="intervals", law=law, value=value))
        for i, (start, end) in enumerate(intervals):
            if not (0 <= start < end <= self.num_layers and end - start <= self.max_layers(i)):
                law = f"expected 1 to {self.max_layers(i)} layers within [0, {self.num_layers})"
                raise InputError(Violation(path=f"intervals.{self.nodes[i].id}", law=law, value=f"[{start}, {end})"))
