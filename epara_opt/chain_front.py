"""Which chains of one head are worth keeping: those that no other replaces."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from epara_opt.contents import Content


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """By what chains of one head are compared."""

    content: Content
    work: float  # that demand in reach can use
    num_edges: int
    load_s: float
    pools: Mapping[tuple[str, str], int]
    loads: Mapping[tuple[str, str], float]

    def replaces(self, other: Mark) -> bool:
        """Whether this chain does all that the other does and takes no more."""
        return (
            self.work >= other.work
            and self.num_edges >= other.num_edges
            and self.load_s <= other.load_s
            and all(number <= other.pools.get(pool, 0) for pool, number in self.pools.items())
            and all(load <= other.loads.get(hop, 0.0) for hop, load in self.loads.items())
        )

    @property
    def work_per_device(self) -> float:
        return self.work / self.content.num_devices


def front(marks: Iterable[Mark]) -> list[Mark]:
    """Those of one head that no other replaces, the most work per device first; of equals the first.

    First among those on the same devices, which leaves few, then among all.
    """

    def undominated(some: Iterable[Mark]) -> list[Mark]:
        kept: list[Mark] = []
        for m in sorted(
            some, key=lambda m: (m.content.num_devices, -m.work, -m.num_edges, sum(m.loads.values()), m.load_s)
        ):
            if not any(other.replaces(m) for other in kept):
                kept.append(m)
        return kept

    alike: dict[tuple[tuple[tuple[str, str], int], ...], list[Mark]] = {}
    for m in marks:
        alike.setdefault(tuple(sorted(m.pools.items())), []).append(m)
    return sorted(
        undominated(m for some in alike.values() for m in undominated(some)), key=lambda m: -m.work_per_device
    )
