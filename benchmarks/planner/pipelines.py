"""Pipelines over unlike devices: Helix's layer splits and PPipe's pools, their own problems, against their own results.

    python benchmarks/planner/pipelines.py [--time-limit 60] [--seed 1] [--cases helix_single10_abl,...]

Needs the problem files (PPipe's has no licence and is not shipped): EPARA_DATA names the folder that holds
peers/*.json; says so and ends where they are not there. Every split, plan and certificate is checked again in plain
Python. Merges its rows into benchmarks/results/planner_peers.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from cases import DATA, PEER_RESULTS, merge
from epara_solvers.layers import pooled, pooled_search, search
from epara_solvers.layers.check import check
from epara_solvers.layers.cover import classes_of, work_bound
from epara_solvers.layers.problem import LayerLink, LayerNode, LayerSplit
from rich.console import Console
from rich.table import Table

# The best that is known of each: Helix's Gurobi, or a search that started from its placement; PPipe's Gurobi.
HELIX = {
    "helix_single10_abl": (286.5874097546421, "Gurobi, proved in 3,803 s"),
    "helix_dist_llama30b_l4": (252.6498460282083, "Gurobi 214.98; annealing from it 252.65"),
    "helix_single_llama70b_24": (1347.8659, "Gurobi 1289.56 in 600 s; annealing from it 1347.87"),
}
PPIPE = "ppipe_single_median"


def split_of(data: dict[str, Any]) -> LayerSplit:
    """Helix's file as our problem."""
    nodes = tuple(
        LayerNode(
            id=str(n["id"]),
            layers_to_tokens_per_s=tuple(n["layers_to_tokens_per_s"][str(k + 1)] for k in range(n["max_layers"])),
        )
        for n in data["nodes"]
    )
    links = tuple(
        LayerLink(origin=str(e["from"]), target=str(e["to"]), max_tokens_per_s=e["max_tokens_per_s"])
        for e in data["links"]
    )
    return LayerSplit(num_layers=data["num_layers"], nodes=nodes, links=links)


def pooled_of(data: dict[str, Any]) -> pooled.PooledModel:
    """PPipe's file as our problem."""
    model = data["models"][0]
    pools = tuple(
        pooled.Pool(
            type=g["type"],
            count=g["count"],
            per_server=g["gpus_per_server"],
            latency_us=tuple(
                tuple(tuple(row) for row in model["block_latency_us"][g["type"]][share])
                for share in sorted(model["block_latency_us"][g["type"]], key=int)
            ),
        )
        for g in data["cluster"]["gpus"]
    )
    return pooled.PooledModel(
        pools=pools,
        transfer_us=tuple(model["inter_block_transmit_us_per_request"]),
        slo_us=model["slo_us"],
        margin_us=model["slo_margin_us"],
        wait_us_per_request=model["batch_build_factor"] * 1e6 / model["est_xput_req_s"],
        max_stages=data["max_partitions"],
    )


def shipped_plan(data: dict[str, Any], model: pooled.PooledModel) -> list[pooled.Staffed]:
    """PPipe's own plan; its numbers of shares, whole but for Gurobi's tolerance, made whole."""
    types = [pool.type for pool in model.pools]
    plan: list[pooled.Staffed] = []
    for raw in data["plans"]["ppipe"]["pipelines"][0]:
        stages = [pooled.Stage(types.index(s["gpu"]), s["mps"] + 1, *s["layers"]) for s in raw["partitions"]]
        line = pooled.pipeline_of(model, raw["partitions"][0]["bs"], stages)
        plan.append(pooled.Staffed(line, tuple(round(s["num_gpu"] * (s["mps"] + 1)) for s in raw["partitions"])))
    return plan


def row(
    case: str, solver: str, objective: float, bound: float, wall_s: float, seed: int, **more: Any
) -> dict[str, Any]:
    return {
        "case": case,
        "solver": solver,
        "objective": objective,
        "dual_bound": bound,
        "gap": max(0.0, bound - objective) / bound,
        "wall_s": wall_s,
        "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "seed": seed,
        **more,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def measure_split(name: str, time_limit_s: float, seed: int) -> dict[str, Any]:
    problem = split_of(json.loads((DATA / "peers" / f"{name}.json").read_text()))
    search.solve(problem, rounds=1, seed=seed)  # loads the compiled code
    started = time.monotonic()
    found = search.solve(problem, time_limit_s=time_limit_s, seed=seed)
    wall_s = time.monotonic() - started
    check(problem, found.intervals, found.flow_tokens_per_s, found.certificate)
    reference, note = HELIX[name]
    return row(
        name, "epara layer split", found.flow_tokens_per_s, found.bound_tokens_per_s, wall_s, seed,
        reference=reference, reference_note=note, work_bound=work_bound(classes_of(problem), problem.num_layers),
        unit="tokens/s",
    )  # fmt: skip


def measure_pools(time_limit_s: float, *, mixed_devices: bool) -> dict[str, Any]:
    data = json.loads((DATA / "peers" / f"{PPIPE}.json").read_text())
    model = replace(pooled_of(data), mixed_devices=mixed_devices)
    stored = data["objective_value"]["ppipe"]
    whole = pooled.served(model, shipped_plan(data, model))
    if abs(whole - stored) > 1e-6 * stored:  # it is 2.3e-7 less: Gurobi's numbers of shares were not quite whole
        raise SystemExit(f"{PPIPE}: the shipped plan serves {whole}, stored {stored}")
    started = time.monotonic()
    found = pooled_search.solve(model, time_limit_s=time_limit_s)
    wall_s = time.monotonic() - started
    pooled.served(model, found.plan)
    proved = pooled.priced_bound(model, found.prices, list(pooled.pipelines(model)))
    if proved > found.fractional_bound_requests_per_s * (1 + 1e-9):
        raise SystemExit(f"{PPIPE}: the prices prove {proved}, claimed {found.fractional_bound_requests_per_s}")
    note = f"Gurobi, 1,194 s; its objective is {stored}, with whole shares its plan serves this"
    return row(
        PPIPE, "epara pools, mixed devices" if mixed_devices else "epara pools", found.requests_per_s,
        found.bound_requests_per_s, wall_s, 0, reference=whole, reference_note=note, fractional_bound=proved,
        pipelines=found.considered, pipelines_left=found.left, unit="requests/s",
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time-limit", type=float, default=60.0, help="seconds of each search")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cases", default=",".join((*HELIX, PPIPE)))
    args = parser.parse_args()
    console = Console()
    if not (DATA / "peers").exists():
        console.print(f"no peers' problems in {DATA}: set EPARA_DATA to the folder that holds peers/*.json")
        return
    wanted = args.cases.split(",")
    rows = [measure_split(name, args.time_limit, args.seed) for name in wanted if name in HELIX]
    if PPIPE in wanted:
        rows += [measure_pools(args.time_limit, mixed_devices=mixed) for mixed in (False, True)]
    table = Table("case", "solver", "ours", "bound", "gap", "peer's best", "s", "MB")
    for r in rows:
        figures = (f"{r['objective']:.4f}", f"{r['dual_bound']:.4f}", f"{r['gap']:.1e}", f"{r['reference']:.4f}")
        table.add_row(r["case"], r["solver"], *figures, f"{r['wall_s']:.2f}", f"{r['rss_mb']:.0f}")
    console.print(table)
    merge(PEER_RESULTS, rows)


if __name__ == "__main__":
    main()
