"""The plan's JSON Schema accepts what Plan writes and refuses what is no plan."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import jsonschema
import pytest

from epara_opt.plan import Action, ActionKind, Plan, Predicted, Replica, Route, ServiceForecast, Stop, Unserved
from epara_opt.plan_schema import plan_schema

PLAN = Plan(
    generation=3,
    topology="two-shops",
    inputs_digest="0123456789abcdef",
    solver="pulp-cbc",
    stop=Stop.GAP_LIMIT,
    objective=10.0,
    dual_bound=10.5,
    gap=0.0476,
    wall_s=1.5,
    replicas=(
        Replica(
            id="chat@shop-a/gpu/0+1/3",
            service="chat",
            group="shop-a/gpu/0+1/3",
            server="shop-a",
            device_type="gpu",
            devices=(0, 1),
            tp=2,
            pp=1,
            batch=4,
            frames=1,
            share=0.5,
            capacity=10.0,
            response_ms=200.0,
            memory_bytes=2**30,
            load_s=4.0,
            endpoint="127.0.0.1:7101",
        ),
    ),
    routes=(
        Route(service="chat", origin="shop-a", replica="chat@shop-a/gpu/0+1/3", rate=9, network_ms=0, predicted_ms=200),
    ),
    unserved=(Unserved(service="chat", origin="shop-b", rate=1.0, code="outbid", reason="one more gpu would add 1"),),
    predicted=Predicted(
        goodput=10.0,
        offered=11.0,
        slo_attainment=10 / 11,
        services=(
            ServiceForecast(
                service="chat",
                category="latency, multi-device",
                unit="requests/s",
                offered=11.0,
                goodput=10.0,
                slo_attainment=10 / 11,
                worst_ms=200.0,
            ),
        ),
        utilization={"shop-a": 0.5},
    ),
    actions=(Action(stage=0, kind=ActionKind.PREPARE, server="shop-a", groups=("shop-a/gpu/0+1/3",)),),
    notes=("a note",),
    made_at="2026-11-23T09:00:00Z",
)


def check(data: Any) -> None:
    jsonschema.validate(data, plan_schema(), cls=jsonschema.Draft202012Validator)


def test_the_schema_is_valid() -> None:
    jsonschema.Draft202012Validator.check_schema(plan_schema())


def test_what_a_plan_writes_is_accepted() -> None:
    check(json.loads(PLAN.to_json()))


def test_a_plan_without_a_bound_is_accepted() -> None:
    check({**json.loads(PLAN.to_json()), "dual_bound": None, "gap": None})


def test_every_field_of_a_plan_is_in_the_schema() -> None:
    assert set(plan_schema()["properties"]) == {"format", *(f.name for f in fields(Plan))}


@pytest.mark.parametrize(
    ("key", "value"),
    [("stop", "tired"), ("generation", "three"), ("replicas", [{"id": "x"}]), ("format", 99), ("colour", "red")],
)
def test_what_is_no_plan_is_refused(key: str, value: object) -> None:
    with pytest.raises(jsonschema.ValidationError):
        check({**json.loads(PLAN.to_json()), key: value})


def test_a_plan_without_its_objective_is_refused() -> None:
    data = json.loads(PLAN.to_json())
    del data["objective"]
    with pytest.raises(jsonschema.ValidationError, match="'objective' is a required property"):
        check(data)
