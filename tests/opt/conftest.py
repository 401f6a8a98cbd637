"""A small edge that a reader can compute by hand, as builders that each test bends to its point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import pytest

from epara_opt.domain.profile import ProfileCatalogue, ProfileRow
from epara_opt.domain.service import Demand, Model, RequestShape, Sensitivity, Service, Task
from epara_opt.domain.topology import DeviceKind, DevicePool, DeviceType, Link, Server, ServerKind, Topology
from epara_opt.placement import Flow, PlacedGroup, Placement, assemble
from epara_opt.plan import Plan, Stop
from epara_opt.problem import PlacementProblem, PlanningRules, build_problem
from epara_opt.units import GIB
from epara_opt.unserved import explain_unserved


def row(model: str, **fields: Any) -> ProfileRow:
    """A measured point on l4; half a GiB and 6 s of loading unless told."""
    given = {"device_type": "l4", "memory_bytes": GIB // 2, "load_s": 6.0, "source": "by hand", **fields}
    return ProfileRow(model=model, **given)


def latency_service(name: str, **fields: Any) -> Service:
    given: dict[str, Any] = {"slo_ms": 100.0, "request": RequestShape(), **fields}
    model = Model(source=name, task=Task.IMAGE_CLASSIFICATION)
    return Service(name=name, model=model, sensitivity=Sensitivity.LATENCY, **given)


def stream_service(name: str, **fields: Any) -> Service:
    given: dict[str, Any] = {"fps": 10.0, "frame_deadline_ms": 200.0, "request": RequestShape(), **fields}
    model = Model(source=name, task=Task.IMAGE_SEGMENTATION)
    return Service(name=name, model=model, sensitivity=Sensitivity.FREQUENCY, **given)


def chat_service(name: str, **fields: Any) -> Service:
    given: dict[str, Any] = {"slo_ms": 1000.0, "request": RequestShape(prompt_tokens=100, output_tokens=10), **fields}
    model = Model(source=name, task=Task.TEXT_GENERATION)
    return Service(name=name, model=model, sensitivity=Sensitivity.LATENCY, **given)


@dataclass(kw_only=True)
class Edge:
    """Two servers, a (2 l4) and b (1 l4), 10 ms apart. `classify` answers in 20 ms and serves 100/s per l4."""

    l4_at_a: int = 2
    l4_at_b: int = 1
    rtt_ms: float = 10.0
    bandwidth_bytes_per_s: float = 1e9
    memory_gib: float = 22.0
    services: Sequence[Service] = field(default_factory=lambda: [latency_service("classify")])
    rows: Sequence[ProfileRow] = field(default_factory=lambda: [row("classify", latency_ms=10.0)])
    demand: Sequence[Demand] = field(default_factory=lambda: [Demand(service="classify", origin="a", offered=150.0)])
    rules: PlanningRules = field(default_factory=lambda: PlanningRules(max_utilization=1.0))

    @property
    def topology(self) -> Topology:
        pools = {"a": self.l4_at_a, "b": self.l4_at_b}
        return Topology(
            name="two-servers",
            device_types={
                "l4": DeviceType(name="l4", memory_bytes=int(self.memory_gib * GIB), kind=DeviceKind.GPU),
            },
            servers={
                name: Server(
                    name=name,
                    kind=ServerKind.EDGE_SERVER,
                    devices=(DevicePool(type="l4", count=count),) if count else (),
                    address=f"127.0.0.1:{7100 + i}",
                )
                for i, (name, count) in enumerate(pools.items())
            },
            links=(Link(between=("a", "b"), rtt_ms=self.rtt_ms, bandwidth_bytes_per_s=self.bandwidth_bytes_per_s),),
            services={s.name: s for s in self.services},
            demand=tuple(self.demand),
            digest="by-hand",
        )

    @property
    def catalogue(self) -> ProfileCatalogue:
        return ProfileCatalogue.from_rows(self.rows)

    def problem(self, **arguments: Any) -> PlacementProblem:
        return build_problem(self.topology, self.catalogue, rules=self.rules, **arguments)

    def but(self, **changes: Any) -> Edge:
        return replace(self, **changes)


@dataclass(kw_only=True)
class Row(Edge):
    """Three servers in a row, a - b - c, one l4 of 4 GiB each, 2 ms apart at 1 MB/s. `big` has 6 layers.

    A layer takes 1 GiB and 10 ms, so no device holds it, and two servers do: 4 layers at most on each. A kB goes from
    layer to layer: a hop of 1 ms on the way and 1 ms for the bytes; the answer, of nothing, takes 1 ms back.
    """

    rtt_ms: float = 2.0
    bandwidth_bytes_per_s: float = 1e6
    memory_gib: float = 4.0
    pools: tuple[int, ...] = (1, 1, 1)
    services: Sequence[Service] = field(default_factory=lambda: [big_service()])
    rows: Sequence[ProfileRow] = field(default_factory=lambda: big_rows())
    demand: Sequence[Demand] = field(default_factory=lambda: [Demand(service="big", origin="a", offered=20.0)])
    rules: PlanningRules = field(default_factory=lambda: PlanningRules(max_utilization=1.0, across_servers=True))

    @property
    def topology(self) -> Topology:
        names = "abcdefgh"[: len(self.pools)]
        return Topology(
            name="row",
            device_types={"l4": DeviceType(name="l4", memory_bytes=int(self.memory_gib * GIB), kind=DeviceKind.GPU)},
            servers={
                n: Server(
                    name=n,
                    kind=ServerKind.EDGE_SERVER,
                    devices=(DevicePool(type="l4", count=count),) if count else (),
                    address=f"127.0.0.1:{7100 + i}",
                )
                for i, (n, count) in enumerate(zip(names, self.pools, strict=True))
            },
            links=tuple(
                Link(between=(a, b), rtt_ms=self.rtt_ms, bandwidth_bytes_per_s=self.bandwidth_bytes_per_s)
                for a, b in pairwise(names)
            ),
            services={s.name: s for s in self.services},
            demand=tuple(self.demand),
            digest="row",
        )


def big_service(layers: int = 6, **fields: Any) -> Service:
    """1 kB between its layers, an SLO of 200 ms."""
    given: dict[str, Any] = {"slo_ms": 200.0, "request": RequestShape(), **fields}
    model = Model(source="big", task=Task.IMAGE_CLASSIFICATION, layers=layers, activation_bytes=1000.0)
    return Service(name="big", model=model, sensitivity=Sensitivity.LATENCY, **given)


def big_rows(**fields: Any) -> list[ProfileRow]:
    """Slices of 1 and 6 layers: 10 ms, 1 GiB and 3 s of loading for each layer."""
    return [row("big", layers=k, latency_ms=10.0 * k, memory_bytes=k * GIB, load_s=3.0 * k, **fields) for k in (1, 6)]


def chain_plan(problem: PlacementProblem) -> Plan:
    """`big` over a and b of a `Row`, layers 0-3 and 3-6, at 20 of 33.3 requests/s."""
    content = next(
        c
        for c in problem.chains.contents
        if [(s.server, s.first_layer, s.end_layer) for s in c.stages] == [("a", 0, 3), ("b", 3, 6)]
    )
    edge = next(e for e in problem.edges if (e.service, e.origin, e.server) == ("big", "a", "a"))
    placement = Placement(
        groups=(PlacedGroup(server="a", content=content),), flows=(Flow(edge=edge, group=0, rate=20.0),)
    )
    return assemble(
        problem,
        placement,
        generation=1,
        solver="by hand",
        stop=Stop.HEURISTIC,
        dual_bound=None,
        wall_s=0.0,
        unserved=explain_unserved(problem, placement),
    )


class Make:
    """The builders above, as one fixture."""

    edge = Edge
    row_edge = Row
    chain_plan = staticmethod(chain_plan)
    big = staticmethod(big_service)
    big_rows = staticmethod(big_rows)
    row = staticmethod(row)
    latency = staticmethod(latency_service)
    stream = staticmethod(stream_service)
    chat = staticmethod(chat_service)

    @staticmethod
    def offer(service: str, origin: str, offered: float, *, streams: bool = False) -> Demand:
        return Demand(service=service, origin=origin, offered=offered, is_streams=streams)


@pytest.fixture(scope="session")
def make() -> type[Make]:
    return Make
