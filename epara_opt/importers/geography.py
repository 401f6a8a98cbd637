"""Distances, the round-trip times they imply, and networks drawn between places."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import networkx as nx
import numpy as np

EARTH_RADIUS_KM = 6371.0
FIBRE_US_PER_KM = 5.0  # one way: light in glass, about 2/3 of c (Internet Topology Zoo's usual reading)


FEW = 1_000  # sites among which every pair is looked at
NEAR = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A place where demand enters and servers may stand."""

    name: str
    lat: float  # degrees north
    lon: float  # degrees east
    demand_share: float = 1.0  # of the whole demand, relative to the other sites


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteLink:
    """A link between two sites, in the units of the topology file."""

    between: tuple[str, str]
    rtt_ms: float
    bandwidth_mbps: float

    def record(self) -> dict[str, object]:
        return {"between": list(self.between), "rtt_ms": self.rtt_ms, "bandwidth_mbps": self.bandwidth_mbps}


def distance_km(a: Site, b: Site) -> float:
    """Great circle, by the haversine formula."""
    lat_a, lat_b = math.radians(a.lat), math.radians(b.lat)
    half_lat, half_lon = (lat_b - lat_a) / 2, math.radians(b.lon - a.lon) / 2
    chord = math.sin(half_lat) ** 2 + math.cos(lat_a) * math.cos(lat_b) * math.sin(half_lon) ** 2
    return 2 * EARTH_RADIUS_KM * math.asin(math.sqrt(min(1.0, chord)))


def rtt_ms(a: Site, b: Site, *, floor_ms: float) -> float:
    """Fibre both ways along the great circle, never below the floor (switching, serialization), in ms."""
    return round(max(floor_ms, 2 * FIBRE_US_PER_KM * distance_km(a, b) / 1000.0), 3)


def _near(sites: Sequence[Site], most: int) -> Iterator[list[int]]:
    """For every site the others: all of a few, else the nearest by the straight line through the earth."""
    if len(sites) <= FEW:
        yield from ([j for j in range(len(sites)) if j != i] for i in range(len(sites)))
        return
    lat, lon = np.radians([s.lat for s in sites]), np.radians([s.lon for s in sites])
    points = np.stack((np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)), axis=1)
    for i in range(len(sites)):
        apart = ((points - points[i]) ** 2).sum(axis=1)
        apart[i] = np.inf
        yield np.argpartition(apart, most)[:most].tolist()


def nearest_neighbour_links(
    sites: Sequence[Site], *, neighbours: int, floor_ms: float, bandwidth_mbps: float
) -> list[SiteLink]:
    """Links of every site to its k nearest, plus a minimum spanning tree so that nothing is an island.

    Among many sites the tree is looked for between the `NEAR` nearest of each; parts that are still apart are joined
    where they come closest.
    """
    graph: nx.Graph[int] = nx.Graph()
    graph.add_nodes_from(range(len(sites)))
    chosen: set[tuple[int, int]] = set()
    for i, near in enumerate(_near(sites, max(NEAR, neighbours))):
        row = sorted((distance_km(sites[i], sites[j]), j) for j in near)
        for km, j in row:
            graph.add_edge(i, j, km=km)
        chosen.update((min(i, j), max(i, j)) for _, j in row[:neighbours])
    islands = [sorted(part) for part in nx.connected_components(graph)]
    while len(islands) > 1:
        km, i, j = min(
            (distance_km(sites[i], sites[j]), i, j) for other in islands[1:] for i in islands[0] for j in other
        )
        graph.add_edge(i, j, km=km)
        joined = next(part for part in islands[1:] if j in part)
        islands = [islands[0] + joined, *(part for part in islands[1:] if part is not joined)]
    for i, j in nx.minimum_spanning_edges(graph, weight="km", data=False):
        chosen.add((min(i, j), max(i, j)))
    return [
        SiteLink(
            between=(sites[i].name, sites[j].name),
            rtt_ms=rtt_ms(sites[i], sites[j], floor_ms=floor_ms),
            bandwidth_mbps=bandwidth_mbps,
        )
        for i, j in sorted(chosen)
    ]
