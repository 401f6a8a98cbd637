"""Seeded tiny problems, small enough for brute force, that together use every category and operator."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest

from epara_opt.domain.profile import ProfileCatalogue, ProfileRow
from epara_opt.domain.service import Demand, Model, RequestShape, Sensitivity, Service, Task
from epara_opt.domain.topology import DeviceKind, DevicePool, DeviceType, Link, Server, ServerKind, Topology
from epara_opt.plan import Stage
from epara_opt.problem import PlacementProblem, PlanningRules, Resident, build_problem
from epara_opt.units import GIB

KINDS = ("latency-single", "latency-multi", "frequency-single", "frequency-multi", "generation", "generation-multi")
TYPES = {"gpu": 1.0, "box": 1.7}  # device type and how much slower it is


@pytest.fixture(scope="session")
def tiny_problem() -> Callable[[int], PlacementProblem]:
    return make_tiny_problem


def make_tiny_problem(seed: int) -> PlacementProblem:
    """1-3 servers with 1-3 devices each and 2-4 services; about half the seeds have residents, a third tight links."""
    rng = random.Random(seed)
    num_servers = rng.randint(1, 3)
    servers = {
        f"s{i}": Server(
            name=f"s{i}",
            kind=ServerKind.EDGE_SERVER,
            address=f"127.0.0.1:{7100 + i}",
            devices=tuple(
                DevicePool(type=t, count=rng.randint(1, 3 if num_servers == 1 else 2))
                for t in rng.choice((("gpu",), ("gpu",), ("box",), ("gpu", "box") if num_servers < 3 else ("gpu",)))
                if i == 0 or rng.random() < 0.75  # the others are only origins
            ),
        )
        for i in range(num_servers)
    }
    kinds = [
        KINDS[(seed + i * rng.randint(1, 5)) % len(KINDS)] for i in range(rng.randint(2, 4 if num_servers < 3 else 3))
    ]
    services = {f"{kind}-{i}": make_service(f"{kind}-{i}", kind, rng) for i, kind in enumerate(kinds)}
    tight = rng.random() < 0.35
    links = tuple(
        Link(
            between=(f"s{i - 1}", f"s{i}"),
            rtt_ms=rng.choice((2.0, 10.0, 35.0)),
            bandwidth_bytes_per_s=rng.uniform(3e5, 1.5e6) if tight else 1e9,
        )
        for i in range(1, num_servers)
    )
    rows = [row for s in services.values() for t, slow in TYPES.items() for row in make_rows(s, t, slow, rng)]
    asked = (rng.choice(list(services)), "s0")  # at least this
    demand = tuple(
        Demand(
            service=s.name,
            origin=o,
            offered=offered(s, rng),
            is_streams=s.is_stream,
            burstiness_cv=1.0 if seed % 4 else 1.5,
        )
        for s in services.values()
        for o in servers
        if (s.name, o) == asked or rng.random() < 0.7
    )
    topology = Topology(
        name=f"tiny-{seed}",
        device_types={
            t: DeviceType(name=t, memory_bytes=int((8 if t == "gpu" else 6) * GIB), kind=DeviceKind.GPU) for t in TYPES
        },
        servers=servers,
        links=links,
        services=services,
        demand=demand,
        digest=f"tiny-{seed}",
    )
    rules = PlanningRules(
        max_utilization=rng.choice((0.8, 1.0)),
        max_tenants=rng.choice((1, 2, 2)),
        horizon_s=30.0,
        on_time_target=None if seed % 4 else 0.9,
    )
    problem = build_problem(topology, ProfileCatalogue.from_rows(rows), rules=rules)
    return replace(problem, residents=residents(problem, rng)) if rng.random() < 0.5 else problem


@pytest.fixture(scope="session")
def chain_problem() -> Callable[[int], PlacementProblem]:
    return make_chain_problem


def make_chain_problem(seed: int) -> PlacementProblem:
    """2-4 servers in a ring or row with 1-2 devices each. `big` fits on no server; small services compete with it for
    devices. Half the seeds have tight links, a third have chains and groups in force."""
    rng = random.Random(seed)
    names = [f"s{i}" for i in range(rng.randint(2, 4))]
    servers = {
        n: Server(
            name=n,
            kind=ServerKind.EDGE_SERVER,
            devices=(DevicePool(type=rng.choice(("gpu", "gpu", "box")), count=rng.randint(1, 2)),),
        )
        for n in names
    }
    ring = [*pairwise(names), *([(names[-1], names[0])] if len(names) > 2 else [])]
    tight = rng.random() < 0.5
    links = tuple(
        Link(
            between=pair,
            rtt_ms=rng.choice((1.0, 4.0)),
            bandwidth_bytes_per_s=rng.uniform(3e5, 1.2e6) if tight else 1e9,
        )
        for pair in ring[: len(ring) - (rng.random() < 0.5 and len(names) > 2)]
    )
    generates = rng.random() < 0.4
    layers = rng.randint(3, 6)
    services = {"big": _big(layers, generates, rng)}
    for i in range(rng.randint(1, 2)):
        kind = rng.choice(("latency-single", "frequency-single"))
        services[f"{kind}-{i}"] = make_service(f"{kind}-{i}", kind, rng)
    rows = [
        r for s in services.values() if s.name != "big" for t, slow in TYPES.items() for r in make_rows(s, t, slow, rng)
    ]
    for t, slow in TYPES.items():
        rows += _slices(services["big"], t, slow, rng)
    demand = tuple(
        Demand(service=s.name, origin=o, offered=offered(s, rng), is_streams=s.is_stream)
        for s in services.values()
        for o in names
        if (s.name, o) == ("big", "s0") or rng.random() < 0.5
    )
    topology = Topology(
        name=f"chains-{seed}",
        device_types={
            t: DeviceType(name=t, memory_bytes=int((8 if t == "gpu" else 6) * GIB), kind=DeviceKind.GPU) for t in TYPES
        },
        servers=servers,
        links=links,
        services=services,
        demand=demand,
        digest=f"chains-{seed}",
    )
    rules = PlanningRules(
        max_utilization=rng.choice((0.8, 1.0)),
        max_tenants=1,
        horizon_s=30.0,
        across_servers=True,
        max_stages=rng.choice((2, 3)),
        max_chains=12,
        on_time_target=None if seed % 4 else 0.9,
    )
    problem = build_problem(topology, ProfileCatalogue.from_rows(rows), rules=rules)
    return replace(problem, residents=_chains_in_force(problem, rng)) if rng.random() < 0.35 else problem


def _big(layers: int, generates: bool, rng: random.Random) -> Service:
    shape = RequestShape(input_bytes=2e3, output_bytes=1e3, prompt_tokens=96, output_tokens=16)
    task = Task.TEXT_GENERATION if generates else Task.IMAGE_CLASSIFICATION
    return Service(
        name="big",
        model=Model(source="big", task=task, layers=layers, activation_bytes=200.0 if generates else 1.5e4),
        sensitivity=Sensitivity.LATENCY,
        slo_ms=rng.choice((3000.0, 6000.0)) if generates else rng.choice((250.0, 500.0)),
        request=shape if generates else RequestShape(input_bytes=2e4, output_bytes=1e3),
        weight=rng.choice((1.0, 3.0, 6.0)),
    )


def _slices(service: Service, device_type: str, slow: float, rng: random.Random) -> list[ProfileRow]:
    """One layer and all of them; a device holds some half of the model, never all of it."""
    layers = service.model.layers or 0
    gib = 8.0 / layers * rng.uniform(0.8, 1.3)
    ms, load_s = rng.uniform(6.0, 15.0) * slow, rng.choice((0.0, 6.0, 20.0))
    found: list[ProfileRow] = []
    for k in (1, layers):
        shared = {"model": service.name, "device_type": device_type, "layers": k, "source": "generated"}
        shared |= {"load_s": load_s * k / layers}
        if service.model.task is Task.TEXT_GENERATION:
            found.append(ProfileRow(**shared, prefill_ms=ms * k, prompt_tokens=96, memory_bytes=GIB))
        for batch in (1, 2, 4, 8):
            time = ms * k * (0.7 + 0.3 * batch)
            point = (
                {"decode_step_ms": 0.3 * time} if service.model.task is Task.TEXT_GENERATION else {"latency_ms": time}
            )
            found.append(
                ProfileRow(**shared, **point, batch=batch, memory_bytes=int((gib * k + 0.02 * batch * k) * GIB))
            )
    return found


def _chains_in_force(problem: PlacementProblem, rng: random.Random) -> tuple[Resident, ...]:
    """One chain on the first devices, and small groups on some of the others."""
    if not problem.chains.contents:
        return ()
    content = rng.choice(problem.chains.contents)
    free = {(s.name, p.type): list(range(p.count)) for s in problem.topology.servers.values() for p in s.devices}
    stages = tuple(
        Stage(
            server=s.server,
            device_type=s.device_type,
            devices=tuple(free[s.server, s.device_type].pop(0) for _ in range(s.tp)),
            first_layer=s.first_layer,
            end_layer=s.end_layer,
            memory_bytes=s.memory_bytes,
        )
        for s in content.stages
    )
    head = stages[0]
    found = [
        Resident(
            group=f"{head.server}/{head.device_type}/{'+'.join(map(str, head.devices))}/1",
            server=head.server,
            device_type=head.device_type,
            devices=head.devices,
            tp=content.tp,
            pp=content.pp,
            services=content.services,
            stages=stages,
        )
    ]
    for (server, device_type), left in free.items():
        if left and problem.contents.get(device_type) and rng.random() < 0.6:
            small = rng.choice(problem.contents[device_type])
            group = f"{server}/{device_type}/{left[0]}/1"
            found.append(
                Resident(
                    group=group,
                    server=server,
                    device_type=device_type,
                    devices=(left[0],),
                    tp=1,
                    pp=1,
                    services=small.services,
                    memory=tuple((t.service, t.memory_bytes) for t in small.tenants),
                )
            )
    return tuple(found)


def make_service(name: str, kind: str, rng: random.Random) -> Service:
    weight = rng.choice((1.0, 1.0, 2.0, 3.5))
    if kind.startswith("generation"):
        by_token = rng.random() < 0.5
        return Service(
            name=name,
            model=Model(source=name, task=Task.TEXT_GENERATION),
            sensitivity=Sensitivity.LATENCY,
            slo_ms=None if by_token else rng.choice((900.0, 2000.0)),
            ttft_ms=rng.choice((120.0, 300.0)) if by_token else None,
            tpot_ms=60.0 if by_token else None,
            request=RequestShape(input_bytes=2e3, output_bytes=1e3, prompt_tokens=96, output_tokens=16),
            weight=weight,
        )
    if kind.startswith("frequency"):
        return Service(
            name=name,
            model=Model(source=name, task=Task.IMAGE_SEGMENTATION),
            sensitivity=Sensitivity.FREQUENCY,
            fps=rng.choice((5.0, 10.0)),
            frame_deadline_ms=rng.choice((250.0, 500.0)),
            request=RequestShape(input_bytes=3e4, output_bytes=4e3),
            weight=weight * 8,
        )
    return Service(
        name=name,
        model=Model(source=name, task=Task.IMAGE_CLASSIFICATION),
        sensitivity=Sensitivity.LATENCY,
        slo_ms=rng.choice((120.0, 200.0, 400.0)),
        request=RequestShape(input_bytes=2e4, output_bytes=1e3),
        weight=weight,
    )


def offered(service: Service, rng: random.Random) -> float:
    if service.is_stream:
        return float(rng.choice((1, 2, 3, 8)))
    return rng.uniform(0.5, 6.0) if service.model.task is Task.TEXT_GENERATION else rng.uniform(5.0, 60.0)


def make_rows(service: Service, device_type: str, slow: float, rng: random.Random) -> list[ProfileRow]:
    """Curves of one service: batching pays, splitting over two devices halves memory and most of the time."""
    multi = "multi" in service.name
    shapes = [(1, 1)] if not multi else rng.choice(([(2, 1)], [(1, 2)], [(2, 1), (1, 2)]))
    if multi and rng.random() < 0.4:
        shapes = [(1, 1), *shapes]  # measured on one device too, where it does not fit
    base_ms, item_ms = rng.uniform(8, 25) * slow, rng.uniform(3, 10) * slow
    memory, item_memory = rng.uniform(1.0, 3.5), rng.uniform(0.1, 0.4)
    load_s = rng.choice((0.0, 4.0, 12.0, 40.0))
    found: list[ProfileRow] = []
    for tp, pp in shapes:
        split = 1.0 if (tp, pp) == (1, 1) else 0.6 if tp > 1 else 1.05
        heavy = 12.0 if multi and (tp, pp) == (1, 1) else 0.0
        shared = {"model": service.name, "device_type": device_type, "tp": tp, "pp": pp}
        if service.model.task is Task.TEXT_GENERATION:
            prefill = [(64, base_ms * split), (128, 1.6 * base_ms * split)]
            found += [
                ProfileRow(
                    **shared, prefill_ms=ms, prompt_tokens=n, memory_bytes=GIB, load_s=load_s, source="generated"
                )
                for n, ms in prefill
            ]
        for batch in (1, 2, 4):
            ms = (base_ms + item_ms * batch) * split
            gib = memory + heavy + item_memory * batch
            point = {"decode_step_ms": ms * 0.6} if service.model.task is Task.TEXT_GENERATION else {"latency_ms": ms}
            found.append(
                ProfileRow(
                    **shared,
                    **point,
                    batch=batch,
                    memory_bytes=int(gib * GIB / (tp * pp)),
                    load_s=load_s,
                    source="generated",
                )
            )
    return found


def residents(problem: PlacementProblem, rng: random.Random) -> tuple[Resident, ...]:
    """Groups in force: random contents on the first devices of some pools."""
    found: list[Resident] = []
    for server in problem.topology.servers.values():
        for pool in server.devices:
            free = list(range(pool.count))
            rng.shuffle(free)
            while free and problem.contents.get(pool.type) and rng.random() < 0.7:
                content = rng.choice(problem.contents[pool.type])
                if content.num_devices > len(free):
                    break
                devices = tuple(sorted(free.pop() for _ in range(content.num_devices)))
                found.append(
                    Resident(
                        group=f"{server.name}/{pool.type}/{'+'.join(map(str, devices))}/1",
                        server=server.name,
                        device_type=pool.type,
                        devices=devices,
                        tp=content.tp,
                        pp=content.pp,
                        services=content.services,
                        memory=tuple((t.service, t.memory_bytes) for t in content.tenants),
                    )
                )
    return tuple(found)
