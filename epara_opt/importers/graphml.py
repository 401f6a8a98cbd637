"""Operator networks as GraphML (Internet Topology Zoo and alike) to topology documents.

Nodes with Latitude and Longitude become sites, edges become links: RTT from the great circle (5 us/km each
way, see geography.py), bandwidth from `LinkSpeedRaw` (bit/s) where the map states it. Servers, services and
demand are furnished by the seeded generator, since such maps know none.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import networkx as nx

from epara_opt.domain.profile import ProfileCatalogue
from epara_opt.errors import InputError, Violation
from epara_opt.importers.document import Document
from epara_opt.importers.generate import furnish
from epara_opt.importers.geography import Site, SiteLink, rtt_ms

FLOOR_MS = 0.2  # of a link's round trip, for nodes in the same city
DEFAULT_BANDWIDTH_MBPS = 1_000.0  # where the map states no speed


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """A document, and what a reader should know about how the source was read."""

    document: Document
    notes: tuple[str, ...]


def import_graphml(
    path: Path,
    *,
    catalogue: ProfileCatalogue | None = None,
    services: int = 12,
    seed: int = 1,
    overload: float = 1.6,
    default_bandwidth_mbps: float = DEFAULT_BANDWIDTH_MBPS,
    floor_ms: float = FLOOR_MS,
) -> Imported:
    """Read a GraphML map. Raises InputError where nothing can be made of it; oddities that can be met are notes."""
    graph = _read(path)
    notes: list[str] = []
    sites = _sites(graph, path, notes)
    links = _links(graph, sites, notes, default_bandwidth_mbps=default_bandwidth_mbps, floor_ms=floor_ms)
    kept, links = _largest_part(list(sites.values()), links, notes)
    name = str(graph.graph.get("Network") or path.stem)
    document = furnish(
        kept,
        links,
        services=services,
        seed=seed,
        catalogue=catalogue,
        overload=overload,
        name=_name(name) or "imported",
    )
    return Imported(document=document, notes=tuple(notes))


def _read(path: Path) -> nx.Graph[Any]:
    try:
        graph = cast("nx.Graph[Any]", nx.read_graphml(path))
    except OSError as e:
        raise InputError(
            Violation(path="", law=f"expected a file that can be read: {e.strerror}", file=str(path))
        ) from None
    except ET.ParseError as e:
        raise InputError(
            Violation(path="", law=f"expected XML: {e.msg.split(':')[0]}", file=str(path), line=e.position[0])
        ) from None
    except (nx.NetworkXError, ValueError, KeyError) as e:
        raise InputError(Violation(path="", law=f"expected GraphML: {e}", file=str(path))) from None
    if not graph.number_of_nodes():
        raise InputError(Violation(path="", law="expected GraphML with nodes", value="none", file=str(path)))
    return graph


def _sites(graph: nx.Graph[Any], path: Path, notes: list[str]) -> dict[Any, Site]:
    """Sites by node. Duplicate labels get a number; nodes without coordinates are left out and told."""
    sites: dict[Any, Site] = {}
    used: set[str] = set()
    nowhere: list[str] = []
    renamed: list[str] = []
    for node, raw in cast("Mapping[Any, dict[str, Any]]", dict(graph.nodes(data=True))).items():
        stated = str(raw.get("label", "None"))  # the Zoo writes None where it knows no name
        label = _name(stated if stated != "None" else "") or f"node-{_name(str(node))}"
        lat, lon = _degrees(raw.get("Latitude"), 90), _degrees(raw.get("Longitude"), 180)
        if lat is None or lon is None:
            nowhere.append(label)
            continue
        name, n = label, 1
        while name in used:
            n += 1
            name = f"{label}-{n}"
        if n > 1:
            renamed.append(name)
        used.add(name)
        sites[node] = Site(name=name, lat=lat, lon=lon)
    if nowhere:
        notes.append(f"left out {len(nowhere)} node(s) without coordinates: {_some(nowhere)}")
    if renamed:
        notes.append(f"numbered {len(renamed)} node(s) whose label was taken: {_some(renamed)}")
    if not sites:
        law = "expected nodes with Latitude and Longitude"
        raise InputError(Violation(path="nodes", law=law, value="none has both", file=str(path)))
    return sites


def _links(
    graph: nx.Graph[Any],
    sites: Mapping[Any, Site],
    notes: list[str],
    *,
    default_bandwidth_mbps: float,
    floor_ms: float,
) -> list[SiteLink]:
    """One link per pair of sites: parallel edges add their bandwidth; loops are dropped."""
    speeds: dict[tuple[str, str], float] = {}
    ends: dict[tuple[str, str], tuple[Site, Site]] = {}
    parallel = loops = unknown = 0
    for u, v, raw in list(graph.edges(data=True)):
        if u not in sites or v not in sites:
            continue
        if u == v:
            loops += 1
            continue
        a, b = sorted((sites[u], sites[v]), key=lambda s: s.name)
        mbps = _mbps(raw.get("LinkSpeedRaw"))
        if mbps is None:
            unknown += 1
            mbps = default_bandwidth_mbps
        pair = (a.name, b.name)
        parallel += pair in speeds
        speeds[pair] = speeds.get(pair, 0.0) + mbps
        ends[pair] = (a, b)
    if parallel:
        notes.append(f"joined {parallel} parallel edge(s): their bandwidths add up")
    if loops:
        notes.append(f"dropped {loops} edge(s) from a node to itself")
    if unknown:
        notes.append(f"assumed {default_bandwidth_mbps:g} Mb/s for {unknown} edge(s) without LinkSpeedRaw")
    return [
        SiteLink(between=pair, rtt_ms=rtt_ms(*ends[pair], floor_ms=floor_ms), bandwidth_mbps=mbps)
        for pair, mbps in speeds.items()
    ]


def _largest_part(sites: list[Site], links: list[SiteLink], notes: list[str]) -> tuple[list[Site], list[SiteLink]]:
    """Servers that cannot reach each other are not one edge: keep the largest connected part."""
    graph: nx.Graph[str] = nx.Graph()
    graph.add_nodes_from(s.name for s in sites)
    graph.add_edges_from(link.between for link in links)
    parts = sorted(nx.connected_components(graph), key=lambda part: (-len(part), min(part)))
    if len(parts) > 1:
        notes.append(
            f"kept the largest of {len(parts)} connected parts: {len(parts[0])} of {len(sites)} nodes; "
            f"left out {_some(sorted(set(graph) - parts[0]))}"
        )
    keep = parts[0]
    return [s for s in sites if s.name in keep], [link for link in links if link.between[0] in keep]


def _name(text: str) -> str:
    """A label as a server name: letters, digits, '.', '_' and '-'."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")


def _degrees(raw: object, most: float) -> float | None:
    try:
        value = float(str(raw))
    except ValueError:
        return None
    return round(value, 5) if -most <= value <= most else None


def _mbps(raw: object) -> float | None:
    try:
        value = float(str(raw)) / 1e6
    except ValueError:
        return None
    return value if 0 < value < float("inf") else None


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
