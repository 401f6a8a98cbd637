"""What plans deliver when requests come in bursts: simulated goodput on arrivals that no plan has seen.

    python benchmarks/planner/burst.py [--cases metro-20,20x24-cv4] [--variants 0.8,target-0.95] [--time-limit 8]

Cases: the shipped edges with their own burstiness, and a generated one (20 servers x 24 services, overload 1.6) with
each demand's CV set to 1, 2 and 4. Variants: max_utilization 0.8 (the default) and 0.95; on_time_target 0.95 and 0.99
(at most 0.8 full); `refined`: the plan of 0.8 after --refine seconds of epara_solvers/simulate/refine.py.

Each plan is held against the same held-out arrivals (renewals from rates and CVs, streams periodic; seeds that the
refinement does not draw). `simulated`: weighted goodput when what the plan leaves unserved is tried too, as executors
do. `kept`: the same when only what the plan promises is let in; `promised`: that promise; `on_time_of_promised`: of the
requests let in so, the share on time. Means over the days drawn.
Rows are merged by case and variant into benchmarks/results/planner_burst.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from cases import ROOT, load
from epara_solvers.planners.columns import ColumnPlanner
from epara_solvers.simulate.arrivals import Arrivals, drawn
from epara_solvers.simulate.fleet import first_routes, fleet_of
from epara_solvers.simulate.kernel import ON_TIME
from epara_solvers.simulate.outcome import outcomes, simulate_plan
from epara_solvers.simulate.refine import Refinement, refined
from rich.console import Console
from run import machine, warm_up

from epara_opt.plan import Plan
from epara_opt.problem import PlacementProblem, PlanningRules, build_problem
from epara_opt.topology import LoadedTopology
from epara_opt.verify import verify

RESULTS = ROOT / "benchmarks" / "results" / "planner_burst.json"
CASES = ("testbed", "metro-20", "demo", "20x24-cv1", "20x24-cv2", "20x24-cv4")
RULES = {
    "0.8": {"max_utilization": 0.8},
    "0.95": {"max_utilization": 0.95},
    "target-0.95": {"on_time_target": 0.95},
    "target-0.99": {"on_time_target": 0.99},
    "refined": {"max_utilization": 0.8},
}
SEEDS = (101, 102, 103)  # of the held-out days
ARRIVALS_PER_DAY = 400_000  # days are as long as this takes, from --day up to an hour
MOST_S = 3600.0


def edge_of(case: str, folder: Path) -> LoadedTopology:
    """The case's edge; `-cvX` sets every demand's burstiness."""
    name, _, cv = case.partition("-cv")
    loaded = load(name if cv else case, folder)
    if not cv:
        return loaded
    demand = tuple(replace(d, burstiness_cv=float(cv)) for d in loaded.topology.demand)
    return replace(loaded, topology=replace(loaded.topology, demand=demand))


def held_out(problem: PlacementProblem, least_s: float) -> list[Arrivals]:
    events_per_s = sum(d.offered * problem.service(d.service).events_per_work for d in problem.demand)
    duration_s = min(MOST_S, max(least_s, ARRIVALS_PER_DAY / events_per_s))
    return [
        drawn(problem.demand, problem.topology.services, duration_s=duration_s, rng=np.random.default_rng(seed))
        for seed in SEEDS
    ]


def on_time_of_promised(plan: Plan, problem: PlacementProblem, days: list[Arrivals]) -> float:
    """Of the requests (no frames) that the plan promises to serve, the share on time."""
    let_in = on_time = 0
    for day in days:
        fleet = fleet_of(plan, problem.topology, problem.catalogue, day.entries, problem.offered)
        first = first_routes(fleet, day, planned_only=True)
        mine = (first >= 0) & (day.stream < 0)
        let_in += int(mine.sum())
        on_time += int((outcomes(fleet, day, first)[mine] == ON_TIME).sum())
    return on_time / let_in if let_in else 1.0


def row(case: str, variant: str, plan: Plan, problem: PlacementProblem, days: list[Arrivals]) -> dict[str, Any]:
    started, count = time.process_time(), 0
    tried, kept = [], []
    for day in days:
        tried.append(simulate_plan(plan, problem, day).goodput)
        kept.append(simulate_plan(plan, problem, day, planned_only=True).goodput)
        count += 2 * len(day)
    rate = count / (time.process_time() - started)
    return {
        "case": case,
        "variant": variant,
        "offered": plan.predicted.offered,
        "promised": plan.predicted.goodput,
        "simulated": float(np.mean(tried)),
        "simulated_days": tried,
        "kept": float(np.mean(kept)),
        "on_time_of_promised": on_time_of_promised(plan, problem, days),
        "arrivals_per_day": count // (2 * len(days)),
        "simulated_per_cpu_s": rate,
        "notes": list(plan.notes),
    }


def measure(case: str, variants: list[str], time_limit_s: float, refine_s: float, day_s: float) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        loaded = edge_of(case, Path(folder))
    plans: dict[str, Plan] = {}
    for variant in variants:
        rules: PlanningRules = replace(loaded.rules, **RULES[variant])
        problem = build_problem(loaded.topology, loaded.catalogue, rules=rules)
        if variant == "refined" and "0.8" in plans:
            plan = plans["0.8"]
        else:
            plan = ColumnPlanner().plan(problem, generation=1, time_limit_s=time_limit_s)
        if variant == "refined":
            plan = refined(plan, problem, Refinement(time_limit_s=refine_s))
        verify(plan, loaded.topology, loaded.catalogue, problem=problem)
        plans[variant] = plan
        rows.append(row(case, variant, plan, problem, held_out(problem, day_s)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--variants", default=",".join(RULES))
    parser.add_argument("--time-limit", type=float, default=8.0, help="seconds per plan")
    parser.add_argument("--refine", type=float, default=30.0, help="seconds per refinement")
    parser.add_argument("--day", type=float, default=300.0, help="seconds that a held-out day has at least")
    args = parser.parse_args()
    console = Console(stderr=True)
    warm_up()
    rows: list[dict[str, Any]] = []
    for case in args.cases.split(","):
        for found in measure(case, args.variants.split(","), args.time_limit, args.refine, args.day):
            rows.append(found | {"at": datetime.now(UTC).date().isoformat()})
            console.print(
                f"{case:10} {found['variant']:12} offered {found['offered']:8.2f} promised {found['promised']:8.2f} "
                f"kept {found['kept']:8.2f} simulated {found['simulated']:8.2f} "
                f"on time of promised {100 * found['on_time_of_promised']:.2f} %",
                highlight=False,
            )
    old = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    fresh = {(r["case"], r["variant"]) for r in rows}
    kept = [r for r in old if (r["case"], r["variant"]) not in fresh] + rows
    order = list(RULES)
    kept.sort(key=lambda r: (CASES.index(r["case"]), order.index(r["variant"])))
    text = json.dumps({"machine": machine(), "date": datetime.now(UTC).date().isoformat(), "rows": kept}, indent=1)
    RESULTS.write_text(text + "\n")


if __name__ == "__main__":
    main()
