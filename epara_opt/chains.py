"""Chains: a model's layers over neighbouring servers, for services that no single server can host in time.

Which chains a planner may choose from is decided here, from profiles, paths and deadlines alone. For every head (a
server where some demand could enter in time) stages are strung over the head and the nearest servers that could help,
`max_stages` in all, each server in one run of stages. For every such string, batch and deadline that matters at the
head, the layers are cut by a dynamic program so that the rate is highest: see `Splits`. What another chain replaces
(no more devices anywhere, as fast, as many edges in time, no more bytes) is dropped.

The choice is a rule of the problem, as `max_contents` is: bounds hold among these chains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from epara_opt.busy import BusyTime
from epara_opt.chain_maker import Cuts, Maker
from epara_opt.contents import Content, PlanningRules
from epara_opt.domain.category import Category, Scale
from epara_opt.domain.chain import ChainPerformance, evaluate_chain
from epara_opt.domain.parallel import ParallelConfig
from epara_opt.domain.profile import ProfileCatalogue
from epara_opt.domain.routes import Path
from epara_opt.domain.service import Service
from epara_opt.domain.slices import slice_of
from epara_opt.domain.topology import Topology
from epara_opt.edges import EdgeTable
from epara_opt.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Chains:
    """What chains there are to choose from."""

    contents: tuple[Content, ...] = ()  # by service and head; each with stages
    services: frozenset[str] = frozenset()  # that could run on no single server: they run on these or not at all
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Layout:
    """A chain that runs already, and so must stay among the choices."""

    service: str
    stages: Cuts


def chains_of(
    topology: Topology,
    catalogue: ProfileCatalogue,
    categories: Mapping[str, Category],
    table: EdgeTable,
    offered: Mapping[tuple[str, str], float],
    rules: PlanningRules,
    busy: BusyTime,
    *,
    down: frozenset[str],
    soonest_ms: Callable[[str, str], float],
    running: Sequence[Layout] = (),
) -> Chains:
    """Every chain worth choosing from; none unless `rules.across_servers`.

    soonest_ms(service, server): when the fastest group inside a server answers; inf where none can.
    """
    if not rules.across_servers:
        return Chains()
    contents: list[Content] = []
    services: set[str] = set()
    notes: list[str] = []
    for name in table.services:
        service = topology.services[name]
        if service.model.layers is None or categories[name].scale is not Scale.MULTI_DEVICE:
            continue
        if any(soonest_ms(name, n) <= _slacks(table, name, n)[-1] for n in table.servers if _slacks(table, name, n)):
            continue
        services.add(name)
        maker = Maker(topology, catalogue, service, table, offered, rules, busy, down)
        found, note = maker.all()
        kept = {c: None for layout in running if layout.service == name for c in maker.of_cuts(layout.stages)}
        contents += [*found, *(c for c in kept if c not in found)]
        notes += [note] if note else []
    return Chains(contents=tuple(contents), services=frozenset(services), notes=tuple(notes))


def _slacks(table: EdgeTable, service: str, server: str) -> list[float]:
    return [e.slack_ms for e in table.to_server(service, server)]


def chain_hops(
    topology: Topology, servers: Sequence[str], down: frozenset[str] = frozenset()
) -> tuple[Path, ...] | None:
    """Paths from each stage's server to the next and back to the head; None where one is cut off."""
    found: list[Path] = []
    for a, b in zip(servers, (*servers[1:], servers[0]), strict=True):
        path = topology.path(a, b, without=down)
        if path is None:
            return None
        found.append(path)
    return tuple(found)


def chain_performance(
    topology: Topology,
    catalogue: ProfileCatalogue,
    service: Service,
    stages: Cuts,
    config: ParallelConfig,
    *,
    down: frozenset[str] = frozenset(),
) -> tuple[ChainPerformance, dict[tuple[str, str], float]]:
    """What a chain can do, and the bytes that one unit of its work puts on each directed link between its stages.

    stages: (server, device type, tp, first layer, end layer). Raises InputError where it cannot be evaluated.
    """
    hops = chain_hops(topology, [s[0] for s in stages], down)
    if hops is None:
        raise InputError(f"expected paths between {', '.join(s[0] for s in stages)}")
    model = service.model.profile_name
    slices = [slice_of(catalogue, model, kind, tp, end - first) for _, kind, tp, first, end in stages]
    performance = evaluate_chain(service, slices, config, hops)
    loads: dict[tuple[str, str], float] = {}
    for path, num_bytes in zip(hops, performance.hop_bytes, strict=True):
        for hop in path.hops:
            loads[hop] = loads.get(hop, 0.0) + num_bytes
    return performance, {hop: load for hop, load in loads.items() if load > 0.0}
