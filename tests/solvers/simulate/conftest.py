"""One replica whose queue can be followed by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from epara_solvers.simulate.arrivals import Arrivals

from epara_opt.control.fake_planner import FirstFitPlanner
from epara_opt.domain.profile import ProfileCatalogue, ProfileRow
from epara_opt.domain.service import Demand, Model, RequestShape, Sensitivity, Service, Task
from epara_opt.domain.topology import DeviceKind, DevicePool, DeviceType, Server, ServerKind, Topology
from epara_opt.plan import Plan
from epara_opt.problem import PlacementProblem, build_problem
from epara_opt.units import GIB


@dataclass(kw_only=True)
class Hand:
    """One server with one device: a service of 100 ms, answered 40 ms after a batch of any size has left."""

    RATE = 5.0
    DURATION_S = 4.0
    problem: PlacementProblem = field(init=False)

    def __post_init__(self) -> None:
        service = Service(
            name="label",
            model=Model(source="label", task=Task.IMAGE_CLASSIFICATION),
            sensitivity=Sensitivity.LATENCY,
            slo_ms=100.0,
            request=RequestShape(),
        )
        topology = Topology(
            name="one",
            device_types={"gpu": DeviceType(name="gpu", memory_bytes=8 * GIB, kind=DeviceKind.GPU)},
            servers={"a": Server(name="a", kind=ServerKind.EDGE_SERVER, devices=(DevicePool(type="gpu", count=1),))},
            links=(),
            services={"label": service},
            demand=(Demand(service="label", origin="a", offered=self.RATE),),
        )
        rows = [
            ProfileRow(
                model="label",
                device_type="gpu",
                batch=batch,
                latency_ms=40.0,
                memory_bytes=GIB,
                load_s=1.0,
                source="by hand",
            )
            for batch in (1, 4)
        ]
        self.problem = build_problem(topology, ProfileCatalogue.from_rows(rows))

    def plan(self, *, batch: int) -> Plan:
        made = FirstFitPlanner().plan(self.problem, generation=1, time_limit_s=1.0)
        return replace(made, replicas=tuple(replace(r, batch=batch) for r in made.replicas))

    def arrivals(self, at_s: Sequence[float]) -> Arrivals:
        count = len(at_s)
        return Arrivals(
            entries=(("label", "a"),),
            at_s=np.array(at_s),
            entry=np.zeros(count, dtype=np.int64),
            stream=np.full(count, -1),
            draw=np.random.default_rng(2).random(count),
            stream_entry=np.zeros(0, dtype=np.int64),
            duration_s=self.DURATION_S,
        )


@pytest.fixture(scope="session")
def hand() -> Hand:
    return Hand()
