"""An edge with a plan of any size, made by a seeded first-fit: its figures agree with each other."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from epara_opt.domain.category import Category, Scale
from epara_opt.domain.service import Demand, Model, RequestShape, Sensitivity, Service, Task
from epara_opt.domain.topology import (
    DeviceKind,
    DevicePool,
    DeviceType,
    Link,
    Location,
    Server,
    ServerKind,
    Topology,
)
from epara_opt.plan import (
    Action,
    ActionKind,
    Plan,
    Predicted,
    Replica,
    Route,
    ServiceForecast,
    Stop,
    Unserved,
    relative_gap,
)
from epara_opt.report.history import HistoryPoint
from epara_opt.report.load import LoadWindow
from epara_opt.units import gib_to_bytes, kb_to_bytes, mbps_to_bytes_per_s

START_AT = 1_790_000_000.0
PRODUCTS = (
    ("store-chat", "latency"), ("lane-segmentation", "frequency"), ("menu-search", "latency"),
    ("shelf-detection", "frequency"), ("voice-orders", "latency"), ("doc-summary-70b", "latency"),
    ("crowd-density", "frequency"), ("parcel-labels", "latency"), ("plate-reader", "frequency"),
    ("kiosk-translate", "latency"), ("returns-fraud", "latency"), ("aisle-tracking", "frequency"),
)  # fmt: skip
PLACES = (
    "carlton",
    "docklands",
    "fitzroy",
    "kew",
    "prahran",
    "richmond",
    "st-kilda",
    "south-yarra",
    "toorak",
    "abbotsford",
)


@dataclass(frozen=True, kw_only=True)
class Edge:
    topology: Topology
    categories: dict[str, Category]
    plan: Plan
    history: tuple[HistoryPoint, ...]
    load: tuple[LoadWindow, ...]


def service(name: str, sensitivity: str) -> Service:
    if sensitivity == "frequency":
        return Service(
            name=name,
            model=Model(source=f"models/{name}", task=Task.IMAGE_SEGMENTATION),
            sensitivity=Sensitivity.FREQUENCY,
            request=RequestShape(input_bytes=kb_to_bytes(60), output_bytes=kb_to_bytes(8)),
            fps=15.0,
            frame_deadline_ms=200.0,
            weight=2.0,
        )
    return Service(
        name=name,
        model=Model(source=f"models/{name}", task=Task.IMAGE_CLASSIFICATION),
        sensitivity=Sensitivity.LATENCY,
        request=RequestShape(input_bytes=kb_to_bytes(4), output_bytes=kb_to_bytes(2)),
        slo_ms=400.0,
    )


def make_topology(
    rng: np.random.Generator, num_servers: int, *, located: bool, names: tuple[tuple[str, str], ...]
) -> Topology:
    kinds = (ServerKind.EDGE_SERVER, ServerKind.EMBEDDED, ServerKind.MICROCOMPUTER, ServerKind.EDGE_SERVER)
    servers: dict[str, Server] = {}
    for i in range(num_servers):
        kind = ServerKind.CLOUD if i == 0 and num_servers > 30 else kinds[i % 4]
        pools = {
            ServerKind.EDGE_SERVER: (DevicePool(type="l4", count=int(rng.integers(2, 9))),),
            ServerKind.EMBEDDED: (DevicePool(type="orin", count=1),),
            ServerKind.MICROCOMPUTER: (DevicePool(type="cpu", count=int(rng.integers(1, 3))),),
            ServerKind.CLOUD: (DevicePool(type="l4", count=8), DevicePool(type="cpu", count=4)),
        }[kind]
        name = PLACES[i % 10] + (f"-{i // 10 + 1}" if num_servers > 10 else "")
        lat, lon = -37.81 + float(rng.normal(0, 0.06)), 144.96 + float(rng.normal(0, 0.10))
        servers[name] = Server(
            name=name,
            kind=kind,
            devices=pools if i % 11 != 10 else (),
            address=f"127.0.0.1:{7101 + i}",
            location=Location(lat=lat, lon=lon) if located else None,
        )
    order = list(servers)
    ends = [(order[i], order[int(rng.integers(max(0, i - 6), i))]) for i in range(1, num_servers)]
    links = tuple(
        Link(between=e, rtt_ms=float(rng.uniform(0.8, 14)), bandwidth_bytes_per_s=mbps_to_bytes_per_s(500))
        for e in ends
    )
    services = {n: service(n, s) for n, s in names}
    demand = tuple(
        Demand(
            service=n,
            origin=o,
            offered=float(rng.uniform(1, 40)) if s == "latency" else float(rng.integers(1, 5)),
            is_streams=s == "frequency",
        )
        for n, s in names
        for o in order
        if rng.random() < 0.35 or (n, o) == (names[0][0], order[0])
    )
    return Topology(
        name="melbourne-shops",
        device_types={
            "l4": DeviceType(name="l4", memory_bytes=gib_to_bytes(22), kind=DeviceKind.GPU),
            "orin": DeviceType(name="orin", memory_bytes=gib_to_bytes(12), kind=DeviceKind.GPU),
            "cpu": DeviceType(name="cpu", memory_bytes=gib_to_bytes(4), kind=DeviceKind.CPU),
        },
        servers=servers,
        links=links,
        services=services,
        demand=demand,
        digest="0" * 64,
    )


def make_plan(rng: np.random.Generator, topology: Topology) -> Plan:
    replicas: list[Replica] = []
    names = list(topology.services)
    for server in topology.servers.values():
        for pool in server.devices:
            free = list(range(pool.count))
            while free and rng.random() < 0.85:
                width = int(rng.choice([1, 2, 4])) if pool.type == "l4" else 1
                if width > len(free):
                    width = 1
                devices, free = tuple(free[:width]), free[width:]
                tp, pp = (2, width // 2) if width > 1 else (1, 1)
                group = f"{server.name}/{pool.type}/{'+'.join(map(str, devices))}/3"
                tenants = rng.choice(
                    len(names), size=min(len(names), int(rng.integers(1, 4)) if width == 1 else 1), replace=False
                )
                shares = rng.dirichlet(np.ones(len(tenants))) * float(rng.uniform(0.4, 0.8))
                for t, share in zip(tenants, shares, strict=True):
                    s = topology.services[names[int(t)]]
                    replicas.append(
                        Replica(
                            id=f"{s.name}@{group}",
                            service=s.name,
                            group=group,
                            server=server.name,
                            device_type=pool.type,
                            devices=devices,
                            tp=tp,
                            pp=pp,
                            batch=int(rng.choice([1, 2, 4, 8])),
                            frames=int(rng.choice([1, 2, 4])) if s.is_stream else 1,
                            share=float(share),
                            capacity=float(share) * width * (8.0 if s.is_stream else 120.0),
                            response_ms=float(rng.uniform(0.2, 0.7)) * s.deadline_ms,
                            memory_bytes=gib_to_bytes(float(rng.uniform(0.5, 4))),
                            load_s=float(rng.choice([0.0, 2.5, 12.0])),
                            endpoint=server.address or "",
                        )
                    )
    routes, unserved, offered, served = _fill(topology, replicas)
    forecasts = tuple(
        ServiceForecast(
            service=n,
            category=f"{s.sensitivity.value}, {'multi' if n.endswith('70b') else 'single'}-device",
            unit=s.work_unit,
            offered=offered.get(n, 0.0),
            goodput=served.get(n, 0.0),
            slo_attainment=served.get(n, 0.0) / offered[n] if offered.get(n) else 1.0,
            worst_ms=max((r.predicted_ms for r in routes if r.service == n), default=0.0),
        )
        for n, s in topology.services.items()
    )
    goodput = sum(topology.services[n].weight * v for n, v in served.items())
    total = sum(topology.services[n].weight * v for n, v in offered.items())
    bound = min(total, 1.021 * goodput)
    used = {
        s.name: min(
            1.0, sum(r.share * len(r.devices) for r in replicas if r.server == s.name) / sum(p.count for p in s.devices)
        )
        for s in topology.servers.values()
        if s.devices
    }
    groups = {r.group: r.server for r in replicas}
    return Plan(
        generation=3,
        topology=topology.name,
        inputs_digest="00112233aabbccdd",
        solver="ortools-scip",
        stop=Stop.TIME_LIMIT,
        objective=goodput,
        dual_bound=bound,
        gap=relative_gap(goodput, bound),
        wall_s=29.7,
        replicas=tuple(replicas),
        routes=tuple(routes),
        unserved=tuple(unserved),
        predicted=Predicted(
            goodput=goodput, offered=total, slo_attainment=goodput / total, services=forecasts, utilization=used
        ),
        actions=(
            *(
                Action(stage=1, kind=ActionKind.PREPARE, server=s, groups=(g,), detail="loads in 12 s")
                for g, s in groups.items()
                if s <= "fz"
            ),
            *(Action(stage=2, kind=ActionKind.COMMIT, server=s) for s in topology.servers),
            Action(
                stage=3, kind=ActionKind.RETIRE, server="carlton", groups=("carlton/l4/0/2",), detail="drains first"
            ),
        ),
        notes=("l4: groups hold at most 3 service(s) in this plan",),
        made_at="2026-11-23T09:00:00Z",
    )


def _fill(
    topology: Topology, replicas: list[Replica]
) -> tuple[list[Route], list[Unserved], dict[str, float], dict[str, float]]:
    left = {r.id: r.capacity for r in replicas}
    routes: list[Route] = []
    unserved: list[Unserved] = []
    offered: dict[str, float] = {}
    served: dict[str, float] = {}
    for d in topology.demand:
        s = topology.services[d.service]
        offered[d.service] = offered.get(d.service, 0.0) + d.offered
        missing = d.offered
        options = [(r, topology.path(d.origin, r.server)) for r in replicas if r.service == d.service]
        for r, path in sorted(((r, p) for r, p in options if p is not None), key=lambda o: (o[1].rtt_ms, o[0].id)):
            network_ms = path.rtt_ms + path.transfer_ms(s.request.input_bytes + s.request.output_bytes)
            take = min(missing, left[r.id])
            if take <= 1e-9 or network_ms + r.response_ms > s.deadline_ms:
                continue
            left[r.id] -= take
            missing -= take
            served[d.service] = served.get(d.service, 0.0) + take
            routes.append(
                Route(
                    service=d.service,
                    origin=d.origin,
                    replica=r.id,
                    rate=take,
                    network_ms=network_ms,
                    predicted_ms=network_ms + r.response_ms,
                )
            )
        if missing > 1e-9:
            code = "outbid" if served.get(d.service) else "no_memory"
            reason = (
                f"outbid: one more l4 at {d.origin} would add {missing:.1f} {s.work_unit}"
                if code == "outbid"
                else "no_memory: needs 38.00 GiB per l4, which has 22.00"
            )
            unserved.append(Unserved(service=d.service, origin=d.origin, rate=missing, code=code, reason=reason))
    return routes, unserved, offered, served


def make_history(rng: np.random.Generator, plan: Plan, cycles: int) -> tuple[HistoryPoint, ...]:
    rows: list[HistoryPoint] = []
    for i in range(cycles):
        offered = plan.predicted.offered * (1 + 0.15 * math.sin(i / 6)) * float(rng.uniform(0.97, 1.03))
        dip = 0.6 if cycles * 0.4 <= i < cycles * 0.5 else 0.93
        rows.append(
            HistoryPoint(
                at=START_AT + 30.0 * i,
                goodput=plan.predicted.slo_attainment * dip * offered,
                offered=offered,
                dual_bound=plan.predicted.slo_attainment * 1.02 * offered,
                generation=i + 1,
                event="executor of carlton killed" if i == round(cycles * 0.4) else "",
            )
        )
    rows.append(
        HistoryPoint(at=START_AT + 30.0 * cycles * 0.52, event="executor of carlton back", generation=cycles // 2)
    )
    return tuple(rows)


def make_load(rng: np.random.Generator, topology: Topology, windows: int) -> tuple[LoadWindow, ...]:
    return tuple(
        LoadWindow(
            at=START_AT + 5.0 * i,
            duration_s=5.0,
            service=name,
            sent=100,
            on_time=int(rng.integers(85, 100)) - (40 if 8 <= i < 11 else 0),
            shed=1,
            p50_ms=40.0 + i,
            p99_ms=120.0 + i,
        )
        for name in list(topology.services)[:4]
        for i in range(windows)
    )


@pytest.fixture(scope="session")
def make_edge() -> Callable[..., Edge]:
    """make_edge(num_servers, located=..., names=...): everything a page can show."""

    @functools.cache
    def make(
        num_servers: int, *, seed: int = 5, located: bool = True, names: tuple[tuple[str, str], ...] = PRODUCTS
    ) -> Edge:
        rng = np.random.default_rng(seed)
        topology = make_topology(rng, num_servers, located=located, names=names)
        plan = make_plan(rng, topology)
        categories = {
            n: Category(
                sensitivity=s.sensitivity, scale=Scale.SINGLE_DEVICE, reason="one l4 holds it (2.00 of 22.00 GiB)"
            )
            for n, s in topology.services.items()
        }
        return Edge(
            topology=topology,
            categories=categories,
            plan=plan,
            history=make_history(rng, plan, 40),
            load=make_load(rng, topology, 24),
        )

    return make


@pytest.fixture(scope="session")
def three_shops(make_edge: Callable[..., Edge]) -> Edge:
    return make_edge(3, seed=1, names=PRODUCTS[:5])
