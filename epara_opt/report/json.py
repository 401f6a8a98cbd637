"""Results as plain JSON data with stable keys, for every `--json`. Fields are added, never re-used.

A dataclass becomes an object with its field names (units are in them), an enum its value, a set a sorted list;
infinities and NaN, which JSON does not know, become null.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import TypeAlias, cast

import numpy as np

from epara_opt.control.ports import FleetState
from epara_opt.domain.topology import Topology
from epara_opt.errors import EparaError, InputError, PlanRejected
from epara_opt.plan import Plan
from epara_opt.report.figures import verdict
from epara_opt.report.history import HistoryPoint
from epara_opt.report.load import LoadWindow, per_service

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


def jsonable(value: object) -> Json:
    """Plain data, whatever our results are made of. Anything unknown is written as its text."""
    if isinstance(value, Enum):
        return jsonable(cast(object, value.value))
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, np.generic):
        return jsonable(cast(object, value.item()))
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: jsonable(cast(object, getattr(value, f.name))) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in cast("Mapping[object, object]", value).items()}
    if isinstance(value, AbstractSet):
        return sorted((jsonable(v) for v in cast("AbstractSet[object]", value)), key=str)
    if isinstance(value, np.ndarray):
        return jsonable(cast(object, value.tolist()))
    if isinstance(value, Iterable):
        return [jsonable(v) for v in cast("Iterable[object]", value)]
    return str(value)


def error(e: EparaError) -> dict[str, Json]:
    """An error, with each violation apart."""
    body: dict[str, Json] = {"type": type(e).__name__, "message": str(e), "exit_code": e.exit_code}
    if isinstance(e, InputError | PlanRejected):
        body["violations"] = jsonable(e.violations)
    return {"error": body}


def plan_summary(plan: Plan) -> dict[str, Json]:
    """The figures that scripts watch, without the plan's contents."""
    return {
        "verdict": verdict(plan),
        "topology": plan.topology,
        "generation": plan.generation,
        "solver": plan.solver,
        "stop": plan.stop.value,
        "objective": plan.objective,
        "dual_bound": plan.dual_bound,
        "gap": plan.gap,
        "wall_s": plan.wall_s,
        "goodput": plan.predicted.goodput,
        "offered": plan.predicted.offered,
        "slo_attainment": plan.predicted.slo_attainment,
        "num_replicas": len(plan.replicas),
        "num_unserved": len(plan.unserved),
    }


def status(fleet: FleetState, topology: Topology, plan: Plan | None) -> dict[str, Json]:
    """The fleet as observed, beside what should be in force."""
    return {
        "topology": topology.name,
        "generation_expected": plan.generation if plan else None,
        "executors": {name: jsonable(state) for name, state in fleet.executors.items()},
        "down": dict(fleet.down),
        "not_asked": [
            s.name
            for s in topology.servers.values()
            if s.address and s.name not in fleet.executors and s.name not in fleet.down
        ],
    }


def history(points: Sequence[HistoryPoint]) -> list[Json]:
    return [jsonable(p) for p in sorted(points, key=lambda p: p.at)]


def load(windows: Sequence[LoadWindow]) -> dict[str, Json]:
    """Counts over the run, per service, and each window."""
    sent, on_time = sum(w.sent for w in windows), sum(w.on_time for w in windows)
    return {
        "sent": sent,
        "on_time": on_time,
        "slo_attainment": on_time / sent if sent else None,
        "services": [{**_object(w), "slo_attainment": w.slo_attainment} for w in per_service(windows)],
        "windows": [jsonable(w) for w in sorted(windows, key=lambda w: (w.at, w.service))],
    }


def _object(value: object) -> dict[str, Json]:
    return cast("dict[str, Json]", jsonable(value))
