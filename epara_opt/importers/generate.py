"""A seeded generator of plannable edges: servers, services of all four categories, skewed demand, overload.

`furnish` puts servers, services and demand onto any sites (the importers use it for real maps); `generate`
also invents the map. Popularity follows Zipf's law over services and over sites, as in content networks and
in Azure Functions, where 10 of 504 functions make 46 % of all invocations.

Demand is scaled by device time, so that "overload 1.6" means: serving everything would take 1.6 times the
device time there is, on devices of average suitability. A service's weight is its mean device time, give or
take a half, so that no service wins merely because its requests are short.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from epara_opt.domain.category import is_timely
from epara_opt.domain.performance import configurations, evaluate
from epara_opt.domain.profile import ProfileCatalogue
from epara_opt.domain.service import Service
from epara_opt.errors import InputError, Violation
from epara_opt.importers.catalogue import BANDWIDTH_MBPS, DEVICE_TYPES, SERVER_MIX, SERVICES, shipped_catalogue
from epara_opt.importers.document import Document
from epara_opt.importers.geography import Site, SiteLink, nearest_neighbour_links
from epara_opt.problem import PlanningRules
from epara_opt.topology.build import service_of
from epara_opt.units import gib_to_bytes

FloatArray = npt.NDArray[np.float64]

ZIPF_SERVICES = 0.8
ZIPF_SITES = 0.7
METRO_RADIUS_KM = 15.0
MAX_RATE_PER_S = 3000.0  # of one service in the whole edge: beyond it links, not devices, would be the story
FLOOR_MS = 0.5  # of a metro link's round trip: edge RTT inside one site is 0.1-0.8 ms


def generate(
    *,
    servers: int,
    services: int,
    seed: int,
    catalogue: ProfileCatalogue | None = None,
    overload: float = 1.6,
    name: str = "",
    centre: tuple[float, float] = (-37.81, 144.96),
) -> Document:
    """A metro edge of `servers` servers around `centre` (lat, lon); equal arguments give an equal document.

    catalogue: profiles of the services to choose from; None takes the shipped ones.
    """
    _need(servers >= 1, "servers", "expected >= 1", servers)
    rng = np.random.default_rng(seed)
    sites: list[Site] = []
    for i in range(servers):
        radius_km = METRO_RADIUS_KM * math.sqrt(float(rng.random()))
        angle = 2 * math.pi * float(rng.random())
        lat = centre[0] + radius_km * math.cos(angle) / 111.0
        lon = centre[1] + radius_km * math.sin(angle) / (111.0 * math.cos(math.radians(centre[0])))
        sites.append(Site(name=f"site-{i + 1:0{len(str(servers))}d}", lat=round(lat, 4), lon=round(lon, 4)))
    shares = _zipf(rng, servers, ZIPF_SITES)
    sites = [
        Site(name=s.name, lat=s.lat, lon=s.lon, demand_share=float(share))
        for s, share in zip(sites, shares, strict=True)
    ]
    links = nearest_neighbour_links(sites, neighbours=2, floor_ms=FLOOR_MS, bandwidth_mbps=10_000)
    return furnish(
        sites,
        links,
        services=services,
        seed=seed,
        catalogue=catalogue,
        overload=overload,
        name=name or f"metro-{servers}-{seed}",
    )


def furnish(
    sites: Sequence[Site],
    links: Sequence[SiteLink],
    *,
    services: int,
    seed: int,
    catalogue: ProfileCatalogue | None = None,
    overload: float = 1.6,
    name: str,
) -> Document:
    """Put a server at every site and services and demand over them. Sites get demand by their share."""
    _need(services >= 1, "services", "expected >= 1", services)
    _need(math.isfinite(overload) and overload > 0, "overload", "expected a finite number > 0", overload)
    _need(bool(sites), "sites", "expected at least one site", 0)
    catalogue = shipped_catalogue() if catalogue is None else catalogue
    rng = np.random.default_rng([seed, 1])
    mix = [SERVER_MIX[i % len(SERVER_MIX)] for i in range(len(sites))]
    order = rng.permutation(len(sites))
    furnished = {sites[int(at)].name: mix[i] for i, at in enumerate(order)}
    counts: dict[str, int] = {}
    for _, devices in mix:
        for device_type, count in devices:
            counts[device_type] = counts.get(device_type, 0) + count
    chosen = _choose(services, counts, catalogue)
    demand = _demand(chosen, sites, counts, catalogue, rng, overload)
    return {
        "version": 1,
        "name": name,
        "device_types": {t: dict(v) for t, v in DEVICE_TYPES.items() if t in counts},
        "servers": [_server(site, *furnished[site.name]) for site in sites],
        "links": [_narrowed(link, furnished).record() for link in links],
        "services": chosen,
        "demand": demand,
    }


def _server(site: Site, kind: str, devices: Sequence[tuple[str, int]]) -> dict[str, Any]:
    return {
        "name": site.name,
        "kind": kind,
        "devices": [{"type": t, "count": n} for t, n in devices],
        "location": {"lat": site.lat, "lon": site.lon},
    }


def _narrowed(link: SiteLink, furnished: dict[str, tuple[str, tuple[tuple[str, int], ...]]]) -> SiteLink:
    """No link is faster than what the slower of its two servers is wired with."""
    ends = [BANDWIDTH_MBPS[furnished[end][0]] for end in link.between]
    return SiteLink(between=link.between, rtt_ms=link.rtt_ms, bandwidth_mbps=float(min(link.bandwidth_mbps, *ends)))


def _choose(services: int, counts: dict[str, int], catalogue: ProfileCatalogue) -> list[dict[str, Any]]:
    """Services that these devices can serve, the categories by turns; later rounds relax the deadline."""
    usable = {
        category: [s for s in options if _device_s_per_work(service_of(s), counts, catalogue) is not None]
        for category, options in SERVICES.items()
    }
    _need(any(usable.values()), "sites", "expected devices that some service of the catalogue can use", sorted(counts))
    chosen: list[dict[str, Any]] = []
    turn = 0
    while len(chosen) < services:
        before = len(chosen)
        for options in usable.values():
            if turn < len(options) and len(chosen) < services:
                chosen.append(copy.deepcopy(options[turn]))
        turn += 1
        if len(chosen) == before:
            break
    round_ = 2
    base = list(chosen)
    while len(chosen) < services:
        for service in base[: services - len(chosen)]:
            variant = copy.deepcopy(service)
            variant["name"] = f"{service['name']}-{round_}"
            for key in ("slo_ms", "ttft_ms", "tpot_ms", "frame_deadline_ms"):
                if key in variant:
                    variant[key] = round(float(variant[key]) * (1 + 0.25 * (round_ - 1)), 1)
            chosen.append(variant)
        round_ += 1
    return chosen


def _device_s_per_work(service: Service, counts: dict[str, int], catalogue: ProfileCatalogue) -> float | None:
    """Device-seconds per unit of work, averaged over the devices that can do it; None where none can.

    The same rule as the planner's for one tenant: best rate among what fits in memory and is timely. A service
    that some single device serves whole uses single devices only.
    """
    single: list[tuple[int, float]] = []
    several: list[tuple[int, float]] = []
    whole = False
    for device_type, count in counts.items():
        memory = gib_to_bytes(DEVICE_TYPES[device_type]["memory_gib"])
        for shape, profile in catalogue.shapes(service.model.profile_name, device_type).items():
            options = [evaluate(service, profile, c) for c in configurations(service, profile)]
            good = [o for o in options if o.memory_bytes <= memory and is_timely(service, o.response_ms, o.tpot_ms)]
            devices = shape[0] * shape[1]
            if not good or devices > count:
                continue
            rate = max(o.work_per_s for o in good)
            (single if shape == (1, 1) else several).append((count, devices / rate))
            whole = whole or (shape == (1, 1) and (not service.is_stream or rate >= 1))
    kept = single if whole else single + several
    return sum(n * s for n, s in kept) / sum(n for n, _ in kept) if kept else None


def _demand(
    chosen: Sequence[dict[str, Any]],
    sites: Sequence[Site],
    counts: dict[str, int],
    catalogue: ProfileCatalogue,
    rng: np.random.Generator,
    overload: float,
) -> list[dict[str, Any]]:
    """Zipf shares of device time over services, spread over a part of the sites; sets each service's weight."""
    budget = overload * sum(counts.values()) * PlanningRules().max_utilization
    shares = _zipf(rng, len(chosen), ZIPF_SERVICES)
    site_shares = np.array([s.demand_share for s in sites], dtype=float)
    site_shares /= site_shares.sum()
    num_origins = max(1, math.ceil(0.3 * len(sites)))
    seconds = [_device_s_per_work(service_of(s), counts, catalogue) or 1.0 for s in chosen]  # _choose: never None
    entries: list[dict[str, Any]] = []
    for service, each_s, work in zip(chosen, seconds, _work(shares * budget, seconds), strict=True):
        service["weight"] = _two_digits(each_s * float(rng.uniform(0.5, 1.5)))
        origins = np.sort(rng.choice(len(sites), size=num_origins, replace=False, p=site_shares))
        split = site_shares[origins] * rng.gamma(2.0, size=num_origins)
        split /= split.sum()
        names = [sites[int(at)].name for at in origins]
        if service["sensitivity"] == "frequency":
            streams = _whole_parts(max(1, round(work)), split)
            entries += [
                {"service": service["name"], "origin": origin, "streams": n}
                for origin, n in zip(names, streams, strict=True)
                if n
            ]
        else:
            entries += [
                {
                    "service": service["name"],
                    "origin": origin,
                    "rate_per_s": _two_digits(work * float(part)),
                    "burstiness_cv": round(float(rng.uniform(0.8, 2.0)), 2),
                }
                for origin, part in zip(names, split, strict=True)
            ]
    return entries


def _work(device_s: FloatArray, seconds: Sequence[float]) -> list[float]:
    """Work per second of each service from its device time; what the rate limit cuts goes to the others."""
    left, free = float(device_s.sum()), list(range(len(seconds)))
    work = [0.0] * len(seconds)
    while free:
        scale = left / sum(float(device_s[i]) for i in free)
        capped = [i for i in free if scale * float(device_s[i]) / seconds[i] > MAX_RATE_PER_S]
        for i in capped or free:
            work[i] = MAX_RATE_PER_S if capped else scale * float(device_s[i]) / seconds[i]
            left -= work[i] * seconds[i]
        free = [i for i in free if i not in capped] if capped else []
    return work


def _whole_parts(total: int, split: FloatArray) -> list[int]:
    """`total` in whole parts close to the split: largest remainders get what rounding down leaves."""
    exact = split * total
    parts = np.floor(exact)
    for at in np.argsort(parts - exact, kind="stable")[: total - int(parts.sum())]:
        parts[at] += 1
    return [int(p) for p in parts]


def _zipf(rng: np.random.Generator, n: int, exponent: float) -> FloatArray:
    """Zipf shares in random order, summing to 1."""
    shares = 1.0 / np.arange(1, n + 1, dtype=float) ** exponent
    rng.shuffle(shares)
    return shares / shares.sum()


def _two_digits(value: float) -> float:
    return float(f"{value:.2g}")


def _need(ok: bool, path: str, law: str, value: object) -> None:
    if not ok:
        raise InputError(Violation(path=path, law=law, value=str(value)))
