"""Where one executor sends each service it knows: built whole at a commit, switched by one assignment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from epara_executors.agent.group import DeviceGroup
from epara_executors.agent.replica import Replica
from epara_opt.control.ports import CommitSpec, PeerSpec, RouteSpec
from epara_opt.policy.routing import SmoothWeighted, StreamTable


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceRouting:
    """One service: replicas here, routes of the plan, peers to offload to."""

    service: str
    hosted: Mapping[str, tuple[DeviceGroup, Replica]]  # by replica id
    routes: Mapping[str, RouteSpec]  # by replica id; of work that enters here
    peers: Mapping[str, PeerSpec]  # by server
    weighted: SmoothWeighted
    _streams: dict[float, StreamTable] = field(default_factory=dict[float, StreamTable])  # by fps
    _streams_here: dict[float, StreamTable] = field(default_factory=dict[float, StreamTable])  # the same, below

    def streams(self, fps: float) -> StreamTable:
        """The table of streams at a rate; fps of a service that is only hosted elsewhere comes with the first sync."""
        table = self._streams.get(fps)
        if table is None:
            rates = {k: r.rate_per_s for k, r in self.routes.items()}
            table = self._streams[fps] = StreamTable(fps, rates, {k: r.frames for k, r in self.routes.items()})
        return table

    def streams_here(self, fps: float) -> StreamTable:
        """The table of streams over the replicas here, for frames that no route of this executor leads."""
        table = self._streams_here.get(fps)
        if table is None:
            specs = {k: r.spec for k, (_, r) in self.hosted.items()}
            rates = {k: s.work_per_s for k, s in specs.items()}
            table = self._streams_here[fps] = StreamTable(fps, rates, {k: s.frames for k, s in specs.items()})
        return table

    def end_stream(self, stream: str) -> None:
        """The client says that it is over: its share of the routes is free at once."""
        for table in (*self._streams.values(), *self._streams_here.values()):
            table.end(stream)

    def num_streams(self, now: float) -> int:
        return sum(t.num_streams(now) for t in self._streams.values())


def build(spec: CommitSpec, groups: Mapping[str, DeviceGroup]) -> dict[str, ServiceRouting]:
    """The table of a commit. Every group of `spec` must be in `groups`."""
    hosted: dict[str, dict[str, tuple[DeviceGroup, Replica]]] = {}
    routes: dict[str, dict[str, RouteSpec]] = {}
    peers: dict[str, dict[str, PeerSpec]] = {}
    for g in spec.groups:
        if not g.is_led_here:
            continue  # of a chain that is entered elsewhere
        group = groups[g.group]
        for t in g.tenants:
            hosted.setdefault(t.service, {})[t.replica] = (group, group.replicas[t.replica])
    for r in spec.routes:
        routes.setdefault(r.service, {})[r.replica] = r
        if r.server != spec.server:
            peer = PeerSpec(
                service=r.service,
                server=r.server,
                address=r.address,
                network_ms=r.network_ms,
                capacity_per_s=r.rate_per_s,
            )
            peers.setdefault(r.service, {}).setdefault(r.server, peer)
    for p in spec.peers:
        if p.server != spec.server:
            peers.setdefault(p.service, {})[p.server] = p
    return {
        name: ServiceRouting(
            service=name,
            hosted=hosted.get(name, {}),
            routes=routes.get(name, {}),
            peers=peers.get(name, {}),
            weighted=SmoothWeighted({k: r.rate_per_s for k, r in routes.get(name, {}).items()}),
        )
        for name in sorted({*hosted, *routes, *peers})
    }
