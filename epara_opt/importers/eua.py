"""EUA data set (PhuLai/eua-dataset) to topology documents: base-station sites as servers, users as demand.

Sites CSV: SITE_ID, LATITUDE, LONGITUDE and more (only these and NAME are used). Users CSV: Latitude, Longitude;
each user asks at the nearest site, which gives the sites their shares of demand. The data set has no links:
each site is joined to its k nearest and by a spanning tree. Devices and services come from the generator.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from epara_opt.domain.profile import ProfileCatalogue
from epara_opt.errors import InputError, Violation
from epara_opt.importers.generate import furnish
from epara_opt.importers.geography import Site, distance_km, nearest_neighbour_links
from epara_opt.importers.graphml import Imported

FLOOR_MS = 0.3  # of a link's round trip between neighbouring cells
BANDWIDTH_MBPS = 10_000.0  # of a link between sites; narrowed to what the servers are wired with


def import_eua(
    sites_csv: Path,
    users: Path | None = None,
    *,
    catalogue: ProfileCatalogue | None = None,
    services: int = 12,
    seed: int = 1,
    overload: float = 1.6,
    neighbours: int = 3,
    max_sites: int | None = None,
) -> Imported:
    """Read the sites (the first `max_sites` of them) and optionally users. Raises InputError with every bad line."""
    notes: list[str] = []
    sites = _sites(sites_csv, notes)
    if max_sites is not None and len(sites) > max_sites:
        notes.append(f"kept the first {max_sites} of {len(sites)} sites")
        sites = sites[:max_sites]
    if users is not None:
        sites = _with_shares(sites, users, notes)
    links = nearest_neighbour_links(sites, neighbours=neighbours, floor_ms=FLOOR_MS, bandwidth_mbps=BANDWIDTH_MBPS)
    notes.append(f"drew {len(links)} links: the {neighbours} nearest of each site and a spanning tree")
    document = furnish(
        sites, links, services=services, seed=seed, catalogue=catalogue, overload=overload, name=sites_csv.stem
    )
    return Imported(document=document, notes=tuple(notes))


def _sites(path: Path, notes: list[str]) -> list[Site]:
    sites: list[Site] = []
    found: list[Violation] = []
    spots: dict[tuple[float, float], str] = {}
    stacked = 0
    for line, cells in _rows(path, ("SITE_ID", "LATITUDE", "LONGITUDE")):
        where = _where(cells["LATITUDE"], cells["LONGITUDE"])
        identity = cells["SITE_ID"].strip()
        if where is None or not identity:
            law = "expected SITE_ID, LATITUDE and LONGITUDE in degrees"
            value = f"{identity}, {cells['LATITUDE']}, {cells['LONGITUDE']}"
            found.append(Violation(path="site", law=law, value=value, file=str(path), line=line))
        elif any(s.name == f"site-{identity}" for s in sites):
            law = "expected each SITE_ID once"
            found.append(Violation(path="SITE_ID", law=law, value=identity, file=str(path), line=line))
        elif where in spots:
            stacked += 1
        else:
            spots[where] = identity
            sites.append(Site(name=f"site-{identity}", lat=where[0], lon=where[1]))
    if found:
        raise InputError(found)
    if not sites:
        raise InputError(Violation(path="", law="expected at least one site", value="none", file=str(path)))
    if stacked:
        notes.append(f"joined {stacked} site(s) that stand exactly where another stands")
    return sites


def _with_shares(sites: Sequence[Site], path: Path, notes: list[str]) -> list[Site]:
    """Sites with the share of users nearest to each; a site without users keeps the share of half a user."""
    asking = [0.5] * len(sites)
    total = 0
    for line, cells in _rows(path, ("Latitude", "Longitude")):
        where = _where(cells["Latitude"], cells["Longitude"])
        if where is None:
            law, value = "expected Latitude and Longitude in degrees", f"{cells['Latitude']}, {cells['Longitude']}"
            raise InputError(Violation(path="user", law=law, value=value, file=str(path), line=line))
        user = Site(name="user", lat=where[0], lon=where[1])
        asking[min(range(len(sites)), key=lambda i: distance_km(sites[i], user))] += 1
        total += 1
    notes.append(f"shared demand by {total} users, each at the nearest site")
    return [Site(name=s.name, lat=s.lat, lon=s.lon, demand_share=n) for s, n in zip(sites, asking, strict=True)]


def _rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as e:
        law = f"expected a file that can be read: {e.strerror}"
        raise InputError(Violation(path="", law=law, file=str(path))) from None
    reader = csv.DictReader(text.splitlines())
    missing = [c for c in columns if c not in (reader.fieldnames or ())]
    if missing:
        law = f"expected the columns {', '.join(columns)}"
        raise InputError(Violation(path="header", law=law, value=f"no {', '.join(missing)}", file=str(path), line=1))
    for cells in reader:
        yield reader.line_num, {c: cells[c] or "" for c in columns}


def _where(lat: str, lon: str) -> tuple[float, float] | None:
    try:
        place = (float(lat), float(lon))
    except ValueError:
        return None
    return place if all(map(math.isfinite, place)) and abs(place[0]) <= 90 and abs(place[1]) <= 180 else None
