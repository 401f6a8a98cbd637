"""A planner of forty lines and an edge of three servers, to drive the control cycle without solvers.

`FirstFitPlanner` makes real plans (they pass the checker): each demand goes to replicas that stand, then to a new
one on the nearest server with a free device; one service per group. It keeps residents where it can. Nothing
about it is good, which is the point: it stands for any planner.
"""

from __future__ import annotations

from collections.abc import Mapping

from epara_opt.control.reroute import complete
from epara_opt.control.routing import RouteBook
from epara_opt.domain.category import categorize
from epara_opt.domain.profile import ProfileCatalogue, ProfileRow
from epara_opt.domain.service import Demand, Model, RequestShape, Sensitivity, Service, Task
from epara_opt.domain.topology import DeviceKind, DevicePool, DeviceType, Link, Server, ServerKind, Topology
from epara_opt.plan import Plan, Replica
from epara_opt.problem import Content, Edge, PlacementProblem, Resident
from epara_opt.units import GIB


class FirstFitPlanner:
    """Implements `ports.Planner`."""

    name = "first-fit"

    def plan(
        self, problem: PlacementProblem, *, generation: int, time_limit_s: float, in_force: Plan | None = None
    ) -> Plan:
        topology = problem.topology
        replicas: dict[str, Replica] = {}
        book = self._book(problem, replicas)
        for (service, origin), rate in sorted(
            problem.offered.items(), key=lambda kv: (-topology.services[kv[0][0]].weight, kv[0])
        ):
            edges = sorted(
                (e for e in problem.edges if e.service == service and e.origin == origin),
                key=lambda e: (e.network_ms, e.server),
            )
            for edge in edges:
                while book.served().get((service, origin), 0.0) < rate - 1e-9:
                    opened = self._open(problem, edge, replicas, generation)
                    if opened is None:
                        break
                    replicas[opened.id] = opened
                    book = self._book(problem, replicas)
        return complete(problem, book, generation=generation, solver=self.name)

    def _book(self, problem: PlacementProblem, replicas: Mapping[str, Replica]) -> RouteBook:
        book = RouteBook(replicas.values(), problem.topology, problem.catalogue, busy=problem.busy)
        book.fill(problem.offered)
        return book

    def _open(
        self, problem: PlacementProblem, edge: Edge, replicas: Mapping[str, Replica], generation: int
    ) -> Replica | None:
        """One more replica of the edge's service at its server: a resident one if it stands free, else a new one."""
        for pool in problem.topology.servers[edge.server].devices:
            busy = {
                i for r in replicas.values() if (r.server, r.device_type) == (edge.server, pool.type) for i in r.devices
            }
            options = [
                c
                for c in problem.contents.get(pool.type, ())
                if c.services == frozenset((edge.service,))
                and c.tenants[0].response_ms <= edge.slack_ms
                and problem.useful_at(c, edge.server)
            ]
            for c in sorted(options, key=lambda c: (-c.tenants[0].work_per_s / c.num_devices, c.num_devices)):
                for resident in problem.residents:
                    same = (resident.server, resident.device_type, resident.tp, resident.pp)
                    if (
                        same == (edge.server, pool.type, c.tp, c.pp)
                        and edge.service in resident.services
                        and not busy & set(resident.devices)
                    ):
                        return _replica(c, edge.server, resident.devices, resident.group, resident)
                free = [i for i in range(pool.count) if i not in busy]
                if len(free) >= c.num_devices:
                    devices = tuple(free[: c.num_devices])
                    group = f"{edge.server}/{pool.type}/{'+'.join(map(str, devices))}/{generation}"
                    return _replica(c, edge.server, devices, group, None)
        return None


def _replica(content: Content, server: str, devices: tuple[int, ...], group: str, resident: Resident | None) -> Replica:
    tenant = content.tenants[0]
    return Replica(
        id=f"{tenant.service}@{group}",
        service=tenant.service,
        group=group,
        server=server,
        device_type=content.device_type,
        devices=devices,
        tp=content.tp,
        pp=content.pp,
        batch=tenant.config.batch,
        frames=tenant.config.frames,
        share=1.0,
        capacity=tenant.work_per_s,
        response_ms=tenant.response_ms,
        memory_bytes=tenant.memory_bytes,
        load_s=0.0 if resident else tenant.load_s,
    )


def small_edge() -> tuple[Topology, ProfileCatalogue]:
    """Three servers in a row, `a` with two devices, `b` and `c` with one; two services of which a device holds one
    at a time (memory), so that changing one for the other breaks before it makes."""
    label = Service(
        name="label",
        model=Model(source="models/label", task=Task.IMAGE_CLASSIFICATION),
        sensitivity=Sensitivity.LATENCY,
        request=RequestShape(input_bytes=10_000, output_bytes=100),
        slo_ms=200.0,
    )
    seg = Service(
        name="seg",
        model=Model(source="models/seg", task=Task.IMAGE_SEGMENTATION),
        sensitivity=Sensitivity.FREQUENCY,
        request=RequestShape(input_bytes=10_000, output_bytes=1_000),
        fps=10.0,
        frame_deadline_ms=250.0,
        weight=10.0,
    )
    rows = [
        ProfileRow(
            model=service.model.profile_name,
            device_type="gpu",
            batch=batch,
            latency_ms=ms,
            memory_bytes=memory,
            load_s=3.0,
            source="made up for fakes",
        )
        for service, memory, points in (
            (label, 2 * GIB, ((1, 10.0), (2, 14.0), (4, 24.0))),
            (seg, 3 * GIB, ((1, 20.0), (2, 34.0), (4, 60.0))),
        )
        for batch, ms in points
    ]
    servers = [
        Server(
            name=name,
            kind=ServerKind.EDGE_SERVER,
            devices=(DevicePool(type="gpu", count=count),),
            address=f"{name}.edge:7100",
        )
        for name, count in (("a", 2), ("b", 1), ("c", 1))
    ]
    topology = Topology(
        name="small-edge",
        device_types={"gpu": DeviceType(name="gpu", memory_bytes=4 * GIB, kind=DeviceKind.GPU)},
        servers={s.name: s for s in servers},
        links=(
            Link(between=("a", "b"), rtt_ms=4.0, bandwidth_bytes_per_s=1e8),
            Link(between=("b", "c"), rtt_ms=6.0, bandwidth_bytes_per_s=1e8),
        ),
        services={"label": label, "seg": seg},
        demand=(
            Demand(service="label", origin="a", offered=40.0),
            Demand(service="label", origin="b", offered=20.0),
            Demand(service="seg", origin="c", offered=1.0, is_streams=True),
        ),
        digest="small-edge",
    )
    catalogue = ProfileCatalogue.from_rows(rows)
    for service in topology.services.values():
        categorize(service, topology, catalogue)
    return topology, catalogue
