"""Compile the kernels, or load them compiled, before a deadline runs.

The first planner on a machine compiles for some twenty seconds; numba keeps the result beside the sources, or in the
user's cache where those cannot be written, and every later process loads it in half a second. Inside a time limit
either would be taken from the search.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from epara_solvers.columns import packing
from epara_solvers.columns.arrays import ground_of
from epara_solvers.columns.engine import Budget, solve
from epara_solvers.columns.pools import pool_values

from epara_opt.domain.profile import ProfileCatalogue, ProfileRow
from epara_opt.domain.service import Demand, Model, RequestShape, Sensitivity, Service, Task
from epara_opt.domain.topology import DeviceKind, DevicePool, DeviceType, Link, Server, ServerKind, Topology
from epara_opt.problem import PlanningRules, build_problem
from epara_opt.units import GIB


@cache
def make_ready() -> None:
    """Run every kernel once on an edge of two servers. Once per process."""
    ground = ground_of(build_problem(_edge(), _catalogue(), rules=PlanningRules()))
    found = solve(ground, Budget(steps=10, rounds=4), threads=1)
    pool_values(ground, found.prices)
    packed = packing.empty_packing(ground.arrays)
    edges = np.zeros(1, dtype=np.int64)
    packing.has_room(ground.arrays, packed, 0, 0)
    packing.put(ground.arrays, packed, 0, 0, edges, edges, np.ones(1))


def _edge() -> Topology:
    services = {
        name: Service(
            name=name,
            model=Model(source=name, task=Task.IMAGE_CLASSIFICATION),
            sensitivity=Sensitivity.LATENCY,
            slo_ms=200.0,
            request=RequestShape(input_bytes=1e4, output_bytes=1e3),
        )
        for name in ("a", "b")
    }
    return Topology(
        name="ready",
        device_types={"gpu": DeviceType(name="gpu", memory_bytes=8 * GIB, kind=DeviceKind.GPU)},
        servers={
            n: Server(name=n, kind=ServerKind.EDGE_SERVER, devices=(DevicePool(type="gpu", count=2),))
            for n in ("s0", "s1")
        },
        links=(Link(between=("s0", "s1"), rtt_ms=2.0, bandwidth_bytes_per_s=1e7),),
        services=services,
        demand=tuple(Demand(service=n, origin="s0", offered=90.0, is_streams=False) for n in services),
    )


def _catalogue() -> ProfileCatalogue:
    return ProfileCatalogue.from_rows(
        [
            ProfileRow(
                model=name,
                device_type="gpu",
                tp=1,
                pp=1,
                batch=1,
                frames=1,
                latency_ms=20.0,
                memory_bytes=GIB,
                load_s=1.0,
                source="made up, to compile with",
            )
            for name in ("a", "b")
        ]
    )
