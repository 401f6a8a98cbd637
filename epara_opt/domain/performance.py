"""What a profile means for a service: response time, rate and memory of one replica. One home for these rules.

With L = latency of one batch, all times in ms:

- Batch services. A request that just missed a batch waits for it and then for its own: wait = L (the
  worst-case rule of Nexus, SOSP'19), so response = accumulate + wait + L. Accumulate = (frames - 1) / fps is
  the time until the last frame of a multi-frame batch has come. Rate = items / interval.
- Generation, continuous batching over b slots, prompt P, output O tokens: a request sees the prefills of all
  slots and O steps: e2e = b prefill(P) + O step(b), rate = pp b / e2e; it joins at the next step boundary:
  wait = max(prefill, step). First token = wait + prefill. Time per output token = (e2e - prefill) / O.
- Company (multi-task sharing). Each non-preemptible piece of ours may wait for one piece (quantum) of every
  other tenant of the group: round robin at batch boundaries. Shares of time are the program's choice.

These bounds are fluid (averages and worst single waits); burstiness is met by `max_utilization`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from epara_opt.domain.parallel import ParallelConfig
from epara_opt.domain.profile import Profile
from epara_opt.domain.service import Service


@dataclass(frozen=True, slots=True, kw_only=True)
class Performance:
    """One replica of a service in one configuration on one device type, alone on its group."""

    service: str
    device_type: str
    config: ParallelConfig
    response_ms: float  # compared with the service's deadline_ms less the network's time
    batch_ms: float  # one batch; the whole request for generation
    tpot_ms: float  # time per output token; 0 unless generation
    quantum_ms: float  # the longest piece that others must wait for
    num_pieces: int  # of ours before the response is out, each of which may wait for others
    work_per_s: float  # in the service's unit of work, at full share and full utilization
    memory_bytes: int  # per device
    load_s: float

    def response_in_company_ms(self, others_quantum_ms: float) -> float:
        """Response time when every piece waits for `others_quantum_ms` of other tenants first."""
        return self.response_ms + (1 + self.num_pieces) * others_quantum_ms

    def tpot_in_company_ms(self, others_quantum_ms: float) -> float:
        return self.tpot_ms + others_quantum_ms if self.tpot_ms else 0.0


def evaluate(service: Service, profile: Profile, config: ParallelConfig) -> Performance:
    """Apply the rules above. Raises InputError naming the missing point outside the measured hull."""
    memory_bytes = math.ceil(profile.memory_bytes.at(config.items))
    if profile.generates:
        prompt, output = service.request.prompt_tokens, service.request.output_tokens
        prefill_ms = profile.prefill_ms.at(prompt)
        step_ms = profile.decode_step_ms.at(config.batch)
        e2e_ms = config.batch * prefill_ms + output * step_ms
        wait_ms = max(prefill_ms, step_ms)
        by_token = service.ttft_ms is not None
        return Performance(
            service=service.name,
            device_type=profile.device_type,
            config=config,
            response_ms=wait_ms + (prefill_ms if by_token else e2e_ms),
            batch_ms=e2e_ms,
            tpot_ms=(e2e_ms - prefill_ms) / output,
            quantum_ms=wait_ms,
            num_pieces=1 if by_token else 1 + output,
            work_per_s=1000.0 * profile.pp * config.batch / e2e_ms / service.events_per_work,
            memory_bytes=memory_bytes,
            load_s=profile.load_s,
        )
    batch_ms = profile.latency_ms.at(config.items)
    accumulate_ms = 1000.0 * (config.frames - 1) / service.fps if service.fps else 0.0
    return Performance(
        service=service.name,
        device_type=profile.device_type,
        config=config,
        response_ms=accumulate_ms + 2.0 * batch_ms,
        batch_ms=batch_ms,
        tpot_ms=0.0,
        quantum_ms=batch_ms,
        num_pieces=1,
        work_per_s=1000.0 * config.items / profile.interval_ms.at(config.items) / service.events_per_work,
        memory_bytes=memory_bytes,
        load_s=profile.load_s,
    )


FRAME_CHOICES = (1, 2, 4, 8)


def configurations(service: Service, profile: Profile) -> tuple[ParallelConfig, ...]:
    """Every configuration of this shape that the profile can speak about."""
    points = profile.batch_points()
    if not service.is_stream:
        return tuple(ParallelConfig(profile.tp, profile.pp, b) for b in points)
    inside = set(points)
    return tuple(ParallelConfig(profile.tp, profile.pp, b, f) for f in FRAME_CHOICES for b in points if b * f in inside)
