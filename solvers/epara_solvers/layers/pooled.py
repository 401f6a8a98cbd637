"""Blocks of one model over pools of unlike devices: the problem, its pipelines, and plans. Semantics: PPipe (ATC'25).

A device may be cut into equal shares (MPS). A pipeline cuts the model's blocks into at most `max_stages` runs, each on
one device type at one share; all stages form batches of the same size b. With n_i shares at work on stage i, it serves

    min_i n_i rate_i      rate_i = min(b / latency_i, what the share's part of its server's link passes in and out)

requests/s, and counts where a batch is on time: the stages' latencies, b transfers between them, the wait until b
requests are there, and a margin add up to no more than the SLO. A plan is a set of pipelines with whole numbers of
shares, on no more devices than there are. Unless `mixed_devices`, the shares of a type that work on i-th stages fill
whole devices between them, as in PPipe's own program. Wanted: the plan that serves most.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from epara_opt.errors import InputError, PlanRejected, Violation

ROUNDING = 1e-9  # relative: devices and latencies may exceed their limits by that


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Devices of one type, and the time of every block on a share of one."""

    type: str
    count: int
    per_server: int  # devices that share a server's link
    latency_us: tuple[tuple[tuple[float, ...], ...], ...]  # [shares - 1][block][batch - 1]

    def __post_init__(self) -> None:
        path = f"pools.{self.type}"
        if self.count < 0 or self.per_server < 1:
            value = f"{self.count}, {self.per_server}"
            raise InputError(Violation(path=path, law="expected a count >= 0 and per_server >= 1", value=value))
        for cut, blocks in enumerate(self.latency_us, start=1):
            if len({len(row) for row in blocks}) > 1 or len(blocks) != len(self.latency_us[0]):
                law = "expected the same blocks at every share, and the same batches for every block"
                raise InputError(Violation(path=f"{path}.latency_us[{cut}]", law=law))
            if not all(math.isfinite(x) and x > 0 for row in blocks for x in row):
                raise InputError(Violation(path=f"{path}.latency_us[{cut}]", law="expected finite and > 0"))


@dataclass(frozen=True, slots=True, kw_only=True)
class PooledModel:
    """The problem."""

    pools: tuple[Pool, ...]
    transfer_us: tuple[float, ...]  # [j]: of one request over a whole server link, after block j
    slo_us: float
    margin_us: float
    wait_us_per_request: float  # until a batch has one more request
    max_stages: int
    mixed_devices: bool = False  # whether shares of one device may work on first and on second stages

    def __post_init__(self) -> None:
        blocks = self.num_blocks
        for pool in self.pools:
            for cut, table in enumerate(pool.latency_us, start=1):
                if len(table) != blocks:
                    path = f"pools.{pool.type}.latency_us[{cut}]"
                    raise InputError(Violation(path=path, law=f"expected {blocks} blocks", value=str(len(table))))
        if not all(math.isfinite(x) and x > 0 for x in self.transfer_us):
            raise InputError(Violation(path="transfer_us", law="expected finite and > 0", value=str(self.transfer_us)))
        for path, value in (("slo_us", self.slo_us), ("max_stages", self.max_stages)):
            if not value > 0:
                raise InputError(Violation(path=path, law="expected > 0", value=str(value)))
        for path, value in (("margin_us", self.margin_us), ("wait_us_per_request", self.wait_us_per_request)):
            if not value >= 0:
                raise InputError(Violation(path=path, law="expected >= 0", value=str(value)))

    @property
    def num_blocks(self) -> int:
        return len(self.transfer_us) + 1


@dataclass(frozen=True, slots=True)
class Stage:
    """Blocks [first, end) on shares of 1 / shares of a device."""

    pool: int
    shares: int
    first: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    batch: int
    stages: tuple[Stage, ...]
    requests_per_s: tuple[float, ...]  # per stage, of one share
    latency_us: float

    def devices_per_request(self, pool: int) -> float:
        """Device-seconds of the pool that a request takes."""
        pairs = zip(self.stages, self.requests_per_s, strict=True)
        return sum(1.0 / (s.shares * rate) for s, rate in pairs if s.pool == pool)


@dataclass(frozen=True, slots=True)
class Staffed:
    """A pipeline at work."""

    pipeline: Pipeline
    shares: tuple[int, ...]  # per stage

    @property
    def requests_per_s(self) -> float:
        return min(n * rate for n, rate in zip(self.shares, self.pipeline.requests_per_s, strict=True))


def pipeline_of(model: PooledModel, batch: int, stages: Sequence[Stage]) -> Pipeline:
    """Its rates and latency, be it on time or not."""
    rates: list[float] = []
    latency_us = model.margin_us + model.wait_us_per_request * (batch - 1)
    for stage in stages:
        pool = model.pools[stage.pool]
        work_us = sum(pool.latency_us[stage.shares - 1][b][batch - 1] for b in range(stage.first, stage.end))
        rate = batch * 1e6 / work_us
        for cut in (stage.first, stage.end):
            if 0 < cut < model.num_blocks:
                rate = min(rate, 1e6 / model.transfer_us[cut - 1] / stage.shares / pool.per_server)
        rates.append(rate)
        latency_us += work_us + (model.transfer_us[stage.end - 1] * batch if stage.end < model.num_blocks else 0.0)
    return Pipeline(batch=batch, stages=tuple(stages), requests_per_s=tuple(rates), latency_us=latency_us)


def pipelines(model: PooledModel) -> Iterator[Pipeline]:
    """All that are on time."""
    kinds = [(p, cut) for p, pool in enumerate(model.pools) for cut in range(1, len(pool.latency_us) + 1)]
    most = {kind: len(model.pools[kind[0]].latency_us[kind[1] - 1][0]) for kind in kinds}  # the largest batch
    for batch in range(1, max(most.values(), default=0) + 1):
        usable = [kind for kind in kinds if most[kind] >= batch]
        for num in range(1, min(model.max_stages, model.num_blocks) + 1):
            for cuts in itertools.combinations(range(1, model.num_blocks), num - 1):
                runs = tuple(itertools.pairwise((0, *cuts, model.num_blocks)))
                for chosen in itertools.product(usable, repeat=num):
                    stages = [Stage(*kind, *run) for kind, run in zip(chosen, runs, strict=True)]
                    found = pipeline_of(model, batch, stages)
                    if found.latency_us <= model.slo_us * (1 + ROUNDING):
                        yield found


def devices_used(model: PooledModel, plan: Sequence[Staffed]) -> list[int]:
    """Per pool, whole devices."""
    parts: dict[tuple[int, int], float] = {}
    for staffed in plan:
        for place, (stage, n) in enumerate(zip(staffed.pipeline.stages, staffed.shares, strict=True)):
            key = (stage.pool, 0 if model.mixed_devices else place)
            parts[key] = parts.get(key, 0.0) + n / stage.shares
    used = [0] * len(model.pools)
    for (pool, _), devices in parts.items():
        used[pool] += math.ceil(devices * (1 - ROUNDING))
    return used


def served(model: PooledModel, plan: Sequence[Staffed]) -> float:
    """Requests/s of a plan, recomputed. Raises PlanRejected with every law it breaks."""
    broken: list[str] = []
    for i, staffed in enumerate(plan):
        given = staffed.pipeline
        ends = [0, *(s.end for s in given.stages)]
        if [s.first for s in given.stages] != ends[:-1] or ends[-1] != model.num_blocks or ends != sorted(set(ends)):
            broken.append(f"plan[{i}]: its stages do not make the model: {given.stages}")
            continue
        if len(given.stages) > model.max_stages:
            broken.append(f"plan[{i}]: expected at most {model.max_stages} stages, got {len(given.stages)}")
        if min(staffed.shares) < 0 or len(staffed.shares) != len(given.stages):
            broken.append(f"plan[{i}]: expected a number >= 0 of shares for every stage, got {staffed.shares}")
        found = pipeline_of(model, given.batch, given.stages)
        if found.latency_us > model.slo_us * (1 + ROUNDING):
            broken.append(f"plan[{i}]: expected at most {model.slo_us} us, got {found.latency_us}")
        if found != given:
            broken.append(f"plan[{i}]: its rates or its latency are not those of its stages")
    if broken:
        raise PlanRejected(broken)
    for pool, used in zip(model.pools, devices_used(model, plan), strict=True):
        if used > pool.count:
            broken.append(f"pools.{pool.type}: expected at most {pool.count} devices, got {used}")
    if broken:
        raise PlanRejected(broken)
    return sum(staffed.requests_per_s for staffed in plan)


def priced_bound(model: PooledModel, prices: Sequence[float], known: Sequence[Pipeline]) -> float:
    """What no plan exceeds, whole shares or not: the devices' prices over the least that a request costs at them.

    prices: per pool, of a device, >= 0, any; known: all pipelines of the model.
    """
    if len(prices) != len(model.pools) or not all(math.isfinite(p) and p >= 0 for p in prices):
        raise InputError(Violation(path="prices", law="expected one >= 0 for every pool", value=str(list(prices))))
    dear = (math.fsum(p * line.devices_per_request(i) for i, p in enumerate(prices)) for line in known)
    cheapest = min(dear, default=math.inf)
    whole = math.fsum(p * pool.count for p, pool in zip(prices, model.pools, strict=True))
    return 0.0 if whole == 0 and cheapest > 0 else whole / cheapest if cheapest > 0 else math.inf
