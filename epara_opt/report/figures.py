"""Figures as people read them: numbers with few digits, a verdict in one sentence, sums of what a plan says.

Nothing here decides anything; every sum adds up what the plan already contains.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from epara_opt.domain.topology import Topology
from epara_opt.plan import Plan, Replica, Route, ServiceForecast, Stop

STOP_WORDS: Mapping[Stop, str] = {
    Stop.OPTIMAL: "proved optimal",
    Stop.GAP_LIMIT: "stopped at the gap asked for",
    Stop.TIME_LIMIT: "stopped at the time limit",
    Stop.HEURISTIC: "heuristic ran to its end",
    Stop.NO_DEMAND: "nothing was offered",
    Stop.SOLVER_FAILED: "solver failed, fallback used",
}

UNSERVED_WORDS: Mapping[str, str] = {
    "no_profile": "Never profiled on any device here",
    "no_memory": "Fits in no device's memory",
    "no_route_in_time": "Every route breaks the deadline",
    "outbid": "Outbid: the devices earn more elsewhere",
    "no_devices": "No devices to run on",
    "no_batch": "Too few streams to fill a batch",
}


def plain(text: object) -> str:
    """Text without control characters, which a terminal or a page could obey."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def number(value: float | None) -> str:
    """Three significant digits, thousands grouped: 0.0123, 1.5, 12.3, 12,345."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    size = abs(value)
    if size < 5e-4:
        return "0"
    if size >= 99.95:
        return f"{value:,.0f}"
    digits = max(0, 2 - math.floor(math.log10(size)))
    return f"{value:.{digits}f}".rstrip("0").rstrip(".")


def signed(value: float) -> str:
    """A change: +12.3, -4, 0."""
    text = number(value)
    return f"+{text}" if value > 0 and text != "0" else text


def percent(share: float | None) -> str:
    """A share as per cent, never rounded up to a full hundred."""
    if share is None or math.isnan(share):
        return "–"
    if 0 < share < 0.001:
        return "<0.1 %"
    scaled = 100.0 * share
    text = f"{math.floor(scaled * 10) / 10:.1f}" if 99.0 < scaled < 100.0 else f"{scaled:.1f}"
    return f"{text.removesuffix('.0')} %"


def millis(value: float | None) -> str:
    """Milliseconds without the unit, which headers carry: 0.4, 8.2, 61, 1,250."""
    if value is None:
        return "–"
    return "0" if abs(value) < 0.05 else f"{value:.1f}" if abs(value) < 9.95 else f"{value:,.0f}"


class Tone(StrEnum):
    """How a share of served work is coloured; the number always stands beside it."""

    GOOD = "good"
    FAIR = "fair"
    POOR = "poor"


def tone(share: float) -> Tone:
    """0.95 is where a stream counts as satisfied; the lower step is only a colour."""
    return Tone.GOOD if share >= 0.95 else Tone.FAIR if share >= 0.75 else Tone.POOR


def verdict(plan: Plan) -> str:
    """The plan in one sentence: what is served, and what is proven about the rest."""
    if plan.stop is Stop.NO_DEMAND or plan.predicted.offered <= 0:
        return "Nothing is offered, so nothing is placed."
    if plan.predicted.slo_attainment >= 1 - 1e-9 and plan.stop is not Stop.SOLVER_FAILED:
        return "Serves all that is offered."
    served = f"Serves {percent(plan.predicted.slo_attainment)} of what is offered"
    tail = "; the solver failed, so this is the fallback's plan" if plan.stop is Stop.SOLVER_FAILED else ""
    if plan.dual_bound is None:
        return f"{served}; how much more is possible was not proved{tail}."
    if plan.stop is Stop.OPTIMAL or (plan.gap is not None and plan.gap <= 1e-6):
        return f"{served}; no plan under the same rules serves more, proven{tail}."
    if plan.objective <= 0:
        return f"{served}; at most {number(plan.dual_bound)} weighted work/s is possible, proven{tail}."
    more = max(0.0, plan.dual_bound - plan.objective) / plan.objective
    return f"{served}; at most {percent(more)} more is possible, proven{tail}."


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Weighted work offered and served under one heading."""

    name: str
    offered: float
    served: float

    @property
    def attainment(self) -> float:
        return self.served / self.offered if self.offered > 0 else 1.0


def by_category(plan: Plan, topology: Topology) -> tuple[Share, ...]:
    """Weighted goodput per category, in the order the categories first appear."""
    sums: dict[str, Share] = {}
    for f in plan.predicted.services:
        w = weight(topology, f.service)
        known = sums.get(f.category, Share(name=f.category, offered=0.0, served=0.0))
        sums[f.category] = Share(
            name=f.category, offered=known.offered + w * f.offered, served=known.served + w * f.goodput
        )
    return tuple(sums.values())


def by_origin(plan: Plan, topology: Topology) -> tuple[Share, ...]:
    """Weighted work per origin, the origin that loses most first."""
    served: dict[str, float] = {}
    lost: dict[str, float] = {}
    for r in plan.routes:
        served[r.origin] = served.get(r.origin, 0.0) + weight(topology, r.service) * r.rate
    for u in plan.unserved:
        lost[u.origin] = lost.get(u.origin, 0.0) + weight(topology, u.service) * u.rate
    rows = [
        Share(name=o, served=served.get(o, 0.0), offered=served.get(o, 0.0) + lost.get(o, 0.0))
        for o in sorted({*served, *lost})
    ]
    return tuple(sorted(rows, key=lambda s: s.served - s.offered))


def forecasts(plan: Plan, topology: Topology) -> tuple[ServiceForecast, ...]:
    """Services, the one that loses most value first, then by value served."""

    def key(f: ServiceForecast) -> tuple[float, float, str]:
        w = weight(topology, f.service)
        return (-round(w * (f.offered - f.goodput), 6), -w * f.goodput, f.service)

    return tuple(sorted(plan.predicted.services, key=key))


def weight(topology: Topology, service: str) -> float:
    known = topology.services.get(service)
    return known.weight if known else 1.0


def unit(topology: Topology, service: str) -> str:
    known = topology.services.get(service)
    return known.work_unit if known else "work/s"


def deadline_ms(topology: Topology, service: str) -> float | None:
    known = topology.services.get(service)
    return known.deadline_ms if known else None


def num_devices(topology: Topology) -> int:
    return sum(p.count for s in topology.servers.values() for p in s.devices)


def num_devices_used(plan: Plan) -> int:
    return len({place[:3] for r in plan.replicas for place in r.places})


def replicas_at(plan: Plan) -> dict[str, list[Replica]]:
    """Replicas by server, those on the same group side by side; of one over several servers each stage where it is."""
    table: dict[str, list[Replica]] = {}
    for r in sorted(
        (part for r in plan.replicas for part in _parts(r)),
        key=lambda r: (r.device_type, r.devices, r.group, -r.share, r.service),
    ):
        table.setdefault(r.server, []).append(r)
    return table


def _parts(r: Replica) -> tuple[Replica, ...]:
    """The replica, or one for each of its stages with that stage's place and memory."""
    return tuple(
        replace(
            r,
            server=s.server,
            device_type=s.device_type,
            devices=s.devices,
            tp=len(s.devices),
            memory_bytes=s.memory_bytes,
            stages=(s,),
        )
        for s in r.stages
    ) or (r,)


def hosts(plan: Plan) -> dict[str, str]:
    """Replica id to the server it runs at."""
    return {r.id: r.server for r in plan.replicas}


def offloaded(plan: Plan, topology: Topology) -> tuple[float, float]:
    """Weighted work served away from its origin, and weighted work served at all."""
    at = hosts(plan)
    away = total = 0.0
    for r in plan.routes:
        value = weight(topology, r.service) * r.rate
        total += value
        away += value if at.get(r.replica, r.origin) != r.origin else 0.0
    return away, total


def tightest_first(plan: Plan, topology: Topology) -> tuple[Route, ...]:
    """Routes by the share of the deadline they use, the least slack first."""

    def used(r: Route) -> float:
        deadline = deadline_ms(topology, r.service)
        return r.predicted_ms / deadline if deadline else 0.0

    return tuple(sorted(plan.routes, key=lambda r: (-used(r), r.service, r.origin, r.replica)))


def devices_label(r: Replica) -> str:
    """l4 0+1; of a stage also its layers."""
    layers = f", layers {r.stages[0].first_layer}-{r.stages[0].end_layer - 1}" if len(r.stages) == 1 else ""
    return f"{r.device_type} {'+'.join(map(str, r.devices))}{layers}"


def operators_in_use(plan: Plan, topology: Topology) -> dict[str, tuple[str, ...]]:
    """Per service, which of EPARA's operators its replicas show, in the paper's abbreviations.

    MT: some group has another tenant. DP: an origin's streams are spread over several replicas.
    """
    tenants: dict[str, set[str]] = {}
    for r in plan.replicas:
        tenants.setdefault(r.group, set()).add(r.service)
    fans: dict[tuple[str, str], set[str]] = {}
    for route in plan.routes:
        fans.setdefault((route.service, route.origin), set()).add(route.replica)
    seen: dict[str, set[str]] = {}
    for r in plan.replicas:
        marks = seen.setdefault(r.service, set())
        marks |= {
            name
            for name, used in (
                ("BS", r.batch > 1),
                ("MT", len(tenants[r.group]) > 1),
                ("MP", r.tp * r.pp > 1),
                ("MF", r.frames > 1),
            )
            if used
        }
    for (name, _), replicas in fans.items():
        service = topology.services.get(name)
        if service is not None and service.is_stream and len(replicas) > 1:
            seen.setdefault(name, set()).add("DP")
    return {s: tuple(o for o in ("BS", "MT", "MP", "MF", "DP") if o in marks) for s, marks in seen.items()}
