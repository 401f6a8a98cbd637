"""AlpaServe's own problems: placements found on `train`, scored on arrivals that no search has seen.

    python benchmarks/planner/alpaserve.py [--time-limit 8] [--seeds 1,2,3]

Needs the problem files (AlpaServe's have no licence and are not shipped): EPARA_DATA names the folder that holds
peers/*.json; says so and ends where they are not there. Writes benchmarks/results/planner_peers.json.
"""

from __future__ import annotations

import argparse
import json
import time
from datetime import UTC, datetime
from typing import Any

import numpy as np
from cases import DATA, PEER_RESULTS, merge
from epara_solvers.replay.instance import Arrivals, Group, Instance
from epara_solvers.replay.search import Replay, search
from rich.console import Console
from rich.table import Table

CASES = ("A_small_mixed_8g8m", "C_medium_equal_32g32m", "D_medium_mixed_32g60m", "F_small_pcie_batch_8g8m")
POLICIES = ("sr-greedy", "mp-search", "mp-search-sep")


def instance_of(data: dict[str, Any]) -> Instance:
    """The file's profiles under its `simulator_semantics`: float32 figures, 0.9 % more time per stage."""
    shapes = sorted({(p["op"], p["pp"]) for rows in data["profiles"].values() for p in rows})
    models = data["models"]
    stage_s = np.full((len(models), len(shapes), max(pp for _, pp in shapes)), np.inf)
    weight = np.full((len(models), len(shapes)), np.inf)
    for m, model in enumerate(models):
        for row in data["profiles"][model["type"]]:
            s = shapes.index((row["op"], row["pp"]))
            stage_s[m, s] = 0.0
            times = [np.float32(x * (1 + 0.009 * row["pp"])) for x in row["stage_latency_s"]["1"]]
            stage_s[m, s, : row["pp"]] = times
            weight[m, s] = max(row["stage_weight_bytes"])
    return Instance(
        num_devices=data["cluster"]["num_devices"],
        memory_bytes=data["cluster"]["mem_bytes_per_device"],
        shapes=tuple(shapes),
        stage_s=stage_s,
        weight_bytes=weight,
        slo_s=np.array([np.float32(m["slo_s"]) for m in models], dtype=np.float64),
        rate_per_s=np.array([m["rate_req_s"] for m in models], dtype=np.float64),
        cv=np.array([m["cv"] for m in models], dtype=np.float64),
        overhead_s=0.011,
    )


def arrivals_of(raw: dict[str, Any]) -> Arrivals:
    return Arrivals(np.array(raw["t"], dtype=np.float64), np.array(raw["model"], dtype=np.int64))


def groups_of(raw: list[dict[str, Any]], instance: Instance) -> list[Group]:
    return [Group(instance.shapes.index((g["parallel"]["op"], g["parallel"]["pp"])), tuple(g["models"])) for g in raw]


def measure(name: str, time_limit_s: float, seed: int) -> list[dict[str, Any]]:
    data = json.loads((DATA / "peers" / f"{name}.json").read_text())
    instance = instance_of(data)
    run = Replay(instance)
    tests = {t: arrivals_of(raw) for t, raw in data["tests"].items()}
    for policy in POLICIES:  # our kernel must reproduce what is stored
        stored = data["results"].get(policy) or {}
        if stored.get("groups"):
            for test, arrivals in tests.items():
                ours = run.attainment(arrivals, groups_of(stored["groups"], instance))
                if abs(ours - stored[test]["slo_attainment"]) > 1e-6:
                    raise SystemExit(f"{name} {policy} {test}: replayed {ours}, stored {stored[test]}")
    search(instance, arrivals_of(data["train"]), rounds=1, seed=seed)  # loads the compiled code
    started = time.monotonic()
    found = search(instance, arrivals_of(data["train"]), time_limit_s=time_limit_s, seed=seed)
    wall_s = time.monotonic() - started
    best = max(
        (
            data["results"][p]["heldout_test"]["slo_attainment"]
            for p in POLICIES
            if data["results"].get(p, {}).get("groups")
        ),
    )
    return [
        {
            "case": name,
            "solver": "epara replay search",
            "objective": run.attainment(tests["heldout_test"], found.groups),
            "alpaserve_test": run.attainment(tests["alpaserve_test"], found.groups),
            "train": found.recorded,
            "alpaserve_heldout": best,
            "annealing_reference_heldout": data["local_search_reference"]["heldout_test"]["slo_attainment"],
            "dual_bound": None,
            "gap": None,
            "wall_s": wall_s,
            "replays": found.replays,
            "seed": seed,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time-limit", type=float, default=8.0, help="seconds of each search")
    parser.add_argument("--seeds", default="1,2,3")
    args = parser.parse_args()
    console = Console()
    if not (DATA / "peers").exists():
        console.print(f"no peers' problems in {DATA}: set EPARA_DATA to the folder that holds peers/*.json")
        return
    rows = [r for name in CASES for seed in args.seeds.split(",") for r in measure(name, args.time_limit, int(seed))]
    table = Table("case", "seed", "held-out", "AlpaServe's best", "annealing, 75 s", "alpaserve_test", "train", "s")
    for r in rows:
        figures = ("objective", "alpaserve_heldout", "annealing_reference_heldout", "alpaserve_test", "train")
        table.add_row(r["case"], str(r["seed"]), *(f"{r[f]:.4f}" for f in figures), f"{r['wall_s']:.1f}")
    console.print(table)
    merge(PEER_RESULTS, rows)


if __name__ == "__main__":
    main()
