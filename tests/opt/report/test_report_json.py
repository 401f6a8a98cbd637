"""JSON of results: stable keys, nothing JSON does not know."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from epara_opt.control.ports import ExecutorState, FleetState
from epara_opt.errors import EparaError, InputError, Violation
from epara_opt.plan import Stop
from epara_opt.report.json import error, history, jsonable, load, plan_summary, status


def strict(value: object) -> Any:
    return json.loads(json.dumps(value, allow_nan=False))


def test_values_json_does_not_know_become_plain() -> None:
    value = {
        "stop": Stop.OPTIMAL,
        "inf": float("inf"),
        "nan": np.float64("nan"),
        "set": frozenset({"b", "a"}),
        "count": np.int64(3),
        "array": np.array([[1.0, 2.0]]),
        3: (1, None, True),
        "error": Violation(path="p", law="l"),
        "type": object,
    }
    assert strict(jsonable(value)) == {
        "stop": "optimal",
        "inf": None,
        "nan": None,
        "set": ["a", "b"],
        "count": 3,
        "array": [[1.0, 2.0]],
        "3": [1, None, True],
        "error": {"path": "p", "law": "l", "value": "", "file": "", "line": 0},
        "type": "<class 'object'>",
    }


def test_an_input_error_lists_its_violations_apart() -> None:
    data = strict(error(InputError([Violation(path="a", law="x"), Violation(path="b", law="y")])))
    assert data["error"]["type"] == "InputError"
    assert data["error"]["exit_code"] == 2
    assert [v["path"] for v in data["error"]["violations"]] == ["a", "b"]
    assert "violations" not in strict(error(EparaError("other")))["error"]


def test_a_plans_summary_has_what_scripts_watch(three_shops: Any) -> None:
    data = strict(plan_summary(three_shops.plan))
    assert list(data) == [
        "verdict", "topology", "generation", "solver", "stop", "objective", "dual_bound", "gap", "wall_s", "goodput",
        "offered", "slo_attainment", "num_replicas", "num_unserved",
    ]  # fmt: skip
    assert data["num_replicas"] == len(three_shops.plan.replicas)


def test_status_names_every_server(three_shops: Any) -> None:
    state = ExecutorState(server="carlton", incarnation="x", epoch=1, generation=3, at=0.0, services=(), replicas=())
    data = strict(
        status(FleetState(executors={"carlton": state}, down={"fitzroy": "gone"}), three_shops.topology, None)
    )
    assert data["executors"]["carlton"]["generation"] == 3
    assert data["down"] == {"fitzroy": "gone"}
    assert data["not_asked"] == ["docklands"]
    assert data["generation_expected"] is None


def test_history_and_load_keep_their_order_and_sums(three_shops: Any) -> None:
    points = strict(history(three_shops.history))
    assert [p["at"] for p in points] == sorted(p["at"] for p in points)
    data = strict(load(three_shops.load))
    assert data["sent"] == sum(s["sent"] for s in data["services"]) == sum(w["sent"] for w in data["windows"])
