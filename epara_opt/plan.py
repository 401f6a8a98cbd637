"""A plan: what runs where, what serves whom, what is left unserved and why, and how good that provably is.

The JSON form is the contract between planner, checker, executors and reports; `epara schema plan` prints its
schema. Fields are added, never re-used.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, cast

from epara_opt.domain.parallel import ParallelConfig
from epara_opt.errors import InputError, Violation

FORMAT = 1


class Stop(StrEnum):
    """Why the search ended. Says nothing about what it found: read objective, dual_bound and gap for that."""

    OPTIMAL = "optimal"  # bound and objective met within the solver's tolerance
    GAP_LIMIT = "gap_limit"  # within the gap asked for
    TIME_LIMIT = "time_limit"  # the deadline came first
    HEURISTIC = "heuristic"  # a method without a bound of its own ran to its end
    NO_DEMAND = "no_demand"  # nothing is offered, so nothing is placed
    SOLVER_FAILED = "solver_failed"  # the back end crashed or gave nothing; the incumbent is the fallback's


class ActionKind(StrEnum):
    PREPARE = "prepare"  # load and warm up beside what runs
    COMMIT = "commit"  # switch routes, atomically at each executor
    RETIRE = "retire"  # drain, then unload


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One service on one device group. Replicas that share `group` time-share its devices."""

    id: str  # "<service>@<group>"
    service: str
    group: str  # "<server>/<device type>/<devices joined by +>/<generation that created it>"
    server: str
    device_type: str
    devices: tuple[int, ...]  # indexes in the server's pool; length tp * pp
    tp: int
    pp: int
    batch: int
    frames: int
    share: float  # of the group's time this plan uses for it, in [0, 1]; the rest is idle or another tenant's
    capacity: float  # work/s with its part of the idle time too, in the service's unit (requests/s or streams)
    response_ms: float  # predicted worst response in the server, company included
    memory_bytes: int  # per device
    load_s: float  # 0 when it is already resident
    endpoint: str = ""  # host:port of the executor; infer there with model name = service

    @property
    def config(self) -> ParallelConfig:
        return ParallelConfig(self.tp, self.pp, self.batch, self.frames)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Work of one service from one origin to one replica, in the service's unit."""

    service: str
    origin: str
    replica: str
    rate: float
    network_ms: float  # round trip and transfers
    predicted_ms: float  # network_ms + the replica's response_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Unserved:
    """Demand that this plan does not serve."""

    service: str
    origin: str
    rate: float
    code: str  # no_profile | no_memory | no_route_in_time | outbid | no_devices
    reason: str  # one sentence with the numbers compared


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceForecast:
    """What the plan promises for one service."""

    service: str
    category: str
    unit: str
    offered: float
    goodput: float  # served within the objective, in `unit`
    slo_attainment: float  # goodput / offered; 1 where nothing is offered
    worst_ms: float  # the slowest route in use; 0 where there is none


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One step at one server. Stages run in order; actions of one stage run side by side. Idempotent."""

    stage: int
    kind: ActionKind
    server: str
    groups: tuple[str, ...] = ()  # group ids; empty for COMMIT
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    goodput: float  # weighted, equals the objective without load penalties
    offered: float  # weighted
    slo_attainment: float
    services: tuple[ServiceForecast, ...] = ()
    utilization: dict[str, float] = field(default_factory=dict[str, float])  # per server: used device time, [0, 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    generation: int
    topology: str
    inputs_digest: str  # of topology, profiles, demand and rules; apply refuses a plan made for others
    solver: str
    stop: Stop
    objective: float  # sum of weight x goodput, load time of new replicas priced in
    dual_bound: float | None  # proven: no plan under the same rules exceeds it; None: the solver proves nothing
    gap: float | None  # (dual_bound - objective) / dual_bound
    wall_s: float
    replicas: tuple[Replica, ...] = ()
    routes: tuple[Route, ...] = ()
    unserved: tuple[Unserved, ...] = ()
    predicted: Predicted
    actions: tuple[Action, ...] = ()
    notes: tuple[str, ...] = ()  # what a reader should know: fallbacks taken, limits reduced
    made_at: str = ""  # ISO 8601, UTC
    topology_digest: str = ""  # of topology and profiles alone; apply refuses a plan made for another edge
    edge: dict[str, Any] | None = None  # snapshot of the topology (domain/snapshot.py), so that a plan can be drawn

    def with_actions(self, actions: tuple[Action, ...]) -> Plan:
        return replace(self, actions=actions)

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1)

    @staticmethod
    def from_json(text: str, *, file: str = "") -> Plan:
        """Read a plan back. Raises InputError on anything that is not a plan of this format."""
        try:
            raw = json.loads(text)
        except json.JSONDecodeError as e:
            raise InputError(Violation(path="", law=f"expected JSON: {e.msg}", file=file, line=e.lineno)) from None
        if not isinstance(raw, dict):
            raise InputError(Violation(path="", law="expected a JSON object", file=file))
        data = cast("dict[str, Any]", raw)
        if data.pop("format", None) != FORMAT:
            raise InputError(Violation(path="format", law=f"expected a plan of format {FORMAT}", file=file))
        try:
            predicted: dict[str, Any] = data.pop("predicted")
            services = tuple(ServiceForecast(**s) for s in predicted.pop("services"))
            return Plan(
                stop=Stop(data.pop("stop")),
                replicas=tuple(Replica(**_retyped(r, devices=tuple)) for r in data.pop("replicas")),
                routes=tuple(Route(**r) for r in data.pop("routes")),
                unserved=tuple(Unserved(**u) for u in data.pop("unserved")),
                predicted=Predicted(services=services, **predicted),
                actions=tuple(Action(**_retyped(a, kind=ActionKind, groups=tuple)) for a in data.pop("actions")),
                notes=tuple(data.pop("notes", ())),
                **data,
            )
        except (KeyError, TypeError, ValueError) as e:
            raise InputError(Violation(path="", law=f"expected a plan's fields: {e}", file=file)) from None


def _retyped(record: dict[str, Any], **convert: Callable[[Any], Any]) -> dict[str, Any]:
    """JSON knows neither tuples nor enums."""
    return {k: convert[k](v) if k in convert else v for k, v in record.items()}


def relative_gap(objective: float, dual_bound: float | None) -> float | None:
    """(bound - objective) / bound, at least 0; 0 when the bound is 0; None without a bound."""
    if dual_bound is None:
        return None
    if dual_bound <= 0:
        return 0.0
    return max(0.0, (dual_bound - objective) / dual_bound)
