"""Tabulate how busy a replica may be so that a wanted share of its requests is on time.

    python benchmarks/planner/utilization_table.py [--requests 60000] [--seed 1]

Writes epara_opt/domain/utilization.csv; domain/utilization.py says what the axes mean and reads it. Each cell simulates
one replica (epara_solvers/simulate) under gamma renewals at rising rates and takes the highest utilization, linear
between the two simulated ones, at which the share of all requests, admitted or not, that are on time is still wanted.
The same draws serve every cell of one CV. A batch takes as long as a full one whatever its size: of all profiles the
worst. What is left of chance is taken out at the end: the table never falls with more time, a larger batch or a lower
wanted share, and never rises with the CV.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from epara_solvers.simulate.arrivals import renewals
from epara_solvers.simulate.fleet import SLACK_S, FleetArrays
from epara_solvers.simulate.kernel import ON_TIME, simulate

from epara_opt.domain.utilization import AXES, TABLE, Kind

UTILIZATIONS = np.array([0.01, 0.02, 0.05, *np.arange(0.1, 1.0, 0.05), 0.98, 1.0])


def one_replica(kind: Kind, batch: int, time_left: float) -> FleetArrays:
    """A replica whose batch, or whose whole generation, takes 1 s; time_left as on the axis of the kind."""
    is_slots = kind is Kind.SLOTS
    ones = np.concatenate(([0.0], np.ones(batch)))
    answer_s = 0.0 if is_slots else 1.0  # with slots the axis is what may be waited for one
    room = batch if is_slots else 2 * batch * (2 + int(time_left))
    return FleetArrays(
        group_first=np.array([0, 1]),
        group=np.array([0]),
        slots=np.array([batch if is_slots else 0]),
        max_rows=np.array([batch]),
        frames=np.array([1]),
        window_s=np.array([0.0]),
        batch_s=np.array([1.0]),
        curve_first=np.array([0]),
        answer_s=answer_s * ones,
        hold_s=ones,
        queue_first=np.array([0, room]),
        route_first=np.array([0, 1]),
        route_replica=np.array([0]),
        route_slack_s=np.array([time_left]),
    )


def on_time_shares(kind: Kind, batch: int, time_left: float, unit_s: np.ndarray) -> np.ndarray:
    """(U,) at each utilization; unit_s: instants of a process of rate 1."""
    fleet = one_replica(kind, batch, time_left)
    zeros, alone = np.zeros(len(unit_s), dtype=np.int64), np.full(len(unit_s), -1)
    outcome = np.empty(len(unit_s), dtype=np.int64)
    shares: list[float] = []
    for utilization in UTILIZATIONS.tolist():
        simulate(fleet, unit_s / (utilization * batch), zeros, alone, zeros, SLACK_S, outcome)
        shares.append(float((outcome == ON_TIME).mean()))
        if shares[-1] < 0.8:  # below every wanted share, and more work makes it no better
            break
    return np.array(shares + [0.0] * (len(UTILIZATIONS) - len(shares)))


def highest(shares: np.ndarray, wanted: float) -> float:
    """The first crossing: a share that rises again by chance is not trusted."""
    below = np.flatnonzero(shares < wanted)
    if not len(below):
        return 1.0
    i = int(below[0])
    if i == 0:
        return float(UTILIZATIONS[0])  # an axis that starts there: planning with nothing at all would place nothing
    part = (shares[i - 1] - wanted) / (shares[i - 1] - shares[i])
    return float(UTILIZATIONS[i - 1] + part * (UTILIZATIONS[i] - UTILIZATIONS[i - 1]))


def table(kind: Kind, *, requests: int, seed: int) -> np.ndarray:
    """(targets, CVs, batches, times left)"""
    axes = AXES[kind]
    found = np.zeros((len(axes.target), len(axes.cv), len(axes.batch), len(axes.time_left)))
    for c, cv in enumerate(axes.cv):
        unit_s = renewals(1.0, cv, duration_s=float(requests), rng=np.random.default_rng(seed))
        for b, batch in enumerate(axes.batch):
            for t, time_left in enumerate(axes.time_left):
                shares = on_time_shares(kind, batch, time_left, unit_s)
                found[:, c, b, t] = [highest(shares, wanted) for wanted in axes.target]
    found = np.maximum.accumulate(found, axis=3)
    found = np.maximum.accumulate(found, axis=2)
    found = np.minimum.accumulate(found, axis=1)
    return np.minimum.accumulate(found, axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=60_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rows: list[list[str]] = []
    for kind in Kind:
        values, axes = table(kind, requests=args.requests, seed=args.seed), AXES[kind]
        for i, target in enumerate(axes.target):
            for c, cv in enumerate(axes.cv):
                for b, batch in enumerate(axes.batch):
                    rows.append([kind, f"{target:g}", f"{cv:g}", str(batch), *(f"{v:.3f}" for v in values[i, c, b])])
    with Path(TABLE).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


if __name__ == "__main__":
    main()
