"""Plan edges of every size with every solver on this machine, and write what each reached.

    python benchmarks/planner/run.py [--cases 5x8,100x60] [--solvers columns,greedy] [--time-limit 30]

Each row is one run in a process of its own, on whatever else this machine does: {case, solver, stop, objective,
dual_bound, gap, wall_s, rss_mb, seed}. `gap` is (bound - objective) / bound with the row's own bound; `gap_best` uses
the tightest bound that any run proved for the case, so that heuristics can be compared too. `total_s` is from files to
a checked plan. Solver `columns-warm` plans again after 5 % of the demand has changed, from the plan of `columns`.
`columns` first plans a tiny edge, so that its compiled code is loaded as on every run but the first after installation.

Results are merged by case and solver into benchmarks/results/planner.json, with the machine and the date. The Melbourne
case needs the EUA data set: EPARA_DATA names the folder that holds topologies/*.csv; without it the case is skipped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cases import CASES, GENERAL_SERVERS, ROOT, is_there, load
from epara_solvers.registry import available, make_planner
from rich.console import Console

from epara_opt.domain.service import Demand
from epara_opt.plan import Plan
from epara_opt.problem import PlacementProblem, build_problem
from epara_opt.topology import LoadedTopology, load_topology
from epara_opt.verify import verify

RESULTS = ROOT / "benchmarks" / "results" / "planner.json"
WARM = "columns-warm"
CHANGED = 0.05  # of the demand entries, each by a factor of 0.5 to 1.5
ALWAYS = ("columns", "greedy", "greedy-density", WARM)


def measure(name: str, solver: str, time_limit_s: float | None) -> dict[str, Any]:
    """One run in this process; called through --one in a process of its own."""
    import resource

    case = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        if solver.startswith("columns"):
            warm_up()
        started = time.monotonic()
        loaded = load(name, Path(folder))
        loaded_s = time.monotonic() - started
    planner = make_planner("columns" if solver == WARM else solver)
    limit_s = time_limit_s or case.time_limit_s
    started = time.monotonic()
    problem = build_problem(loaded.topology, loaded.catalogue, rules=loaded.rules)
    plan = planner.plan(problem, generation=1, time_limit_s=limit_s)
    if solver == WARM:
        started = time.monotonic()
        problem, plan = again(loaded, plan, planner, case.warm_s or limit_s, case.seed)
    verify(plan, loaded.topology, loaded.catalogue, problem=problem)
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {
        "case": name,
        "solver": solver,
        "stop": plan.stop.value,
        "objective": plan.objective,
        "dual_bound": plan.dual_bound,
        "gap": plan.gap,
        "wall_s": plan.wall_s,
        "load_s": loaded_s,
        "total_s": time.monotonic() - started,
        "rss_mb": max(own, children) / 1024,
        "offered": plan.predicted.offered,
        "edges": len(problem.table),
        "seed": case.seed,
        "notes": list(plan.notes),
    }


def warm_up() -> None:
    loaded = load_topology(ROOT / "topologies" / "testbed.yaml")
    problem = build_problem(loaded.topology, loaded.catalogue, rules=loaded.rules)
    plan = make_planner("columns").plan(problem, generation=1, time_limit_s=2.0)
    problem = build_problem(loaded.topology, loaded.catalogue, rules=loaded.rules, in_force=plan)
    make_planner("columns").plan(problem, generation=2, time_limit_s=2.0, in_force=plan)


def again(loaded: LoadedTopology, plan: Plan, planner: Any, limit_s: float, seed: int) -> tuple[PlacementProblem, Plan]:
    """The next cycle: some demand has changed."""
    import numpy as np

    rng = np.random.default_rng(seed)

    def later(d: Demand) -> Demand:
        if rng.random() >= CHANGED:
            return d
        offered = d.offered * rng.uniform(0.5, 1.5)
        return replace(d, offered=float(max(1, round(offered))) if d.is_streams else offered)

    demand = [later(d) for d in loaded.topology.demand]
    problem = build_problem(loaded.topology, loaded.catalogue, rules=loaded.rules, demand=demand, in_force=plan)
    return problem, planner.plan(problem, generation=2, time_limit_s=limit_s, in_force=plan)


def machine() -> str:
    """What the figures were measured on, without naming the host."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return f"{os.cpu_count()} x {model}, Python {platform.python_version()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES), help="comma-separated; all by default")
    parser.add_argument("--solvers", help="comma-separated; all that are available by default")
    parser.add_argument("--time-limit", type=float, help="seconds per run, instead of the case's own")
    parser.add_argument("--markdown", action="store_true", help="measure nothing; print the results file as a table")
    parser.add_argument("--summary", action="store_true", help="measure nothing; print a line per case")
    parser.add_argument("--one", nargs=2, metavar=("CASE", "SOLVER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(*args.one, args.time_limit)))
        return
    if args.markdown:
        print(markdown(json.loads(RESULTS.read_text())))
        return
    if args.summary:
        print(summary(json.loads(RESULTS.read_text())))
        return
    console = Console(stderr=True)
    solvers = args.solvers.split(",") if args.solvers else [i.name for i in available() if i.available] + [WARM]
    rows: list[dict[str, Any]] = []
    for name in args.cases.split(","):
        if not is_there(name):
            console.print(f"{name}: its data is not on this machine (set EPARA_DATA); skipped")
            continue
        for solver in solvers:
            if (solver not in ALWAYS and CASES[name].servers > GENERAL_SERVERS) or (
                solver == WARM and CASES[name].warm_s is None
            ):
                continue
            command = [sys.executable, __file__, "--one", name, solver]
            command += ["--time-limit", str(args.time_limit)] if args.time_limit else []
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                console.print(f"{name} {solver}: failed\n{done.stderr[-2000:]}")
                continue
            row = json.loads(done.stdout.splitlines()[-1]) | {"at": datetime.now(UTC).isoformat(timespec="seconds")}
            rows.append(row)
            gap = "-" if row["gap"] is None else f"{100 * row['gap']:.2f} %"
            console.print(
                f"{name:18} {solver:15} {row['objective']:10.2f} gap {gap:>8} {row['stop']:11} "
                f"{row['wall_s']:6.1f} s {row['rss_mb']:6.0f} MB",
                highlight=False,
            )
    write(rows)


def markdown(results: dict[str, Any]) -> str:
    """The table that README and docs quote."""
    head = ("case", "solver", "stop", "objective", "bound", "gap", "below the best bound", "seconds", "MB")
    lines = [f"{results['machine']}, {results['date']}", "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for r in results["rows"]:
        bound = "-" if r["dual_bound"] is None else f"{r['dual_bound']:.2f}"
        shown = ["-" if r[key] is None else f"{100 * r[key]:.2f} %" for key in ("gap", "gap_best")]
        cells = (r["case"], r["solver"], r["stop"], f"{r['objective']:.2f}", bound, *shown)
        lines.append("| " + " | ".join((*cells, f"{r['wall_s']:.1f}", f"{r['rss_mb']:.0f}")) + " |")
    return "\n".join(lines)


def summary(results: dict[str, Any]) -> str:
    """A line per case: the engine with its own bound, the best of the general solvers, and greedy, below the best
    bound that any of them proved."""
    head = ("case", "columns: gap", "seconds", "MB", "planning again: gap", "seconds", "best general solver", "greedy")
    lines = [f"{results['machine']}, {results['date']}", "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name in dict.fromkeys(r["case"] for r in results["rows"]):
        mine = {r["solver"]: r for r in results["rows"] if r["case"] == name}
        others = [r for r in mine.values() if r["solver"] not in ALWAYS and r["gap_best"] is not None]
        ours, warm = mine.get("columns"), mine.get(WARM)
        best = min(others, key=lambda r: r["gap_best"], default=None)
        greedy = min((r["gap_best"] for r in mine.values() if r["solver"].startswith("greedy")), default=None)
        cells = [name]
        cells += ["-"] * 3 if ours is None else [_gap(ours), f"{ours['wall_s']:.1f}", f"{ours['rss_mb']:.0f}"]
        cells += ["-"] * 2 if warm is None else [_gap(warm), f"{warm['wall_s']:.1f}"]
        cells += ["-" if best is None else f"{100 * best['gap_best']:.2f} % ({best['solver']})"]
        cells += ["-" if greedy is None else f"{100 * greedy:.1f} %"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _gap(row: dict[str, Any]) -> str:
    return "proved optimal" if row["stop"] == "optimal" else f"{100 * row['gap']:.2f} %"


def write(rows: list[dict[str, Any]]) -> None:
    """Merge with the rows of other runs."""
    found = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    fresh = {(r["case"], r["solver"]) for r in rows}
    found = [r for r in found if (r["case"], r["solver"]) not in fresh and "edges" in r] + rows
    for row in found:
        bounds = [
            r["dual_bound"] for r in found if r["case"] == row["case"] and r["dual_bound"] and r["solver"] != WARM
        ]
        best = row["dual_bound"] if row["solver"] == WARM else min(bounds, default=None)
        row["gap_best"] = None if not best else max(0.0, (best - row["objective"]) / best)
    order = list(CASES)
    found.sort(key=lambda r: (order.index(r["case"]), r["gap_best"] if r["gap_best"] is not None else 1.0))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(
        json.dumps({"machine": machine(), "date": datetime.now(UTC).date().isoformat(), "rows": found}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
