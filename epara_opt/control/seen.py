"""What executors saw between two cycles, from counters that only grow and start anew with their process."""

from __future__ import annotations

from epara_opt.control.ports import FleetState
from epara_opt.domain.topology import Topology


class GoodputSeen:
    """Rates between one look and the next. Instants of the monotonic clock, in seconds."""

    def __init__(self, topology: Topology, *, at: float) -> None:
        self._topology = topology
        self._at = at
        self._seen: dict[str, tuple[str, float, float]] = {}  # server: incarnation, arrived, on time

    def since(self, state: FleetState, *, at: float) -> tuple[float, float]:
        """(arrived, on time) since the last look, weighted work per second, over executors that answered."""
        arrived = on_time = 0.0
        for name, e in state.executors.items():
            worth = {s.name: s.weight / s.events_per_work for s in self._topology.services.values()}
            known = [s for s in e.services if s.service in worth]
            total = (
                sum(worth[s.service] * s.arrived for s in known),
                sum(worth[s.service] * s.on_time for s in known),
            )
            before = self._seen.get(name)
            if before is not None and before[0] == e.incarnation:
                arrived += total[0] - before[1]
                on_time += total[1] - before[2]
            self._seen[name] = (e.incarnation, *total)
        elapsed_s = at - self._at
        self._at = at
        if elapsed_s <= 0:
            return 0.0, 0.0
        return arrived / elapsed_s, on_time / elapsed_s
