"""The edge: device types, servers with pools of devices, links, and the paths over them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

import networkx as nx

from epara_opt.domain.routes import Neighbours, Path, Search
from epara_opt.domain.service import Demand, Service
from epara_opt.errors import InputError, Violation

__all__ = ["DeviceKind", "DevicePool", "DeviceType", "Link", "Location", "Path", "Server", "ServerKind", "Topology"]


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
    parts: int = 1  # a device of this type is one of so many equal parts of an accelerator (spatial sharing)

    def __post_init__(self) -> None:
        _positive(f"device_types.{self.name}.memory_gib", self.memory_bytes)
        path, value = f"device_types.{self.name}.parts", str(self.parts)
        if not 1 <= self.parts <= 100:
            raise InputError(Violation(path=path, law="expected 1 .. 100", value=value))
        if self.parts > 1 and self.kind is not DeviceKind.GPU:
            law = "expected kind gpu: only its parts can be assigned"
            raise InputError(Violation(path=path, law=law, value=f"{value} of kind {self.kind.value}"))


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

    def __post_init__(self) -> None:
        path = f"links.{' - '.join(self.between)}"
        for key, value, ok, law in (
            ("rtt_ms", self.rtt_ms, self.rtt_ms >= 0, "expected a finite number >= 0"),
            (
                "bandwidth_bytes_per_s",
                self.bandwidth_bytes_per_s,
                self.bandwidth_bytes_per_s > 0,
                "expected a finite number > 0",
            ),
        ):
            if not (ok and math.isfinite(value)):
                raise InputError(Violation(path=f"{path}.{key}", law=law, value=str(value)))


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
        for address in sorted(a for a, times in Counter(addresses).items() if times > 1):
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
            graph.add_edge(*link.between)
        return graph

    @cached_property
    def _neighbours(self) -> Neighbours:
        table: dict[str, list[tuple[str, float, float, int]]] = {}
        for i, link in enumerate(self.links):
            a, b = link.between
            table.setdefault(a, []).append((b, link.rtt_ms, link.bandwidth_bytes_per_s, 2 * i))
            table.setdefault(b, []).append((a, link.rtt_ms, link.bandwidth_bytes_per_s, 2 * i + 1))
        return table

    @cached_property
    def _searches(self) -> dict[tuple[frozenset[str], str], Search]:
        return {}  # filled when asked

    def around(self, origin: str, *, without: frozenset[str] = frozenset()) -> Search:
        """Servers around an origin by RTT, and the paths to them. without: servers that nothing crosses."""
        search = self._searches.get((without, origin))
        if search is None:
            if without and not any(known == without for known, _ in self._searches):
                self._searches.clear()  # another set of servers is down now
            search = self._searches[without, origin] = Search(self._neighbours, origin, without)
        return search

    def explore(self, origin: str, *, without: frozenset[str] = frozenset()) -> Search:
        """As `around`, for one look: nothing is remembered."""
        return Search(self._neighbours, origin, without)

    def path(self, origin: str, target: str, *, without: frozenset[str] = frozenset()) -> Path | None:
        """Least-RTT path around the servers `without`, or None where there is none."""
        return self.around(origin, without=without).path(target) if origin in self.servers else None


def _positive(path: str, value: float) -> None:
    if not value > 0:
        raise InputError(Violation(path=path, law="expected > 0", value=str(value)))
