"""Pooled pipelines against looking at every plan; a plan's figures are recomputed from its stages."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from epara_solvers.layers.pooled import (
    Pool,
    PooledModel,
    Staffed,
    Stage,
    devices_used,
    pipeline_of,
    pipelines,
    priced_bound,
    served,
)
from epara_solvers.layers.pooled_search import device_prices, least_loss, solve

from epara_opt.errors import InputError, PlanRejected


def make_model(seed: int, *, mixed_devices: bool = False) -> PooledModel:
    """Two pools of 1-2 devices, whole or halved, two blocks, batches up to 2."""
    rng = np.random.default_rng(seed)
    pools = tuple(
        Pool(
            type=name,
            count=int(rng.integers(1, 3)),
            per_server=int(rng.integers(1, 3)),
            latency_us=tuple(
                tuple((float(t), float(t * rng.uniform(1.4, 2.0))) for t in rng.uniform(800, 4000, 2) * cut**0.9)
                for cut in (1, 2)
            ),
        )
        for name in ("fast", "slow")
    )
    return PooledModel(
        pools=pools,
        transfer_us=(float(rng.uniform(100, 1500)),),
        slo_us=float(rng.uniform(7000, 14000)),
        margin_us=500.0,
        wait_us_per_request=800.0,
        max_stages=2,
        mixed_devices=mixed_devices,
    )


def every_plan(model: PooledModel) -> float:
    """The most that plans of whole shares serve, by dynamic programming over used shares, half a device each.

    Without mixed devices the shares of a pool and a place in the pipelines are counted apart; at the end each fills
    whole devices.
    """
    states: dict[tuple[int, ...], float] = {
        (0, 0, 0, 0): 0.0
    }  # half devices of pool 0 and 1 at place 0, then at place 1
    tops = [2 * pool.count for pool in model.pools]
    for line in pipelines(model):
        choices: list[tuple[tuple[int, ...], float]] = []
        for shares in itertools.product(*(range(1, model.pools[s.pool].count * s.shares + 1) for s in line.stages)):
            halves = [0, 0, 0, 0]
            for place, (stage, n) in enumerate(zip(line.stages, shares, strict=True)):
                halves[2 * place + stage.pool] += n * 2 // stage.shares
            choices.append((tuple(halves), Staffed(line, shares).requests_per_s))
        grown = dict(states)
        for used, value in states.items():
            for halves, more in choices:
                both = tuple(a + b for a, b in zip(used, halves, strict=True))
                if all(both[g] + both[2 + g] <= tops[g] for g in (0, 1)):
                    grown[both] = max(grown.get(both, 0.0), value + more)
        states = grown
    fits = [
        value
        for used, value in states.items()
        if model.mixed_devices
        or all(math.ceil(used[g] / 2) + math.ceil(used[2 + g] / 2) <= model.pools[g].count for g in (0, 1))
    ]
    return max(fits)


@pytest.mark.parametrize("mixed_devices", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_the_best_of_all_plans_is_found_and_bounded(seed: int, mixed_devices: bool) -> None:
    model = make_model(seed, mixed_devices=mixed_devices)
    found, best = solve(model), every_plan(model)
    assert served(model, found.plan) == found.requests_per_s
    assert found.requests_per_s == pytest.approx(best, rel=1e-9)
    assert found.requests_per_s <= found.bound_requests_per_s <= found.fractional_bound_requests_per_s * (1 + 1e-9)
    known = list(pipelines(model))
    assert priced_bound(model, found.prices, known) == pytest.approx(found.fractional_bound_requests_per_s)


@pytest.mark.parametrize("seed", range(12))
def test_any_prices_bound_every_plan(seed: int) -> None:
    model = make_model(seed, mixed_devices=True)
    rng, known = np.random.default_rng(seed), list(pipelines(model))
    best = every_plan(model)
    for _ in range(20):
        assert priced_bound(model, rng.uniform(0.0, 1000.0, 2).tolist(), known) >= best * (1 - 1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_the_least_loss_is_that_of_trying_all_whole_shares(seed: int) -> None:
    model = make_model(seed)
    known = list(pipelines(model))
    prices = device_prices(model, known)
    for line in known:
        ranges = [range(1, model.pools[s.pool].count * s.shares + 1) for s in line.stages]
        tried = [
            sum(prices[s.pool] * n / s.shares for s, n in zip(line.stages, shares, strict=True))
            - Staffed(line, shares).requests_per_s
            for shares in itertools.product(*ranges)
        ]
        # more shares than there are may be assumed on stages that keep up: the loss is then too low, never too high
        assert least_loss(model, prices, line) <= min(tried) + 1e-9
        assert least_loss(model, prices, line) >= -1e-6


def two_stages(model: PooledModel) -> Staffed:
    return Staffed(pipeline_of(model, 1, (Stage(0, 1, 0, 1), Stage(1, 2, 1, 2))), (1, 1))


def test_rates_and_latency_are_those_of_stages_links_and_waiting() -> None:
    pool = Pool(type="gpu", count=4, per_server=2, latency_us=(((1000.0, 1500.0), (2000.0, 2500.0)),))
    model = PooledModel(
        pools=(pool,), transfer_us=(900.0,), slo_us=1e6, margin_us=50.0, wait_us_per_request=30.0, max_stages=2
    )
    line = pipeline_of(model, 2, (Stage(0, 1, 0, 1), Stage(0, 1, 1, 2)))
    # two devices share a link that passes 1 / 900 us: 555.6 requests/s each, both ways; 2 / 2500 us are 800
    assert line.requests_per_s == pytest.approx((1e6 / 900 / 2, 1e6 / 900 / 2))
    assert line.latency_us == 1500.0 + 2 * 900.0 + 2500.0 + 50.0 + 30.0
    whole = pipeline_of(model, 2, (Stage(0, 1, 0, 2),))
    assert whole.requests_per_s == (2e6 / 4000.0,)


def test_shares_of_first_and_second_stages_fill_devices_apart_unless_mixed() -> None:
    model = make_model(0)
    first = Staffed(pipeline_of(model, 1, (Stage(0, 2, 0, 1), Stage(0, 2, 1, 2))), (1, 1))
    assert devices_used(model, [first]) == [2, 0]
    assert devices_used(replace(model, mixed_devices=True), [first]) == [1, 0]
    assert devices_used(model, [first, first]) == [2, 0]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda s: replace(s, shares=(50, 1)), "pools.fast: expected at most"),
        (lambda s: replace(s, shares=(-1, 1)), "expected a number >= 0 of shares"),
        (lambda s: replace(s, pipeline=replace(s.pipeline, requests_per_s=(9e9, 9e9))), "are not those of its stages"),
        (lambda s: replace(s, pipeline=replace(s.pipeline, stages=s.pipeline.stages[:1])), "do not make the model"),
    ],
)
def test_plans_that_promise_what_they_cannot_keep_are_rejected(spoil: Callable[[Staffed], Staffed], words: str) -> None:
    model = replace(make_model(1), slo_us=1e6)
    good = two_stages(model)
    assert served(model, [good]) == good.requests_per_s
    with pytest.raises(PlanRejected, match=words):
        served(model, [spoil(good)])


def test_a_pipeline_that_is_late_is_rejected() -> None:
    model = replace(make_model(1), slo_us=1e6)
    late = replace(model, slo_us=two_stages(model).pipeline.latency_us - 1.0)
    with pytest.raises(PlanRejected, match="expected at most"):
        served(late, [two_stages(model)])


def test_without_a_pipeline_on_time_nothing_is_served_for_certain() -> None:
    found = solve(replace(make_model(1), slo_us=1.0))
    assert (found.plan, found.requests_per_s, found.bound_requests_per_s) == ((), 0.0, 0.0)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Pool(type="a", count=-1, per_server=1, latency_us=()), "pools.a: expected a count >= 0"),
        (lambda: Pool(type="a", count=1, per_server=1, latency_us=(((0.0,),),)), r"latency_us\[1\]: expected finite"),
        (lambda: replace(make_model(0), transfer_us=(1.0, 2.0)), "expected 3 blocks, got 2"),
        (lambda: replace(make_model(0), max_stages=0), "max_stages: expected > 0, got 0"),
        (lambda: priced_bound(make_model(0), (1.0, math.nan), ()), "prices: expected one >= 0 for every pool"),
    ],
)
def test_what_breaks_a_law_is_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()
