"""A small edge that a reader can compute by hand, as builders that each test bends to its point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from epara_opt.domain.profile import ProfileCatalogue, ProfileRow
from epara_opt.domain.service import Demand, Model, RequestShape, Sensitivity, Service, Task
from epara_opt.domain.topology import DeviceKind, DevicePool, DeviceType, Link, Server, ServerKind, Topology
from epara_opt.problem import PlacementProblem, PlanningRules, build_problem
from epara_opt.units import GIB


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


class Make:
    """The builders above, as one fixture."""

    edge = Edge
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
