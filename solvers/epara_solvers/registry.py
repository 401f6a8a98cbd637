"""Which planners there are, which of them work here, and making one by name.

Nothing is imported from a vendor in this process: see epara_solvers.process for why.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Literal, cast

from epara_opt.control.ports import Planner
from epara_opt.errors import NoSolverError
from epara_opt.formulation.program import MilpProgram
from epara_solvers.planners.exact import ExactPlanner, no_prices
from epara_solvers.planners.greedy import GreedyPlanner
from epara_solvers.process import IsolatedBackend, environment

PROBE_S = 60.0  # a cold disk and a busy machine; usually half a second


@dataclass(frozen=True, slots=True, kw_only=True)
class SolverInfo:
    """One planner that can be asked for by name."""

    name: str
    kind: Literal["exact", "heuristic"]
    version: str  # of the package it comes with; empty where that is not installed
    available: bool
    reason: str  # why not available; empty if it is
    good_for: str


@dataclass(frozen=True, slots=True)
class _Known:
    name: str
    package: str  # distribution; empty: built in
    module: str
    family: str  # what to ask the probe
    good_for: str


KNOWN = (
    _Known(
        "mathopt-highs",
        "ortools",
        "ortools",
        "ortools",
        "bounds and incumbents up to ~30 servers; finishes what `columns` leaves open on small edges",
    ),
    _Known("mathopt-scip", "ortools", "ortools", "ortools", "cross-checks; small and medium edges"),
    _Known(
        "cpsat",
        "ortools",
        "ortools",
        "ortools",
        "cross-checks of tiny edges: it searches a grid; its bound is loosened to stay valid",
    ),
    _Known("pulp-cbc", "PuLP", "pulp", "pulp", "small and medium edges where OR-Tools is not installed"),
)
FOUND = "a solver of your own, found by PuLP; proves no bound through it unless it is HiGHS"
HEURISTICS = (
    ("greedy", False, "EPARA's rule by gain, our reading: a plan in about a second, no bound"),
    ("greedy-density", True, "the same by gain per device"),
)
AUTO = ("mathopt-highs", "pulp-cbc")  # to finish small problems; where numba is missing, to plan; then greedy
COLUMNS = "any size: near a proven optimum in seconds, hands small problems to an exact solver (`auto`)"


def available() -> tuple[SolverInfo, ...]:
    """Every planner known here: built-in heuristics, back ends, and what else PuLP finds on this machine."""
    exact = [_info(known) for known in KNOWN]
    others = sorted(set(_probed("pulp")) - {"pulp-cbc", ""}) if is_installed("pulp") else []
    exact += [
        SolverInfo(name=name, kind="exact", version=_version("PuLP"), available=True, reason="", good_for=FOUND)
        for name in others
    ]
    own = [
        SolverInfo(
            name=name, kind="heuristic", version=_version("epara-opt"), available=True, reason="", good_for=good_for
        )
        for name, _, good_for in HEURISTICS
    ]
    engine = SolverInfo(
        name="columns",
        kind="exact",
        version=_version("epara-opt"),
        available=is_installed("numba"),
        reason="" if is_installed("numba") else "numba is not installed (pip install 'epara-opt[planner]')",
        good_for=COLUMNS,
    )
    return (engine, *exact, *own)


def make_planner(name: str = "auto", *, threads: int = 1, gap: float = 1e-4) -> Planner:
    """The planner of this name. `auto`: the best exact one that works here, else greedy.

    Raises NoSolverError, naming those known and those that work.
    """
    if name == "columns" or (name == "auto" and is_installed("numba")):
        return _column_planner(threads=max(2, threads), gap=gap)
    if name == "auto":
        usable_exact = next((candidate for candidate in AUTO if not _why_not(candidate)), None)
        if usable_exact is None:
            why_not = "; ".join(f"{candidate}: {_why_not(candidate)}" for candidate in AUTO)
            return GreedyPlanner(notes=(f"no exact solver works here, so greedy planned, without a bound ({why_not})",))
        name = usable_exact
    for heuristic, per_device, _ in HEURISTICS:
        if name == heuristic:
            return GreedyPlanner(per_device=per_device)
    infos = {info.name: info for info in available()}
    info = infos.get(name)
    if info is None or not info.available:
        usable = ", ".join(i.name for i in infos.values() if i.available)
        known = ", ".join(["auto", *infos])
        why = f"{name} cannot be used: {info.reason}" if info is not None else f"no solver is called {name!r}"
        raise NoSolverError(f"{why}. Known: {known}. Usable here: {usable}.")
    prices = _RelaxationPrices() if not _why_not("glop") else no_prices
    return ExactPlanner(IsolatedBackend(name, threads=threads), prices=prices, gap=gap)


def _column_planner(*, threads: int, gap: float) -> Planner:
    """Imported here: numba takes a second, and an executor's host has none."""
    if not is_installed("numba"):
        raise NoSolverError("columns cannot be used: numba is not installed (pip install 'epara-opt[planner]')")
    from epara_solvers.columns.ready import make_ready
    from epara_solvers.planners.columns import CONVERGED, ColumnPlanner

    make_ready()
    finisher = next((candidate for candidate in AUTO if not _why_not(candidate)), None)
    proves = 0.0 if gap <= CONVERGED else gap  # small edges are proved to the end
    exact = ExactPlanner(IsolatedBackend(finisher), gap=proves) if finisher else None
    return ColumnPlanner(exact=exact, threads=threads, gap=gap)


class _RelaxationPrices:
    """GLOP in a process that lives for one question: it is asked at most once a cycle."""

    def __call__(self, program: MilpProgram, time_limit_s: float) -> Mapping[str, float] | None:
        glop = IsolatedBackend("glop")
        try:
            return glop.prices(program, time_limit_s=time_limit_s)
        finally:
            glop.close()


def is_installed(module: str) -> bool:
    """Whether a module could be imported, without importing it. One hidden in sys.modules (None) could not."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ValueError, ImportError):
        return False


def _info(known: _Known) -> SolverInfo:
    why = _why_not(known.name)
    return SolverInfo(
        name=known.name,
        kind="exact",
        version=_version(known.package) if is_installed(known.module) else "",
        available=not why,
        reason=why,
        good_for=known.good_for,
    )


def _why_not(name: str) -> str:
    """Empty if it works."""
    family = "pulp" if name.startswith("pulp-") else "ortools"
    if not is_installed(family):
        return f"{family} is not installed (pip install 'epara-opt[planner]')"
    answers = _probed(family)
    return answers.get(name, answers.get("", f"{family} here does not offer {name}"))


@cache
def _probed(family: str) -> Mapping[str, str]:
    """What the probe says, once per process; {"": why} when it could not say."""
    argv = [sys.executable, "-m", "epara_solvers.probe", family]
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            timeout=PROBE_S,
            env=environment(),
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (subprocess.TimeoutExpired, OSError) as e:
        return {"": f"{family} could not be asked: {e}"}
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        words = done.stderr.strip().splitlines()
        return {"": f"{family} cannot be imported: {words[-1] if words else f'exit status {done.returncode}'}"}
    return cast("dict[str, str]", json.loads(lines[-1]))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
