"""What a chain means for a service: a model cut into slices, each a stage on tp devices of one server.

Requests enter and answers leave at the first stage's server, the head. A hop takes activations from a stage to the
next, the last takes the answer back to the head: half the round trip of its path, and its bytes at the narrowest link.
Hops between stages at one server cost nothing. The rules are those of `domain/performance.py` for a pipeline:

- Batch services. L = sum of the stages' latencies and of all hops. A request that just missed a batch waits for it:
  response = accumulate + 2 L. Rate = items / slowest, where slowest is the longest interval of a stage or transmission
  of a hop: stages and links work on different batches at a time.
- Generation, b slots in each of m batches in flight, one for each of m stages; prompt P, output O tokens. A stage is
  busy for b prefill(P) + O step(b) per batch; a hop likewise with its bytes. The tokens of a batch go round all stages
  and hops each step: loop = the sum over stages and hops. A batch takes e2e = max(loop, m x slowest), for with m
  batches in flight the slowest stage may be what they wait for; rate = m b / e2e. First token, time per token and
  waiting as for one server. A stage holds the caches of m b sequences: its memory is read at m x b.

With even stages and no hops both are what `evaluate` says of (tp, pp = m).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from epara_opt.domain.parallel import ParallelConfig
from epara_opt.domain.performance import Performance
from epara_opt.domain.profile import Profile
from epara_opt.domain.routes import Path
from epara_opt.domain.service import Service


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What a stage or a hop adds to a chain."""

    pass_ms: float  # to one batch; for generation to all its prefills and steps
    busy_ms: float  # for which it can do nothing else per batch
    prefill_ms: float = 0.0  # to one prompt
    step_ms: float = 0.0  # to one step of a batch


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainPerformance:
    whole: Performance  # device type, memory and configuration of the head's stage; pp = stages
    memory_bytes: tuple[int, ...]  # per device of each stage
    hop_bytes: tuple[float, ...]  # per unit of work on each hop, the way back last


def stage_part(service: Service, profile: Profile, config: ParallelConfig) -> Part:
    """One slice at work. Raises InputError outside the measured hull."""
    if not profile.generates:
        items = config.items
        return Part(pass_ms=profile.latency_ms.at(items), busy_ms=profile.interval_ms.at(items))
    prefill_ms = profile.prefill_ms.at(service.request.prompt_tokens)
    step_ms = profile.decode_step_ms.at(config.batch)
    busy_ms = config.batch * prefill_ms + service.request.output_tokens * step_ms
    return Part(pass_ms=busy_ms, busy_ms=busy_ms, prefill_ms=prefill_ms, step_ms=step_ms)


def stage_memory(profile: Profile, config: ParallelConfig) -> int:
    """Bytes per device of one stage of `config.pp`. Raises InputError outside the measured hull."""
    return math.ceil(profile.memory_bytes.at(config.items * (config.pp if profile.generates else 1)))


def hop_part(service: Service, path: Path, config: ParallelConfig, *, generates: bool, is_last: bool) -> Part:
    """One hop; the last brings answers back instead of activations."""
    one_way_ms = path.rtt_ms / 2.0
    shape, activation = service.request, service.model.activation_bytes or 0.0
    if not generates:
        busy_ms = path.transfer_ms(config.items * (shape.output_bytes if is_last else activation))
        return Part(pass_ms=one_way_ms + busy_ms, busy_ms=busy_ms)
    per_token = shape.output_bytes / shape.output_tokens if is_last else activation
    prefill_ms = path.transfer_ms(per_token * (1 if is_last else shape.prompt_tokens))
    step_ms = path.transfer_ms(per_token * config.batch)
    return Part(
        pass_ms=config.batch * (one_way_ms + prefill_ms) + shape.output_tokens * (one_way_ms + step_ms),
        busy_ms=config.batch * prefill_ms + shape.output_tokens * step_ms,
        prefill_ms=one_way_ms + prefill_ms,
        step_ms=one_way_ms + step_ms,
    )


def evaluate_chain(
    service: Service, slices: Sequence[Profile], config: ParallelConfig, hops: Sequence[Path]
) -> ChainPerformance:
    """Apply the rules above. slices: in order, config.pp of them; hops: from each to the next, the last to the head.

    Raises InputError outside the measured hull.
    """
    generates = slices[0].generates
    stages = [stage_part(service, p, config) for p in slices]
    ways = [
        hop_part(service, path, config, generates=generates, is_last=i == len(hops) - 1) for i, path in enumerate(hops)
    ]
    parts = [*stages, *ways]
    loop_ms, slowest_ms = sum(p.pass_ms for p in parts), max(p.busy_ms for p in parts)
    memory = tuple(stage_memory(p, config) for p in slices)
    shape, activation = service.request, service.model.activation_bytes or 0.0
    tokens = shape.prompt_tokens + shape.output_tokens if generates else 1
    inner, back = (b * service.events_per_work for b in (tokens * activation, shape.output_bytes))
    hop_bytes = (*(inner for _ in ways[:-1]), back)
    if generates:
        output = shape.output_tokens
        prefill_ms, step_ms = sum(p.prefill_ms for p in parts), sum(p.step_ms for p in parts)
        batch_ms = max(loop_ms, config.pp * slowest_ms)
        wait_ms = max(prefill_ms, step_ms)
        by_token = service.ttft_ms is not None
        response_ms = wait_ms + (prefill_ms if by_token else batch_ms)
        tpot_ms = (batch_ms - prefill_ms) / output
        quantum_ms, num_pieces = wait_ms, 1 if by_token else 1 + output
        work_per_s = 1000.0 * config.pp * config.batch / batch_ms / service.events_per_work
    else:
        accumulate_ms = 1000.0 * (config.frames - 1) / service.fps if service.fps else 0.0
        batch_ms, tpot_ms = loop_ms, 0.0
        response_ms = accumulate_ms + 2.0 * loop_ms
        quantum_ms, num_pieces = loop_ms, 1
        work_per_s = 1000.0 * config.items / slowest_ms / service.events_per_work
    return ChainPerformance(
        whole=Performance(
            service=service.name,
            device_type=slices[0].device_type,
            config=config,
            response_ms=response_ms,
            batch_ms=batch_ms,
            tpot_ms=tpot_ms,
            quantum_ms=quantum_ms,
            num_pieces=num_pieces,
            work_per_s=work_per_s,
            memory_bytes=memory[0],
            load_s=max(p.load_s for p in slices),
        ),
        memory_bytes=memory,
        hop_bytes=hop_bytes,
    )
