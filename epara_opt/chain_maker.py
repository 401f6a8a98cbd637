"""Chains of one service: rows of stages over a head and its neighbours, cut where the rate is highest. See `chains`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from epara_opt.busy import BusyTime
from epara_opt.chain_front import Mark, front
from epara_opt.contents import ChainStage, Content, PlanningRules, Tenant, fills_batch
from epara_opt.domain.category import is_timely
from epara_opt.domain.chain import Part, evaluate_chain, hop_part
from epara_opt.domain.parallel import ParallelConfig
from epara_opt.domain.performance import FRAME_CHOICES
from epara_opt.domain.profile import Profile, ProfileCatalogue
from epara_opt.domain.routes import Path
from epara_opt.domain.service import Service
from epara_opt.domain.slices import slice_of, slice_shapes
from epara_opt.domain.topology import Topology
from epara_opt.edges import EdgeTable
from epara_opt.errors import InputError
from epara_opt.splits import Kind, Splits

TRIED_PER_KEPT = 100  # strings looked at, over all batches, for each chain that may be kept
MAX_LEVELS = 4  # deadlines per string: chains for origins that are nearer than the farthest

Cuts = tuple[tuple[str, str, int, int, int], ...]
"""Stages: server, device type, tp, first layer, end layer."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a stage may stand."""

    server: str
    kind: Kind


@dataclass
class Maker:
    """Chains of one service."""

    topology: Topology
    catalogue: ProfileCatalogue
    service: Service
    table: EdgeTable
    offered: Mapping[tuple[str, str], float]
    rules: PlanningRules
    busy: BusyTime
    down: frozenset[str]
    tried: int = 0
    known_slices: dict[tuple[Kind, int], Profile] = field(default_factory=dict)
    known_edges: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    known_paths: dict[tuple[str, str], Path | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        model = self.service.model.profile_name
        types = {p.type for n in self.table.servers for p in self.topology.servers[n].devices}
        self.kinds = {g: [Kind(g, tp) for tp in slice_shapes(self.catalogue, model, g)] for g in sorted(types)}
        self.widths = {
            end: link.bandwidth_bytes_per_s
            for link in self.topology.links
            for end in (link.between, (link.between[1], link.between[0]))
        }

    def all(self) -> tuple[list[Content], str]:
        """The best `max_chains`, and a note if there were more."""
        if not any(self.kinds.values()):
            return [], ""
        by_head: list[list[Mark]] = []
        splits = {
            (config, m): Splits.of(self, config, m)
            for m in range(2, self.rules.max_stages + 1)
            for config in self._configs(m)
        }
        heads = [n for n in self.table.servers if self._places(n) and self._asked_at(n)]
        most = TRIED_PER_KEPT * self.rules.max_chains // max(1, len(heads))
        limited = False
        for head in heads:
            self.tried = 0
            by_head.append(front(self._mark(c) for c in self._at(head, splits, most)))
            limited |= self.tried > most
        # Of every head the best first, so that no head is left without.
        ranked = sorted((rank, -m.work_per_device, i) for i, mine in enumerate(by_head) for rank, m in enumerate(mine))
        kept = [by_head[i][rank].content for rank, _, i in ranked[: self.rules.max_chains]]
        if not limited and len(kept) == len(ranked):
            return kept, ""
        return kept, (
            f"{self.service.name}: {len(kept)} chains over neighbouring servers are chosen from, "
            f"max_chains = {self.rules.max_chains}; the bound holds under that rule"
        )

    def of_cuts(self, stages: Cuts) -> Iterator[Content]:
        """A chain that runs, in every configuration that is in time for somebody."""
        for config in self._configs(len(stages)):
            config = replace(config, tp=stages[0][2])
            content = self._content(stages, config)
            if content is not None and self._reach(content) > 0.0:
                yield content

    def _configs(self, m: int) -> list[ParallelConfig]:
        """Every batch that some slice was measured at."""
        points: set[int] = set()
        for (model, _, _), measured in self.catalogue.slices.items():
            if model == self.service.model.profile_name:
                points |= {x for p in measured.values() for x in p.batch_points()}
        frames = FRAME_CHOICES if self.service.is_stream else (1,)
        return [ParallelConfig(1, m, b, f) for f in frames for b in sorted(points) if b * f in points]

    def _places(self, server: str) -> list[_Place]:
        pools = self.topology.servers[server].devices
        return [_Place(server, k) for p in pools for k in self.kinds.get(p.type, ()) if k.tp <= p.count]

    def _near(self, head: str) -> list[str]:
        """The head, and the servers nearest to it that could take a stage."""
        found: list[str] = []
        for settled in self.topology.around(head, without=self.down).nearest():
            if settled.server in self.table.servers and self._places(settled.server):
                found.append(settled.server)
                if len(found) == self.rules.max_stages:
                    break
        return found

    def _at(
        self,
        head: str,
        splits: Mapping[tuple[ParallelConfig, int], Splits],
        most: int,
    ) -> Iterator[Content]:
        near = self._near(head)
        slacks = [ms for ms, _ in self._asked_at(head)]
        for m in range(2, self.rules.max_stages + 1):
            for string in self._strings(head, near, m):
                hops = [self._path(a.server, b.server) for a, b in zip(string, (*string[1:], string[0]), strict=True)]
                paths = [h for h in hops if h is not None]
                if len(paths) < len(hops):
                    continue
                for config in self._configs(m):
                    self.tried += 1
                    if self.tried > most:
                        return
                    yield from self._cut(string, paths, config, slacks, splits[config, m])

    def _strings(self, head: str, near: Sequence[str], m: int) -> Iterator[tuple[_Place, ...]]:
        """Every row of m places from the head on, over two servers or more, each server's in one run."""

        def extend(so_far: tuple[_Place, ...]) -> Iterator[tuple[_Place, ...]]:
            if len(so_far) == m:
                if so_far[-1].server != head:
                    yield so_far
                return
            last = so_far[-1].server if so_far else head
            left = {p.server for p in so_far} - {last}
            for server in [last, *(n for n in near if n != last and n not in left)] if so_far else [head]:
                for place in self._places(server):
                    row = (*so_far, place)
                    same = [
                        p.kind.tp for p in row if (p.server, p.kind.device_type) == (server, place.kind.device_type)
                    ]
                    count = next(
                        p.count for p in self.topology.servers[server].devices if p.type == place.kind.device_type
                    )
                    if sum(same) <= count:
                        yield from extend(row)

        return extend(())

    def _path(self, a: str, b: str) -> Path | None:
        if (a, b) not in self.known_paths:
            self.known_paths[a, b] = self.topology.path(a, b, without=self.down)
        return self.known_paths[a, b]

    def _cut(
        self,
        string: Sequence[_Place],
        paths: Sequence[Path],
        config: ParallelConfig,
        slacks: Sequence[float],
        splits: Splits,
    ) -> Iterator[Content]:
        """The fastest split for the latest deadline, then for those nearer that it misses."""
        last = len(paths) - 1
        parts: list[Part] = [
            hop_part(self.service, p, config, generates=splits.generates, is_last=i == last)
            for i, p in enumerate(paths)
        ]
        slack_ms = slacks[-1]
        for _ in range(MAX_LEVELS):
            content: Content | None = None
            for cuts in splits.best([p.kind for p in string], parts, slack_ms):
                stages = tuple(
                    (place.server, place.kind.device_type, place.kind.tp, first, end)
                    for place, first, end in zip(string, cuts, (*cuts[1:], splits.layers), strict=True)
                )
                content = self._content(stages, replace(config, tp=string[0].kind.tp))
                if content is not None and content.tenants[0].response_ms <= slack_ms:
                    break
                content = None
            if content is None:
                return
            if self._reach(content) > 0.0:
                yield content
            nearer = [s for s in slacks if s < content.tenants[0].response_ms]
            if not nearer:
                return
            slack_ms = nearer[-1]

    def slice(self, kind: Kind, layers: int) -> Profile:
        """Raises InputError outside the measured hull."""
        if (kind, layers) not in self.known_slices:
            model = self.service.model.profile_name
            self.known_slices[kind, layers] = slice_of(self.catalogue, model, kind.device_type, kind.tp, layers)
        return self.known_slices[kind, layers]

    def _content(self, stages: Cuts, config: ParallelConfig) -> Content | None:
        """The chain as a content; None where it does not fit, keeps no pace, or its links are too narrow."""
        hops = [self._path(a[0], b[0]) for a, b in zip(stages, (*stages[1:], stages[0]), strict=True)]
        paths = [h for h in hops if h is not None]
        if len(paths) < len(hops):
            return None
        try:
            slices = [self.slice(Kind(kind, tp), end - first) for _, kind, tp, first, end in stages]
            found = evaluate_chain(self.service, slices, config, paths)
        except InputError:  # this batch was not measured for these slices
            return None
        types = self.topology.device_types
        if any(b > types[s[1]].memory_bytes for s, b in zip(stages, found.memory_bytes, strict=True)):
            return None
        whole = found.whole
        if not is_timely(self.service, whole.response_ms, whole.tpot_ms):
            return None
        utilization = self.busy.part(whole, 0.0)
        work_per_s = whole.work_per_s * utilization
        loads: dict[tuple[str, str], float] = {}
        for path, num_bytes in zip(paths, found.hop_bytes, strict=True):
            for hop in path.hops:
                loads[hop] = loads.get(hop, 0.0) + num_bytes * work_per_s
        if any(load > self.widths[hop] for hop, load in loads.items()):
            return None
        return Content(
            device_type=stages[0][1],
            tp=stages[0][2],
            pp=len(stages),
            tenants=(
                Tenant(
                    service=self.service.name,
                    config=config,
                    response_ms=whole.response_ms,
                    work_per_s=work_per_s,
                    utilization=utilization,
                    memory_bytes=whole.memory_bytes,
                    load_s=whole.load_s,
                ),
            ),
            stages=tuple(
                ChainStage(
                    server=server, device_type=kind, tp=tp, first_layer=first, end_layer=end, memory_bytes=num_bytes
                )
                for (server, kind, tp, first, end), num_bytes in zip(stages, found.memory_bytes, strict=True)
            ),
            reserved=tuple((hop, load) for hop, load in sorted(loads.items()) if load > 0.0),
        )

    def _asked_at(self, head: str) -> list[tuple[float, float]]:
        """(slack_ms, offered) of the edges to a head, rising."""
        if head not in self.known_edges:
            self.known_edges[head] = [
                (e.slack_ms, self.offered[e.service, e.origin]) for e in self.table.to_server(self.service.name, head)
            ]
        return self.known_edges[head]

    def _reach(self, content: Content) -> float:
        """Demand that the chain answers in time; 0 where it cannot fill a batch."""
        (tenant,) = content.tenants
        near = sum(rate for ms, rate in self._asked_at(content.stages[0].server) if ms >= tenant.response_ms)
        return near if fills_batch(self.service, tenant.config, near) else 0.0

    def _mark(self, content: Content) -> Mark:
        (tenant,) = content.tenants
        head = content.stages[0].server
        return Mark(
            content=content,
            work=min(tenant.work_per_s, self._reach(content)),
            num_edges=sum(ms >= tenant.response_ms for ms, _ in self._asked_at(head)),
            load_s=tenant.load_s,
            pools=content.pools_at(head),
            loads=dict(content.reserved),
        )
