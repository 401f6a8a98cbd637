"""Plan the shipped edges with every solver on this machine, and write what each reached.

    python benchmarks/planner/run.py [--time-limit 30] [--solvers mathopt-highs,pulp-cbc,greedy] [TOPOLOGY ...]

Each row is one process-clean run: {case, solver, stop, objective, dual_bound, gap, wall_s, rss_mb}. Gap is
(bound - objective) / bound with the row's own bound; `gap_best` uses the tightest bound that any exact solver
proved for the case, so that heuristics without a bound can be compared too. Results go to
benchmarks/results/planner.json with the machine and the date.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "planner.json"


def measure(topology: str, solver: str, time_limit_s: float) -> dict[str, Any]:
    """One run in this process; called through --one in a process of its own."""
    import resource

    from epara_solvers.registry import make_planner

    from epara_opt.problem import build_problem
    from epara_opt.topology import load_topology
    from epara_opt.verify import verify

    loaded = load_topology(Path(topology))
    problem = build_problem(loaded.topology, loaded.catalogue, rules=loaded.rules)
    plan = make_planner(solver).plan(problem, generation=1, time_limit_s=time_limit_s)
    verify(plan, loaded.topology, loaded.catalogue, problem=problem)
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {
        "case": Path(topology).stem,
        "solver": solver,
        "stop": plan.stop.value,
        "objective": plan.objective,
        "dual_bound": plan.dual_bound,
        "gap": plan.gap,
        "wall_s": plan.wall_s,
        "rss_mb": max(own, children) / 1024,
        "offered": plan.predicted.offered,
        "notes": list(plan.notes),
    }


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
    parser.add_argument("topologies", nargs="*", default=["topologies/testbed.yaml", "topologies/metro-20.yaml"])
    parser.add_argument("--time-limit", type=float, default=30.0, help="seconds per run")
    parser.add_argument("--solvers", help="comma-separated; all that are available by default")
    parser.add_argument("--one", nargs=2, metavar=("TOPOLOGY", "SOLVER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(*args.one, args.time_limit)))
        return
    from epara_solvers.registry import available
    from rich.console import Console
    from rich.table import Table

    names = args.solvers.split(",") if args.solvers else [s.name for s in available() if s.available]
    rows: list[dict[str, Any]] = []
    for topology in args.topologies:
        for name in names:
            command = [sys.executable, __file__, "--one", topology, name, "--time-limit", str(args.time_limit)]
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no output"])[-1]
                rows.append({"case": Path(topology).stem, "solver": name, "stop": f"failed: {last}"})
            else:
                rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(rows[-1], file=sys.stderr)
    for case in {r["case"] for r in rows}:
        bounds = [r["dual_bound"] for r in rows if r["case"] == case and r.get("dual_bound")]
        for r in rows:
            if r["case"] == case and bounds and "objective" in r:
                r["gap_best"] = (min(bounds) - r["objective"]) / min(bounds)
    result = {
        "machine": machine(),
        "date": datetime.now(UTC).date().isoformat(),
        "time_limit_s": args.time_limit,
        "rows": rows,
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    table = Table("case", "solver", "stop", "objective", "bound", "gap", "gap to best bound", "wall s", "MB")
    for r in rows:
        shown = (
            r.get("objective"),
            r.get("dual_bound"),
            r.get("gap"),
            r.get("gap_best"),
            r.get("wall_s"),
            r.get("rss_mb"),
        )
        formats = ("{:.2f}", "{:.2f}", "{:.2%}", "{:.2%}", "{:.1f}", "{:.0f}")
        table.add_row(
            r["case"],
            r["solver"],
            r["stop"],
            *("-" if v is None else f.format(v) for v, f in zip(shown, formats, strict=True)),
        )
    Console().print(table)


if __name__ == "__main__":
    main()
