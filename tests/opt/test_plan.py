"""Plans as JSON: what is read back, and what is refused with its place."""

from __future__ import annotations

import json
from typing import Any

import pytest

from epara_opt.control.fake_planner import FirstFitPlanner, small_edge
from epara_opt.domain.service import Demand
from epara_opt.errors import InputError
from epara_opt.plan import Plan
from epara_opt.problem import build_problem


@pytest.fixture(scope="module")
def plan() -> Plan:
    topology, catalogue = small_edge()
    demand = [Demand(service="label", origin=o, offered=30.0) for o in ("a", "c")]
    problem = build_problem(topology, catalogue, demand=demand)
    made = FirstFitPlanner().plan(problem, generation=1, time_limit_s=1.0, in_force=None)
    assert made.replicas
    return made


def test_a_plan_comes_back_as_it_was(plan: Plan) -> None:
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("key", ["replicas", "routes", "unserved", "actions", "notes"])
@pytest.mark.parametrize("value", [{}, "", None, 3])
def test_what_is_no_list_is_refused_by_name(plan: Plan, key: str, value: object) -> None:
    text = json.dumps(json.loads(plan.to_json()) | {key: value})
    with pytest.raises(InputError) as caught:
        Plan.from_json(text, file="p.json")
    (violation,) = caught.value.violations
    assert (violation.file, violation.path, violation.law) == ("p.json", key, "expected a list")
    assert violation.value == repr(value)


def _inside(key: str, inner: str, value: object, raw: dict[str, Any]) -> None:
    raw[key][0][inner] = value


def test_lists_inside_are_checked_too_and_everything_is_named_at_once(plan: Plan) -> None:
    raw = json.loads(plan.to_json())
    _inside("replicas", "devices", {"0": 1}, raw)
    raw["routes"].append("label@a")
    raw["predicted"]["services"] = {}
    raw["notes"] = [1]
    with pytest.raises(InputError) as caught:
        Plan.from_json(json.dumps(raw))
    found = {(v.path, v.law, v.value) for v in caught.value.violations}
    assert found == {
        ("replicas[0].devices", "expected a list", "{'0': 1}"),
        (f"routes[{len(raw['routes']) - 1}]", "expected an object", "'label@a'"),
        ("predicted.services", "expected a list", "{}"),
        ("notes[0]", "expected a str", "1"),
    }
