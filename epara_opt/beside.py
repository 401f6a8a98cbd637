"""Make before break: what can be loaded while everything that runs goes on.

Until a plan is switched to, a device holds what runs on it and what comes (`control.transition`). Under the rule
`make_before_break` a group may therefore only come

- in the place of a resident, where its devices hold the tenants that leave, those that stay at the larger of their two
  batches, and those that come, all at once: a matter of one content and one resident (`fits_in_place`). A group of
  several devices takes nobody in while it runs (`control.regroup`): with a newcomer it is loaded anew beside itself;
- on any other devices, each of which has room for it beside what its resident holds: on devices that no resident
  holds, or whose resident leaves and is small enough.

Devices of a pool differ then only in what is free beside their residents, the *levels* of the pool. Groups that need
more than a level must find devices above it, and such needs are nested: whoever needs more finds less. For nested needs
Hall's condition is enough level by level: for each level, the devices of all groups that need more than it, and of all
residents kept that leave more than it free, are no more than the devices that have more than it free. Then groups in
falling order of need each find their devices, whichever those before them took (`placement.assemble` does just that).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Pool = tuple[str, str]  # server, device type


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """Of one pool: what residents leave free, distinct and rising, and the devices that have more than that free."""

    free_bytes: tuple[int, ...]
    devices: tuple[int, ...]

    @staticmethod
    def of(count: int, memory_bytes: int, residents: Iterable[tuple[int, int]]) -> Levels:
        """count: devices of the pool. residents: (devices, bytes that each of them holds)."""
        free = [(memory_bytes - held, devices) for devices, held in residents]
        levels = sorted({f for f, _ in free})
        below = [sum(devices for f, devices in free if f <= level) for level in levels]
        return Levels(free_bytes=tuple(levels), devices=tuple(count - taken for taken in below))

    def exceeded(self, num_bytes: int) -> int:
        """How many levels are too little for so much, the lowest first. Of a resident: those below its own."""
        return bisect_left(self.free_bytes, num_bytes)

    def room(self, num_bytes: int) -> int | None:
        """Devices with so much free beside what runs; None where that is all of them."""
        exceeded = self.exceeded(num_bytes)
        return self.devices[exceeded - 1] if exceeded else None


def fits_in_place(memory_bytes: int, held: Mapping[str, int], wanted: Mapping[str, int], *, anew: bool) -> bool:
    """Whether a device holds both until the switch: by service, the bytes of what runs there and of what will.

    anew: all that is wanted is loaded, what already runs too.
    """
    if anew:
        return sum(held.values()) + sum(wanted.values()) <= memory_bytes
    return sum(max(held.get(s, 0), wanted.get(s, 0)) for s in held.keys() | wanted.keys()) <= memory_bytes
