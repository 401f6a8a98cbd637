"""What the control cycle tells whoever watches: typed, and plain enough for `--json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class EventKind(StrEnum):
    STARTED = "started"  # a planner took its epoch
    OBSERVED = "observed"  # executors answered
    SERVER_DOWN = "server_down"
    SERVER_UP = "server_up"
    LEARNED = "learned"  # measured batch times corrected the profiles for this cycle and later ones
    PLANNING = "planning"
    PLANNED = "planned"  # a plan passed the checker
    KEPT = "kept"  # the plan in force stays: nothing better by enough
    APPLYING = "applying"
    PROGRESS = "progress"  # a call of the change
    APPLIED = "applied"
    REROUTED = "rerouted"  # routes changed, no replica moved
    FETCHING = "fetching"  # the new plan waits for models to reach disks; nothing was changed for it
    FAILED = "failed"  # this cycle changed nothing; the next tries again
    RECORDED = "recorded"  # the cycle is in the store
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class CycleEvent:
    kind: EventKind
    at: float  # Unix time
    message: str  # one line for people
    fields: Mapping[str, Any] = field(default_factory=dict[str, Any])  # plain values, for programs

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "kind": self.kind.value}
