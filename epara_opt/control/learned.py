"""Profiles corrected by what executors measure: the catalogue that the next cycle plans with.

Per profile (model, device type, tp, pp) one factor on its latencies, because what makes a real device slower or faster
than the profiled one (heat, a neighbour on the same machine, another driver) mostly does so at every batch size:

- Each replica tells, per batch size, the median device time of its latest batches. Divided by the profile's time at
  that size, and over all replicas and sizes, the *weighted median* of these ratios counts, weights being batches that
  are new since the last time: one odd replica or one odd size moves nothing.
- Fewer than MIN_BATCHES new batches say nothing yet; they are kept until enough have come.
- The factor moves by GAIN towards that median, and stays in LIMITS: a measurement beyond them is a fault to be looked
  at, not a profile.
- The catalogue follows only when the factor has left what it was last taken over at by DEAD_BAND, so that plans are
  not weighed anew for noise.

Sizes outside the measured hull are not compared. Generations are left as profiled: how long one takes depends on its
prompt and its length, which are the client's. So are slices of models, which no executor runs yet.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final, cast

from epara_opt.control.ports import FleetState
from epara_opt.domain.profile import Curve, Profile, ProfileCatalogue
from epara_opt.domain.topology import Topology
from epara_opt.errors import StoreError
from epara_opt.plan import Plan

MIN_BATCHES: Final = 30
GAIN: Final = 0.5
LIMITS: Final = (0.5, 3.0)
DEAD_BAND: Final = 0.05
FORMAT: Final = 1

ProfileKey = tuple[str, str, int, int]  # model, device type, tp, pp
Source = tuple[str, str, str, int]  # server, incarnation, replica, rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """A factor that the catalogue has taken over."""

    key: ProfileKey
    factor: float  # on the profile's latencies, from now on
    before: float
    observed: float  # what the latest batches alone say
    num_batches: int

    def __str__(self) -> str:
        model, device_type, tp, pp = self.key
        return (
            f"{model} on {device_type} tp{tp} pp{pp}: latencies x {self.factor:.2f} of the profile, before "
            f"x {self.before:.2f}; {self.num_batches} batches took x {self.observed:.2f}"
        )


class LearnedProfiles:
    """What was learned over the planner's life. One owner, the control cycle."""

    def __init__(self, topology: Topology, profiles: ProfileCatalogue) -> None:
        self._topology = topology
        self._profiles = profiles
        self._factors: dict[ProfileKey, float] = {}  # as learned
        self._taken: dict[ProfileKey, float] = {}  # as in `catalogue`
        self._counted: dict[Source, int] = {}  # batches already used
        self.catalogue = profiles  # with the factors that were taken over

    def learn(self, state: FleetState, in_force: Plan | None) -> tuple[Correction, ...]:
        """Take in what executors tell of the plan in force; the corrections that `catalogue` has followed now."""
        ratios: dict[ProfileKey, list[tuple[float, int]]] = {}  # with the number of new batches
        used: dict[ProfileKey, dict[Source, int]] = {}
        placed = {(r.server, r.id): r for r in in_force.replicas if not r.stages} if in_force else {}
        self._forget(state)
        for server, executor in state.executors.items():
            for seen in executor.replicas:
                replica = placed.get((server, seen.replica))
                service = self._topology.services.get(seen.service)
                if replica is None or service is None:
                    continue
                key = (service.model.profile_name, replica.device_type, replica.tp, replica.pp)
                profile = self._profiles.shapes(*key[:2]).get(key[2:])
                for b in seen.batch_times if profile is not None else ():
                    what = (server, executor.incarnation, seen.replica, b.rows)
                    before = self._counted.get(what, 0)
                    new = b.num_batches - before if b.num_batches >= before else b.num_batches
                    if profile is not None and profile.latency_ms.covers(b.rows) and new > 0 and b.median_ms > 0:
                        ratios.setdefault(key, []).append((b.median_ms / profile.latency_ms.at(b.rows), new))
                        used.setdefault(key, {})[what] = b.num_batches
        made: list[Correction] = []
        for key, found in sorted(ratios.items()):
            num_batches = sum(n for _, n in found)
            if num_batches < MIN_BATCHES:
                continue
            self._counted |= used[key]
            observed = min(max(_weighted_median(found), LIMITS[0]), LIMITS[1])
            factor = self._factors.get(key, 1.0)
            factor = self._factors[key] = factor + GAIN * (observed - factor)
            before = self._taken.get(key, 1.0)
            if abs(factor / before - 1.0) > DEAD_BAND:
                self._taken[key] = factor
                made.append(
                    Correction(key=key, factor=factor, before=before, observed=observed, num_batches=num_batches)
                )
        if made:
            self.catalogue = scaled(self._profiles, self._taken)
        return tuple(made)

    def _forget(self, state: FleetState) -> None:
        """Counts of processes that have been replaced, and of replicas that left. Who does not answer may come back."""
        there = {(server, e.incarnation, r.replica) for server, e in state.executors.items() for r in e.replicas}
        self._counted = {
            what: n for what, n in self._counted.items() if what[0] not in state.executors or what[:3] in there
        }

    def to_json(self) -> str:
        """Everything learned, for the store."""
        return json.dumps(
            {
                "format": FORMAT,
                "topology": self._topology.name,
                "factors": [[*key, factor, self._taken.get(key, 1.0)] for key, factor in sorted(self._factors.items())],
                "counted": [[*what, n] for what, n in sorted(self._counted.items())],
            }
        )

    def restore(self, text: str) -> None:
        """Take up what was learned. Of another topology nothing is taken; raises StoreError on what is no state."""
        try:
            data = cast("dict[str, Any]", json.loads(text))
            if data["format"] != FORMAT or data["topology"] != self._topology.name:
                return
            factors: dict[ProfileKey, float] = {}
            taken: dict[ProfileKey, float] = {}
            for model, device_type, tp, pp, factor, in_use in data["factors"]:
                key = (str(model), str(device_type), int(tp), int(pp))
                factors[key], taken[key] = _within(factor), _within(in_use)
            counted = {(str(s), str(i), str(r), int(rows)): int(n) for s, i, r, rows, n in data["counted"]}
        except (KeyError, TypeError, ValueError) as e:
            raise StoreError(f"learned profiles: expected what this version wrote: {e!r}") from e
        self._factors, self._taken, self._counted = factors, taken, counted
        self.catalogue = scaled(self._profiles, taken)


def scaled(catalogue: ProfileCatalogue, factors: dict[ProfileKey, float]) -> ProfileCatalogue:
    """The catalogue with the latencies of some profiles multiplied; memory, load times and slices stay."""

    def times(curve: Curve, factor: float) -> Curve:
        return replace(curve, y=tuple(y * factor for y in curve.y))

    def profile(p: Profile) -> Profile:
        factor = factors.get((p.model, p.device_type, p.tp, p.pp), 1.0)
        if factor == 1.0:
            return p
        return replace(p, latency_ms=times(p.latency_ms, factor), interval_ms=times(p.interval_ms, factor))

    table = {k: {shape: profile(p) for shape, p in shapes.items()} for k, shapes in catalogue.profiles.items()}
    return replace(catalogue, profiles=table)


def _within(value: Any) -> float:
    number = float(value)
    if not (math.isfinite(number) and LIMITS[0] <= number <= LIMITS[1]):
        raise ValueError(f"factor: expected within {LIMITS[0]:g} .. {LIMITS[1]:g}, got {number:g}")
    return number


def _weighted_median(found: Iterable[tuple[float, int]]) -> float:
    """The least value up to which lies at least half of all weight."""
    ascending = sorted(found)
    half = sum(w for _, w in ascending) / 2
    total = 0
    for value, weight in ascending:
        total += weight
        if total >= half:
            return value
    raise ValueError("expected at least one value, got none")
