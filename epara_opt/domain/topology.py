"""The edge: device types, servers with pools of devices, links, and the paths over them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import cast

import networkx as nx

from epara_opt.domain.service import Demand, Service
from epara_opt.errors import InputError, Violation


class DeviceKind(StrEnum):
    GPU = "gpu"
    CPU = "cpu"
    NPU = "npu"


class ServerKind(StrEnum):
    EDGE_SERVER = "edge-server"
    EMBEDDED = "embedded"
    MICROCOMPUTER = "microcomputer"
    CLOUD = "cloud"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceType:
    """A kind of accelerator or CPU slot."""

    name: str
    memory_bytes: int  # per device, runtime reserve already removed
    kind: DeviceKind

    def __post_init__(self) -> None:
        _positive(f"device_types.{self.name}.memory_gib", self.memory_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePool:
    """Identical devices of one server, numbered 0 .. count - 1."""

    type: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    lat: float  # degrees north
    lon: float  # degrees east


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """An edge server, embedded device, microcomputer or cloud region; also a place where demand enters."""

    name: str
    kind: ServerKind
    devices: tuple[DevicePool, ...] = ()
    address: str | None = None  # host:port of its executor; None in what-if topologies
    location: Location | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A full-duplex link: the bandwidth holds in each direction."""

    between: tuple[str, str]
    rtt_ms: float
    bandwidth_bytes_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """The least-RTT path from an origin to a server; empty when they are the same."""

    hops: tuple[tuple[str, str], ...]  # directed, origin first
    rtt_ms: float
    bandwidth_bytes_per_s: float  # of the narrowest link; inf when there is no link to cross

    def transfer_ms(self, num_bytes: float) -> float:
        """Store-and-forward is not modelled: one transmission at the narrowest link's rate."""
        return 0.0 if not self.hops else 1000.0 * num_bytes / self.bandwidth_bytes_per_s


@dataclass(frozen=True, kw_only=True)
class Topology:
    """Everything an operator describes, checked as a whole. Mappings keep the file's order."""

    name: str
    device_types: Mapping[str, DeviceType]
    servers: Mapping[str, Server]
    links: tuple[Link, ...]
    services: Mapping[str, Service]
    demand: tuple[Demand, ...] = ()
    digest: str = field(default="", compare=False)  # sha256 over the canonical content of all files read

    def __post_init__(self) -> None:
        """Check what no single object can see: dangling names, duplicates, islands."""
        found: list[Violation] = []

        def broken(path: str, law: str, value: object) -> None:
            found.append(Violation(path=path, law=law, value=str(value)))

        if not self.servers:
            broken("servers", "expected at least one server", "none")
        for server in self.servers.values():
            for i, pool in enumerate(server.devices):
                path = f"servers.{server.name}.devices[{i}]"
                if pool.type not in self.device_types:
                    broken(f"{path}.type", "expected a name from device_types", pool.type)
                if pool.count < 1:
                    broken(f"{path}.count", "expected >= 1", pool.count)
            types = [p.type for p in server.devices]
            for name in sorted({t for t in types if types.count(t) > 1}):
                broken(f"servers.{server.name}.devices", "expected each type once", name)
        if self.servers and not any(s.devices for s in self.servers.values()):
            broken("servers", "expected at least one device in the whole edge", "zero devices")
        addresses = [s.address for s in self.servers.values() if s.address]
        for address in sorted({a for a in addresses if addresses.count(a) > 1}):
            broken("servers", "expected each address once", address)
        seen: set[frozenset[str]] = set()
        for i, link in enumerate(self.links):
            path = f"links[{i}]"
            for end in link.between:
                if end not in self.servers:
                    broken(f"{path}.between", "expected names of servers", end)
            if link.between[0] == link.between[1]:
                broken(f"{path}.between", "expected two different servers", link.between[0])
            if frozenset(link.between) in seen:
                broken(f"{path}.between", "expected one link per pair of servers", " - ".join(link.between))
            seen.add(frozenset(link.between))
        pairs: set[tuple[str, str]] = set()
        for i, demand in enumerate(self.demand):
            path = f"demand[{i}]"
            service = self.services.get(demand.service)
            if service is None:
                broken(f"{path}.service", "expected a name from services", demand.service)
            elif service.is_stream != demand.is_streams:
                want = "streams" if service.is_stream else "rate_per_s"
                broken(
                    path, f"expected {want} for the {service.sensitivity.value}-sensitive {service.name}", "the other"
                )
            if demand.origin not in self.servers:
                broken(f"{path}.origin", "expected the name of a server", demand.origin)
            if (demand.service, demand.origin) in pairs:
                broken(path, "expected one entry per service and origin", f"{demand.service} at {demand.origin}")
            pairs.add((demand.service, demand.origin))
        if not found:
            islands = [set(nodes) for nodes in nx.connected_components(self._graph)]
            served = {s.name for s in self.servers.values() if s.devices}
            lost = set[str]().union(*(nodes for nodes in islands if not nodes & served))
            for i, demand in enumerate(self.demand):
                if demand.origin in lost:
                    broken(f"demand[{i}].origin", "expected a path to some server with devices", demand.origin)
        if found:
            raise InputError(found)

    @cached_property
    def _graph(self) -> nx.Graph[str]:
        graph: nx.Graph[str] = nx.Graph()
        graph.add_nodes_from(self.servers)
        for link in self.links:
            graph.add_edge(*link.between, rtt_ms=link.rtt_ms, width=link.bandwidth_bytes_per_s)
        return graph

    @cached_property
    def _paths(self) -> dict[str, dict[str, Path]]:
        return {}  # filled origin by origin, when asked

    def _paths_from(self, origin: str) -> dict[str, Path]:
        found = nx.single_source_dijkstra(self._graph, origin, weight="rtt_ms")
        lengths, routes = cast("tuple[dict[str, float], dict[str, list[str]]]", found)
        width = self._graph.edges
        return {
            target: Path(
                hops=tuple(itertools.pairwise(nodes)),
                rtt_ms=float(lengths[target]),
                bandwidth_bytes_per_s=min((width[h]["width"] for h in itertools.pairwise(nodes)), default=math.inf),
            )
            for target, nodes in routes.items()
        }

    def path(self, origin: str, target: str) -> Path | None:
        """Least-RTT path, or None where there is none."""
        if origin not in self.servers:
            return None
        if origin not in self._paths:
            self._paths[origin] = self._paths_from(origin)
        return self._paths[origin].get(target)


def _positive(path: str, value: float) -> None:
    if not value > 0:
        raise InputError(Violation(path=path, law="expected > 0", value=str(value)))
