"""Planners by name, on machines with and without the vendors."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from epara_solvers.process import environment
from epara_solvers.registry import available, make_planner

from epara_opt.errors import NoSolverError

HIDDEN = """
import json, sys
for name in {names!r}:
    sys.modules[name] = None
from epara_opt.errors import NoSolverError
from epara_solvers.registry import available, make_planner
infos = {{i.name: [i.available, i.reason] for i in available()}}
try:
    make_planner({wanted!r})
    said = ""
except NoSolverError as e:
    said = str(e)
vendors = sorted(m for m in ("pulp", "ortools", "highspy") if sys.modules.get(m) is not None)
print(json.dumps([infos, make_planner("auto").name, said, vendors]))
"""


def without(*names: str, wanted: str) -> tuple[dict[str, list[object]], str, str, list[str]]:
    code = HIDDEN.format(names=names, wanted=wanted)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120, env=environment()
    )
    assert done.returncode == 0, done.stderr
    infos, auto, said, vendors = json.loads(done.stdout)
    return infos, auto, said, vendors


def test_every_planner_says_what_it_is() -> None:
    infos = {i.name: i for i in available()}
    assert {"mathopt-highs", "mathopt-scip", "cpsat", "pulp-cbc", "greedy", "greedy-density"} <= set(infos)
    for info in infos.values():
        assert info.available is (info.reason == "")
        assert info.good_for
    assert infos["greedy"].kind == "heuristic"
    assert infos["pulp-cbc"].kind == "exact"


@pytest.mark.parametrize("name", [i.name for i in available() if i.available])
def test_every_available_planner_can_be_made_by_its_name(name: str) -> None:
    assert make_planner(name).name == name


def test_an_unknown_solver_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(NoSolverError, match=r"no solver is called 'cplx'.*Known: auto, columns, mathopt-highs.*greedy"):
        make_planner("cplx")


def test_asking_for_solvers_imports_no_vendor() -> None:
    assert without(wanted="greedy")[3] == []


def test_without_numba_auto_is_an_exact_solver() -> None:
    infos, auto, said, _ = without("numba", wanted="columns")
    assert infos["columns"][0] is False
    assert auto == "mathopt-highs"
    assert "columns cannot be used: numba is not installed" in said


def test_without_ortools_and_numba_auto_is_cbc() -> None:
    infos, auto, said, _ = without("ortools", "numba", wanted="mathopt-highs")
    assert infos["mathopt-highs"][0] is False
    assert "not installed" in str(infos["mathopt-highs"][1])
    assert auto == "pulp-cbc"
    assert "mathopt-highs cannot be used: ortools is not installed" in said


def test_without_any_vendor_auto_is_greedy() -> None:
    infos, auto, said, _ = without("ortools", "pulp", "numba", wanted="pulp-cbc")
    assert [name for name, (works, _) in infos.items() if works] == ["greedy", "greedy-density"]
    assert auto == "greedy"
    assert "Usable here: greedy, greedy-density" in said
