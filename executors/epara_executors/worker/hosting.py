"""What one rank holds: the tenants of its device group, loaded and warm."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from epara_executors.runners.arrays import Array, from_array, to_array
from epara_executors.runners.batches import OnePassRunner
from epara_executors.runners.contract import LoadError
from epara_executors.runners.decoder import DecoderPart, Step
from epara_executors.runners.generation import GenerationRunner
from epara_executors.runners.loading import parameter_bytes
from epara_executors.runners.registry import GENERATION, open_decoder, open_one_pass
from epara_executors.weights.cache import fetched_folder
from epara_executors.weights.files import local_folder
from epara_executors.worker.blocks import BlockPool, cache_blocks
from epara_executors.worker.engine import Engine
from epara_executors.worker.frames import Frame
from epara_executors.worker.memory import PeakMeter
from epara_executors.worker.ranks import Ranks
from epara_executors.worker.scheduler import Scheduler


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """One service of the group, as the agent's `load` describes it."""

    replica: str
    source: str
    task: str
    batch: int = 1
    frames: int = 1
    prompt_tokens: int = 0
    output_tokens: int = 0

    @staticmethod
    def from_fields(fields: Mapping[str, Any]) -> Tenant:
        """Raises LoadError for a tenant without its parts."""
        try:
            return Tenant(
                replica=str(fields["replica"]),
                source=str(fields["source"]),
                task=str(fields["task"]),
                batch=max(1, int(fields.get("batch") or 1)),
                frames=max(1, int(fields.get("frames") or 1)),
                prompt_tokens=int(fields.get("prompt_tokens") or 0),
                output_tokens=int(fields.get("output_tokens") or 0),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise LoadError(f"tenant: expected replica, source, task and whole numbers: {error!r}") from error

    @property
    def rows(self) -> int:
        """Rows of a full batch."""
        return self.batch * self.frames


@dataclass(slots=True)
class Hosted:
    """A tenant that can serve, as rank 0 sees it: either one pass per batch, or an engine."""

    tenant: Tenant
    one_pass: OnePassRunner | None = None
    generation: GenerationRunner | None = None
    engine: Engine | None = None
    memory_bytes: int = 0  # per device; of a chain: of the first stage's
    load_s: float = 0.0
    stage_bytes: tuple[int, ...] = ()  # (stages,) per device, of a chain

    def loaded(self) -> Frame:
        """What the agent wants to know about it."""
        runner = self.one_pass or self.generation
        if runner is None:
            raise ValueError(f"{self.tenant.replica}: expected a runner, got none")
        inputs = list(dict.fromkeys(spec for form in runner.forms for spec in form))
        return Frame(
            "loaded",
            {
                "replica": self.tenant.replica,
                "memory_bytes": self.memory_bytes,
                "load_s": self.load_s,
                "stage_bytes": self.stage_bytes,
                "inputs": [s.listed() for s in inputs],
                "outputs": [s.listed() for s in runner.outputs],
            },
        )


class Host:
    """Loads tenants on this rank. Rank 0 hosts through `host`; the others do as they are told in `follow`."""

    def __init__(self, model_root: Path, device: torch.device, ranks: Ranks, model_cache: Path | None = None) -> None:
        """model_cache: where models are that were fetched, for sources that are no local folder."""
        self._model_root = model_root
        self._model_cache = model_cache
        self._device = device
        self._ranks = ranks
        self._followed: dict[str, OnePassRunner | DecoderPart] = {}
        self._meters: dict[str, PeakMeter] = {}  # of what is followed, until it has been weighed

    def host(self, tenant: Tenant) -> Hosted:
        """Load on every rank, warm up, measure. Rank 0 only. Raises LoadError."""
        started_at = time.perf_counter()
        self._ranks.tell(Frame("open", {f: getattr(tenant, f) for f in Tenant.__slots__}))
        mine: OnePassRunner | DecoderPart | None = None
        problem: Exception | None = None
        try:
            mine = self._open(tenant)
        except (LoadError, ValueError) as error:
            problem = error
        reports = self._ranks.reports()
        if problem is not None or mine is None:
            raise problem or LoadError(f"model {tenant.source}: nothing was loaded")
        if details := [str(r.fields["detail"]) for r in reports if r.fields["detail"]]:
            raise LoadError(details[0])
        weights = [parameter_bytes(mine.model), *(int(r.fields["parameter_bytes"]) for r in reports)]  # by rank
        meter = PeakMeter(self._device)
        hosted = self._wrap(tenant, mine)
        warm_up(hosted)
        if hosted.generation is not None and hosted.engine is not None and not hosted.generation.packs():
            hosted.engine.scheduler.pass_tokens = 0
        if self._ranks.layers is None:
            hosted.memory_bytes = max(weights) + _peak_bytes(mine, meter)
        else:
            hosted.stage_bytes = self._weigh(tenant.replica, weights[0] + _peak_bytes(mine, meter))
            hosted.memory_bytes = hosted.stage_bytes[0]
        hosted.load_s = time.perf_counter() - started_at
        return hosted

    def _weigh(self, replica: str, mine: int) -> tuple[int, ...]:
        """Of a chain: bytes per device of each stage, whose ranks have their own layers and caches. (stages,)"""
        self._ranks.tell(Frame("weigh", {"replica": replica}))
        by_rank = [mine, *(int(r.fields["memory_bytes"]) for r in self._ranks.reports())]
        stages = zip(self._ranks.firsts, self._ranks.tps, strict=True)
        return tuple(max(by_rank[first : first + ranks]) for first, ranks in stages)

    def close(self, replica: str) -> None:
        """Forget a tenant on the other ranks; rank 0's own is freed with its `Hosted`."""
        self._ranks.tell(Frame("close", {"replica": replica}))

    def tune(self, hosted: Hosted, batch: int, frames: int) -> None:
        """Change the batch limits of a tenant in place."""
        hosted.tenant = replace(hosted.tenant, batch=batch, frames=frames)
        runner, engine = hosted.generation, hosted.engine
        if runner is not None and engine is not None:
            engine.scheduler.batch = batch
            before = _cache_bytes(runner.part)
            num_blocks = engine.scheduler.resize(_cache_blocks(hosted.tenant, runner))
            runner.resize(num_blocks, kept=engine.scheduler.pool.highest_taken)
            hosted.memory_bytes += _cache_bytes(runner.part) - before

    def follow(self) -> None:
        """Ranks other than 0: do what rank 0 tells until it says stop."""
        while True:
            order = self._ranks.hear()
            if order.type == "stop":
                return
            if order.type == "open":
                self._ranks.report(self._opened(order.fields))
                continue
            replica = str(order.fields["replica"])
            if order.type == "close":
                self._followed.pop(replica, None)  # absent where it could not be opened
                self._meters.pop(replica, None)
                continue
            held = self._followed[replica]
            if order.type == "weigh":
                num_bytes = parameter_bytes(held.model) + _peak_bytes(held, self._meters.pop(replica))
                self._ranks.report(Frame("weighed", {"memory_bytes": num_bytes}))
            elif isinstance(held, DecoderPart) and order.type == "resize":
                held.resize(int(order.fields["blocks"]))
            elif isinstance(held, DecoderPart) and order.type == "step":
                held.follow(Step.from_fields(order.fields))
            elif isinstance(held, OnePassRunner) and order.type == "pass":
                try:
                    held.run_joined({t.name: to_array(t) for t in order.tensors})
                except Exception:  # rank 0 meets the same error in the same pass and answers it
                    traceback.print_exc(file=sys.stderr)
            else:
                raise ValueError(f"order {order.type}: expected one that {replica} understands")

    def _opened(self, fields: Mapping[str, Any]) -> Frame:
        try:
            tenant = Tenant.from_fields(fields)
            made = self._open(tenant)
        except (LoadError, ValueError) as error:
            where = f"stage {self._ranks.stage}" if self._ranks.layers is not None else f"rank {self._ranks.rank}"
            return Frame("opened", {"detail": f"{where}: {error}", "parameter_bytes": 0})
        self._followed[tenant.replica] = made
        self._meters[tenant.replica] = PeakMeter(self._device)
        return Frame("opened", {"detail": "", "parameter_bytes": parameter_bytes(made.model)})

    def _place(self, source: str) -> str:
        """The source itself, or the folder that was fetched for it."""
        if self._model_cache is None or local_folder(source, self._model_root) is not None:
            return source
        folder = fetched_folder(self._model_cache, source)
        return str(folder) if folder is not None else source

    def _open(self, tenant: Tenant) -> OnePassRunner | DecoderPart:
        source = self._place(tenant.source)
        if tenant.task == GENERATION:
            return open_decoder(source, self._model_root, self._device, self._ranks)
        return open_one_pass(
            tenant.task,
            source,
            self._model_root,
            self._device,
            self._ranks,
            prompt_tokens=tenant.prompt_tokens,
        )

    def _wrap(self, tenant: Tenant, mine: OnePassRunner | DecoderPart) -> Hosted:
        if isinstance(mine, OnePassRunner):
            if self._ranks.world > 1:

                def announce(joined: Mapping[str, Array]) -> None:
                    tensors = [from_array(name, array) for name, array in joined.items()]
                    self._ranks.tell(Frame("pass", {"replica": tenant.replica}, tensors))

                mine.announce = announce
            return Hosted(tenant, one_pass=mine)
        runner = GenerationRunner(
            tenant.replica, mine, self._place(tenant.source), self._model_root, output_tokens=tenant.output_tokens
        )
        pool = BlockPool(_cache_blocks(tenant, runner))
        runner.resize(pool.num_blocks)
        engine = Engine(runner, Scheduler(tenant.batch, pool, runner.depth), time.perf_counter)
        return Hosted(tenant, generation=runner, engine=engine)


def _peak_bytes(part: OnePassRunner | DecoderPart, meter: PeakMeter) -> int:
    """Beside its weights, the most that a rank's part of a tenant has held.

    What came from memory that this process had used once before, the meter does not see: a cache is counted.
    """
    return max(meter.peak_bytes(), _cache_bytes(part))


def _cache_bytes(part: OnePassRunner | DecoderPart) -> int:
    cache = part.cache if isinstance(part, DecoderPart) else None
    return cache.num_bytes if cache is not None else 0


def _cache_blocks(tenant: Tenant, runner: GenerationRunner) -> int:
    return cache_blocks(
        sequences=tenant.batch * runner.depth,
        usual_tokens=tenant.prompt_tokens + tenant.output_tokens,
        max_length=runner.max_length,
    )


def warm_up(hosted: Hosted) -> None:
    """One full batch, so that the first request does not pay for lazy initialization."""
    if hosted.one_pass is not None:
        answers = hosted.one_pass.run([hosted.one_pass.example(hosted.tenant.rows)])
        if answers[0].code:
            raise LoadError(f"model {hosted.tenant.source}: warm-up failed: {answers[0].message}")
    if hosted.generation is not None:
        tenant, longest = hosted.tenant, hosted.generation.max_length
        prompt = min(max(1, tenant.prompt_tokens), longest - 1)
        last = min(prompt + max(1, tenant.output_tokens), longest) - 1
        run_steps(hosted.generation, 1, prompt, 0)
        run_steps(hosted.generation, tenant.batch, 1, last)


def run_steps(runner: GenerationRunner, batch: int, width: int, start: int) -> float:
    """Run one synthetic step per group through all stages; mean seconds per step. The engine must be idle."""
    steps = runner.measured_steps(batch, width, start)
    started_at = time.perf_counter()
    under_way = [runner.launch(step) for step in steps]
    for logits in under_way:
        runner.land(batch, logits)
    return (time.perf_counter() - started_at) / len(steps)
