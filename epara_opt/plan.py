"""A plan: what runs where, what serves whom, what is left unserved and why, and how good that provably is.

The JSON form is the contract between planner, checker, executors and reports; `epara schema plan` prints its
schema. Fields are added, never re-used.
"""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from enum import StrEnum
from functools import cache
from typing import Any, cast, get_args, get_origin, get_type_hints

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
class Stage:
    """Layers [first_layer, end_layer) of a replica that spans servers."""

    server: str
    device_type: str
    devices: tuple[int, ...]  # indexes in the server's pool
    first_layer: int
    end_layer: int
    memory_bytes: int  # per device

    def __post_init__(self) -> None:
        if not self.devices or min(self.devices) < 0:
            law = "expected at least one device index, each >= 0"
            raise InputError(Violation(path=f"stages.{self.server}.devices", law=law, value=str(list(self.devices))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One service on one device group. Replicas that share `group` time-share its devices.

    A replica with stages spans servers: server, device_type, devices, tp and memory are those of its first stage, where
    requests enter and answers leave; pp counts stages.
    """

    id: str  # "<service>@<group>"
    service: str
    group: str  # "<server>/<device type>/<devices joined by +>/<generation that created it>"
    server: str
    device_type: str
    devices: tuple[int, ...]  # indexes in the server's pool; length tp * pp (tp with stages)
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
    stages: tuple[Stage, ...] = ()  # of a chain over several servers, in order; empty: all of it is at `server`

    def __post_init__(self) -> None:
        if not self.devices or min(self.devices) < 0:
            law = "expected at least one device index, each >= 0"
            raise InputError(Violation(path=f"replicas.{self.id}.devices", law=law, value=str(list(self.devices))))

    @property
    def config(self) -> ParallelConfig:
        return ParallelConfig(self.tp, self.pp, self.batch, self.frames)

    @property
    def servers(self) -> tuple[str, ...]:
        """Every server that it uses, the one where requests enter first."""
        return tuple(dict.fromkeys((self.server, *(s.server for s in self.stages))))

    @property
    def places(self) -> tuple[tuple[str, str, int, int], ...]:
        """(server, device type, index, bytes held) of every device it uses."""
        if not self.stages:
            return tuple((self.server, self.device_type, d, self.memory_bytes) for d in self.devices)
        return tuple((s.server, s.device_type, d, s.memory_bytes) for s in self.stages for d in s.devices)


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
    code: str  # no_profile | no_memory | no_route_in_time | outbid | no_devices | no_batch
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
class Certificate:
    """Prices that prove an upper bound; `epara_opt.certify` recomputes it from them. Absent prices are 0."""

    inputs_digest: str  # of the problem they were made for
    bound: float  # what they prove
    demand: dict[str, dict[str, float]]  # service, origin: price of a unit of work, in weighted goodput
    links: dict[str, dict[str, float]]  # from, to: price of a byte per second
    digest: str  # sha256 over all of it; 16 hex digits
    devices: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])
    """Server, device type: price of a device to chains over several servers; without chains there are none."""


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
    certificate: Certificate | None = None  # the prices behind dual_bound; None where the solver gave none
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
            _check_lists(data, file)
            predicted: dict[str, Any] = data.pop("predicted")
            services = tuple(ServiceForecast(**s) for s in predicted.pop("services"))
            prices = data.pop("certificate", None)
            plan = Plan(
                stop=Stop(data.pop("stop")),
                replicas=tuple(_replica(r) for r in data.pop("replicas")),
                routes=tuple(Route(**r) for r in data.pop("routes")),
                unserved=tuple(Unserved(**u) for u in data.pop("unserved")),
                predicted=Predicted(services=services, **predicted),
                certificate=None if prices is None else Certificate(**prices),
                actions=tuple(Action(**_retyped(a, kind=ActionKind, groups=tuple)) for a in data.pop("actions")),
                notes=tuple(data.pop("notes", ())),
                **data,
            )
        except KeyError as e:
            raise InputError(Violation(path=str(e.args[0]), law="expected this field", file=file)) from None
        except (AttributeError, TypeError, ValueError) as e:
            raise InputError(Violation(path="", law=f"expected a plan's fields: {e}", file=file)) from None
        mistyped = list(_mistyped(plan, "", file))
        if mistyped:
            raise InputError(mistyped)
        return plan


def _replica(record: dict[str, Any]) -> Replica:
    stages = tuple(Stage(**_retyped(s, devices=tuple)) for s in record.get("stages", ()))
    fields: dict[str, Any] = {**_retyped(record, devices=tuple), "stages": stages}
    return Replica(**fields)


def _check_lists(data: dict[str, Any], file: str) -> None:
    """Refuse what is not a list where a plan has one: an object or a text would be read as its keys or letters."""
    found: list[Violation] = []

    def check(value: Any, path: str, *, of: type) -> list[Any]:
        if not isinstance(value, list):
            found.append(Violation(path=path, law="expected a list", value=repr(value)[:80], file=file))
            return []
        items = cast("list[Any]", value)
        what = "an object" if of is dict else f"a {of.__name__}"
        for i, item in enumerate(items):
            if not isinstance(item, of):
                law = f"expected {what}"
                found.append(Violation(path=f"{path}[{i}]", law=law, value=repr(item)[:80], file=file))
        return [item for item in items if isinstance(item, of)]

    predicted: Any = data["predicted"]
    if not isinstance(predicted, dict):
        law = "expected an object"
        found.append(Violation(path="predicted", law=law, value=repr(predicted)[:80], file=file))
    else:
        check(cast("dict[str, Any]", predicted)["services"], "predicted.services", of=dict)
    for key in ("replicas", "routes", "unserved", "actions"):
        inner, of = {"replicas": ("devices", int), "actions": ("groups", str)}.get(key, ("", str))
        for i, record in enumerate(check(data[key], key, of=dict)):
            if inner in record:
                check(record[inner], f"{key}[{i}].{inner}", of=of)
            for j, stage in enumerate(check(record.get("stages", []), f"{key}[{i}].stages", of=dict)):
                check(stage.get("devices", []), f"{key}[{i}].stages[{j}].devices", of=int)
    check(data.get("notes", []), "notes", of=str)
    if found:
        raise InputError(found)


def _retyped(record: dict[str, Any], **convert: Callable[[Any], Any]) -> dict[str, Any]:
    """JSON knows neither tuples nor enums."""
    return {k: convert[k](v) if k in convert else v for k, v in record.items()}


def _mistyped(record: object, path: str, file: str) -> Iterator[Violation]:
    """Fields of a dataclass whose values are not of the declared types: JSON may hold anything."""
    for name, hint in _hints(type(record)).items():
        yield from _wrong(getattr(record, name), hint, f"{path}.{name}" if path else name, file)


def _wrong(value: object, hint: Any, path: str, file: str) -> Iterator[Violation]:
    if hint is Any:
        return
    origin, args = get_origin(hint), get_args(hint)
    if origin is types.UnionType:
        if not any(not list(_wrong(value, one, path, file)) for one in args):
            yield _unlike(value, hint, path, file)
    elif origin is tuple and isinstance(value, tuple):
        for i, item in enumerate(cast("tuple[object, ...]", value)):
            yield from _wrong(item, args[0], f"{path}[{i}]", file)
    elif origin is dict and isinstance(value, dict):
        for key, item in cast("dict[str, object]", value).items():
            yield from _wrong(item, args[1], f"{path}.{key}", file)
    elif origin is None and isinstance(value, hint if hint is not float else int | float):
        if isinstance(value, bool) and hint is not bool:
            yield _unlike(value, hint, path, file)
        elif is_dataclass(value):
            yield from _mistyped(value, path, file)
    else:
        yield _unlike(value, hint, path, file)


def _unlike(value: object, hint: Any, path: str, file: str) -> Violation:
    wanted = getattr(hint, "__name__", "") if get_origin(hint) is None else str(hint)
    return Violation(path=path, law=f"expected {wanted}", value=repr(value)[:80], file=file)


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def relative_gap(objective: float, dual_bound: float | None) -> float | None:
    """(bound - objective) / bound, at least 0; 0 when the bound is 0; None without a bound."""
    if dual_bound is None:
        return None
    if dual_bound <= 0:
        return 0.0
    return max(0.0, (dual_bound - objective) / dual_bound)
