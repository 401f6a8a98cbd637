"""Edges: which service from which origin could be served where, as far as the network lets it.

An edge (service, origin, server) exists where some network time is left over for the server's work. There are as many
as demands times servers, so they are kept in arrays; single ones become objects when somebody asks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from epara_opt.domain.routes import Path, Search
from epara_opt.domain.service import Demand
from epara_opt.domain.topology import Topology

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]

LEAST_SERVERS = 8  # for every demand, however many edges that makes
CHECK_EVERY = 8  # servers settled between two looks whether an origin has enough
LOOKED_AT = 40  # times as many servers as are wanted: where a service finds too few among them, it has too few


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """Service l from origin s to server n. A tenant may use it iff its response_ms <= slack_ms."""

    service: str
    origin: str
    server: str
    path: Path
    network_ms: float  # round trip and both transfers
    slack_ms: float  # deadline - network_ms; >= 0


@dataclass(frozen=True, kw_only=True)
class EdgeTable:
    """E edges by (server, service, slack_ms, origin name); P paths; H hops of all paths in a row."""

    servers: tuple[str, ...]  # that stand, have devices and some edge, in the topology's order
    services: tuple[str, ...]  # asked for, by name
    server: Int32Array  # (E,)
    service: Int32Array  # (E,)
    demand: Int32Array  # (E,) index into the problem's demand
    path: Int32Array  # (E,)
    network_ms: FloatArray  # (E,)
    slack_ms: FloatArray  # (E,)
    path_start: IntArray  # (P + 1,)
    path_hop: Int32Array  # (H,) directed links: 2 i for links[i] from between[0] on, 2 i + 1 the other way
    path_rtt_ms: FloatArray  # (P,)
    path_width: FloatArray  # (P,) bytes/s of the narrowest link; inf without links
    link_width: FloatArray  # (2 x links,) bytes/s
    there_bytes: FloatArray  # (services,) towards the server, per unit of work
    back_bytes: FloatArray  # (services,) of the answer
    origins: tuple[str, ...]  # (demands,) where each enters
    link_ends: tuple[tuple[str, str], ...]  # (2 x links,) directed

    def __len__(self) -> int:
        return len(self.server)

    @cached_property
    def _servers_services(self) -> IntArray:
        """(E,) rising: server and service in one number."""
        return self.server.astype(np.int64) * len(self.services) + self.service

    @cached_property
    def by_demand(self) -> tuple[IntArray, IntArray]:
        """Edges (E,) by demand and then server, and where each demand's begin there (demands + 1,)."""
        order = np.lexsort((self.server, self.demand))
        return order, np.searchsorted(self.demand[order], np.arange(len(self.origins) + 1))

    @cached_property
    def _sorted_keys(self) -> IntArray:
        """(E,) demand and server in one number, in the order of `by_demand`."""
        order = self.by_demand[0]
        return self.demand[order].astype(np.int64) * max(1, len(self.servers)) + self.server[order]

    @cached_property
    def _places(self) -> tuple[dict[str, int], dict[tuple[str, str], int]]:
        """Indexes of servers by name, and of demands that have edges by (service, origin)."""
        demands, first = np.unique(self.demand, return_index=True)
        services = [self.services[s] for s in self.service[first].tolist()]
        asked = [(s, self.origins[d]) for s, d in zip(services, demands.tolist(), strict=True)]
        return {n: i for i, n in enumerate(self.servers)}, dict(zip(asked, demands.tolist(), strict=True))

    def find(self, service: str, origin: str, server: str) -> int:
        """Index of an edge; -1 where there is none."""
        servers, demands = self._places
        if server not in servers or (service, origin) not in demands:
            return -1
        key = demands[service, origin] * max(1, len(self.servers)) + servers[server]
        at = int(np.searchsorted(self._sorted_keys, key))
        found = at < len(self) and int(self._sorted_keys[at]) == key
        return int(self.by_demand[0][at]) if found else -1

    def of_demand(self, demand: int) -> list[Edge]:
        """The edges of one demand as objects, in the topology's order of servers."""
        order, start = self.by_demand
        return self.some(order[start[demand] : start[demand + 1]])

    def to_server(self, service: str, server: str) -> list[Edge]:
        """The edges of a service to one server as objects, tightest first."""
        return self.some(self.in_time(service, server, -math.inf))

    def in_time(self, service: str, server: str, response_ms: float) -> IntArray:
        """Indexes of the edges of a service to one server over which such a response is in time, tightest first."""
        if server not in self._places[0] or service not in self.services:
            return np.zeros(0, dtype=np.int64)
        key = self._places[0][server] * len(self.services) + self.services.index(service)
        first, last = np.searchsorted(self._servers_services, (key, key + 1))
        return np.arange(first + np.searchsorted(self.slack_ms[first:last], response_ms), last)

    def edge(self, index: int) -> Edge:
        """One edge as an object."""
        return self.some([index])[0]

    def some(self, indexes: Sequence[int] | IntArray) -> list[Edge]:
        """Edges as objects; those of one path share it."""
        at = np.asarray(indexes, dtype=np.int64)
        paths: dict[int, Path] = {}
        found: list[Edge] = []
        for service, demand, server, p, network_ms, slack_ms in zip(
            *(part[at].tolist() for part in (self.service, self.demand, self.server, self.path)),
            self.network_ms[at].tolist(),
            self.slack_ms[at].tolist(),
            strict=True,
        ):
            path = paths.get(p)
            if path is None:
                path = paths[p] = self._path(p)
            found.append(
                Edge(
                    service=self.services[service],
                    origin=self.origins[demand],
                    server=self.servers[server],
                    path=path,
                    network_ms=network_ms,
                    slack_ms=slack_ms,
                )
            )
        return found

    def _path(self, index: int) -> Path:
        hops = self.path_hop[self.path_start[index] : self.path_start[index + 1]]
        return Path(
            hops=tuple(self.link_ends[h] for h in hops.tolist()),
            rtt_ms=float(self.path_rtt_ms[index]),
            bandwidth_bytes_per_s=float(self.path_width[index]),
        )


@dataclass(frozen=True, slots=True)
class _Way:
    """From one origin to the servers considered there, nearest first. W servers."""

    server: Int32Array  # (W,)
    rtt_ms: FloatArray
    width: FloatArray


def make_edges(
    topology: Topology,
    demand: Sequence[Demand],
    *,
    down: frozenset[str],
    least_response_ms: Callable[[str, str], float],
    max_edges: int,
) -> tuple[EdgeTable, str]:
    """All edges, or those to the nearest servers where all would be too many; and a note, empty if none was left out.

    least_response_ms(service, server): the soonest any device there answers; inf where none can run it. With it,
    "nearest" counts only servers that could serve the demand in time, by round trip; at least `LEAST_SERVERS` each.
    """
    hosts = [s.name for s in topology.servers.values() if s.devices and s.name not in down]
    services = sorted({d.service for d in demand})
    place = {name: i for i, name in enumerate(hosts)}
    most = len(hosts)
    if len(demand) * len(hosts) > max_edges:
        most = min(most, max(LEAST_SERVERS, max_edges // len(demand)))
    cut = most < len(hosts)
    least = np.array([[least_response_ms(s, h) for h in hosts] for s in services]).reshape(len(services), len(hosts))
    deadline = np.array([topology.services[s].deadline_ms for s in services])
    num_bytes = np.array([_transfer_bytes(topology, s) for s in services])
    index = {name: i for i, name in enumerate(services)}
    at: dict[str, list[int]] = {}
    for i, d in enumerate(demand):
        at.setdefault(d.origin, []).append(i)
    parts: list[tuple[npt.NDArray[np.int64], ...]] = []
    reals: list[tuple[FloatArray, FloatArray]] = []
    path_hops: list[list[int]] = []
    path_rtt: list[FloatArray] = []
    path_width: list[FloatArray] = []
    num_paths = 0
    for origin, members in at.items():
        of = np.array([index[demand[i].service] for i in members])
        # Where only the nearest are wanted, what was explored around an origin is not kept: there may be thousands.
        search = topology.explore(origin, without=down) if cut else topology.around(origin, without=down)
        way = _way(search, place, deadline[of], num_bytes[of], least[of], most if cut else None)
        network = _network_ms(way, num_bytes[of])  # (members, W)
        slack = deadline[of][:, None] - network
        usable = slack >= 0
        if cut:
            useful = slack >= least[of][:, way.server]
            some = useful.any(axis=1)
            kept = np.where(some.reshape(-1, 1), useful, usable)
            usable = kept & (np.cumsum(kept, axis=1) <= np.where(some.reshape(-1, 1), most, LEAST_SERVERS))
        row, col = np.nonzero(usable)
        needed, path = np.unique(col, return_inverse=True)
        parts.append((way.server[col].astype(np.int64), of[row], np.array(members)[row], num_paths + path))
        reals.append((network[row, col], slack[row, col]))
        path_hops += [search.links(hosts[way.server[i]]) for i in needed.tolist()]
        path_rtt.append(way.rtt_ms[needed])
        path_width.append(way.width[needed])
        num_paths += len(needed)
    server, service, of_demand, path = (
        np.concatenate([p[k] for p in parts]) if parts else np.zeros(0, dtype=np.int64) for k in range(4)
    )
    network_ms, slack_ms = (np.concatenate([r[k] for r in reals]) if reals else np.zeros(0) for k in range(2))
    names = {name: i for i, name in enumerate(sorted({d.origin for d in demand}))}
    by_name = np.array([names[d.origin] for d in demand], dtype=np.int64)
    order = np.lexsort((by_name[of_demand], slack_ms, service, server))
    present = np.unique(server)
    renumber = np.zeros(len(hosts) + 1, dtype=np.int64)
    renumber[present] = np.arange(len(present))
    table = EdgeTable(
        servers=tuple(hosts[i] for i in present.tolist()),
        services=tuple(services),
        server=renumber[server[order]].astype(np.int32),
        service=service[order].astype(np.int32),
        demand=of_demand[order].astype(np.int32),
        path=path[order].astype(np.int32),
        network_ms=network_ms[order],
        slack_ms=slack_ms[order],
        path_start=np.concatenate(([0], np.cumsum([len(h) for h in path_hops]))).astype(np.int64),
        path_hop=np.array([h for hops in path_hops for h in hops], dtype=np.int32),
        path_rtt_ms=np.concatenate(path_rtt) if path_rtt else np.zeros(0),
        path_width=np.concatenate(path_width) if path_width else np.zeros(0),
        link_width=np.repeat(np.array([k.bandwidth_bytes_per_s for k in topology.links], dtype=np.float64), 2),
        there_bytes=np.array([_service_bytes(topology, s)[0] for s in services], dtype=np.float64),
        back_bytes=np.array([_service_bytes(topology, s)[1] for s in services], dtype=np.float64),
        origins=tuple(d.origin for d in demand),
        link_ends=tuple(end for k in topology.links for end in (k.between, (k.between[1], k.between[0]))),
    )
    note = (
        f"{len(demand)} demands x {len(hosts)} servers make more than max_edges = {max_edges} edges: each demand "
        f"keeps the {most} nearest servers that could serve it in time; the bound holds under that rule"
    )
    return table, note if cut else ""


def _transfer_bytes(topology: Topology, name: str) -> float:
    shape = topology.services[name].request
    return shape.input_bytes + shape.output_bytes


def _service_bytes(topology: Topology, name: str) -> tuple[float, float]:
    service = topology.services[name]
    return (
        service.request.input_bytes * service.events_per_work,
        service.request.output_bytes * service.events_per_work,
    )


def _network_ms(way: _Way, num_bytes: FloatArray) -> FloatArray:
    """(M, W) round trip and transfers, as `Path.transfer_ms` has it."""
    return way.rtt_ms[None, :] + np.where(np.isinf(way.width), 0.0, 1000.0 * num_bytes[:, None] / way.width[None, :])


def _way(
    search: Search,
    place: Mapping[str, int],
    deadline_ms: FloatArray,  # (M,) of the services asked for here
    num_bytes: FloatArray,  # (M,)
    least_response_ms: FloatArray,  # (M, hosts)
    enough: int | None,  # useful servers for every service, then stop; None: all in reach
) -> _Way:
    """Hosts around an origin, nearest first, until a deadline or `enough` ends it."""
    server: list[int] = []
    rtt: list[float] = []
    width: list[float] = []
    useful = np.zeros(len(deadline_ms), dtype=np.int64)
    latest = float(deadline_ms.max())
    for found in search.nearest():
        if found.rtt_ms > latest:
            break
        host = place.get(found.server)
        if host is None:
            continue
        server.append(host)
        rtt.append(found.rtt_ms)
        width.append(found.bandwidth_bytes_per_s)
        if enough is not None:
            there_ms = found.rtt_ms
            if math.isfinite(found.bandwidth_bytes_per_s):
                useful += (
                    deadline_ms - there_ms - 1000.0 * num_bytes / found.bandwidth_bytes_per_s
                    >= (least_response_ms[:, host])
                )
            else:
                useful += deadline_ms - there_ms >= least_response_ms[:, host]
            if len(server) % CHECK_EVERY == 0 and (useful >= enough).all():
                break
            if len(server) >= LOOKED_AT * enough:
                break
    return _Way(np.array(server, dtype=np.int32), np.array(rtt), np.array(width))
