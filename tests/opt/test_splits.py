"""The layer-split program against every way to cut."""

from __future__ import annotations

import itertools
import random

import pytest

from epara_opt.chain_maker import Maker
from epara_opt.domain.chain import hop_part
from epara_opt.domain.parallel import ParallelConfig
from epara_opt.domain.routes import Path
from epara_opt.splits import Splits
from epara_opt.units import GIB


@pytest.mark.parametrize("seed", range(30))
def test_the_best_split_in_time_is_found(make, seed: int) -> None:
    """Highest rate within the deadline, on uneven kinds, curves and hops."""
    rng = random.Random(seed)
    layers = rng.randint(4, 9)
    rows = []
    for tp, slow in ((1, 1.0), (2, rng.uniform(0.5, 0.9))):
        ms = 0.0
        for k in range(1, layers + 1):
            ms += rng.uniform(3.0, 12.0) * slow
            rows.append(make.row("big", layers=k, tp=tp, latency_ms=ms, memory_bytes=k * GIB // tp))
    edge = make.row_edge(rows=rows, pools=(2, 2, 2), services=[make.big(layers, slo_ms=1e4)])
    problem = edge.problem()
    service = problem.service("big")
    maker = Maker(
        edge.topology, edge.catalogue, service, problem.table, problem.offered, edge.rules, problem.busy, frozenset()
    )
    m = rng.randint(2, 3)
    config = ParallelConfig(1, m)
    splits = Splits.of(maker, config, m)
    kinds = [rng.choice(maker.kinds["l4"]) for _ in range(m)]
    path = Path(hops=(("a", "b"),), rtt_ms=rng.uniform(0.0, 10.0), bandwidth_bytes_per_s=1e6)
    hops = [hop_part(service, path, config, generates=False, is_last=i == m - 1) for i in range(m)]
    every: list[tuple[float, float]] = []  # slowest, response
    for cut in itertools.combinations(range(1, layers), m - 1):
        sizes = [b - a for a, b in itertools.pairwise((0, *cut, layers))]
        if all(k * GIB // kind.tp <= 4 * GIB for k, kind in zip(sizes, kinds, strict=True)):
            ms = [maker.slice(kind, k).latency_ms.at(1) for k, kind in zip(sizes, kinds, strict=True)]
            every.append((max(*ms, *(h.busy_ms for h in hops)), 2 * (sum(ms) + sum(h.pass_ms for h in hops))))
    for slack_ms in [r for _, r in every[:4]] + [1e9, 1.0]:
        wanted = min((slowest for slowest, response in every if response <= slack_ms), default=None)
        cuts = next(splits.best(kinds, hops, slack_ms), None)
        if wanted is None:
            assert cuts is None
            continue
        assert cuts is not None
        sizes = [b - a for a, b in itertools.pairwise((*cuts, layers))]
        ms = [maker.slice(kind, k).latency_ms.at(1) for k, kind in zip(sizes, kinds, strict=True)]
        assert max(*ms, *(h.busy_ms for h in hops)) == pytest.approx(wanted)
        assert 2 * (sum(ms) + sum(h.pass_ms for h in hops)) <= slack_ms * (1 + 1e-9)
