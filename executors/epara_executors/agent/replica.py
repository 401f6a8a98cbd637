"""One service on one device group as the agent sees it: its queue, its expectations, its counts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from epara_executors.agent.buckets import ReplicaMeter
from epara_executors.agent.requests import Job
from epara_executors.agent.worker_link import Loaded
from epara_opt.control.ports import TenantSpec
from epara_opt.policy.admission import Expected, batch_prior_s
from epara_opt.policy.batching import BatchRule, batch_rule

GENERATION = "text-generation"


@dataclass(slots=True)
class Replica:
    """Mutable; owned by its DeviceGroup, which alone moves jobs in and out."""

    spec: TenantSpec
    rule: BatchRule = field(init=False)
    batch_s: Expected = field(init=False)  # one batch; one whole generation
    first_s: Expected = field(init=False)  # first token of a generation
    observed_at: float = -math.inf  # when the worker last answered, by the event loop's clock
    queue: list[Job] = field(default_factory=list[Job])
    generating: int = 0  # generations in the worker
    loaded: Loaded | None = None
    arrived: int = 0
    served: int = 0
    rows_done: int = 0
    batches_done: int = 0
    busy_s: float = 0.0
    meter: ReplicaMeter = field(default_factory=ReplicaMeter)

    def __post_init__(self) -> None:
        spec = self.spec
        self.rule = batch_rule(batch=spec.batch, frames=spec.frames, fps=spec.fps)
        if self.generates:
            self.batch_s = Expected(spec.response_ms / 1000.0 if spec.tpot_ms <= 0 else self._whole_prior_s())
            self.first_s = Expected(spec.response_ms / 1000.0)
        else:
            self.batch_s = Expected(batch_prior_s(response_ms=spec.response_ms, frames=spec.frames, fps=spec.fps))
            self.first_s = self.batch_s

    @property
    def generates(self) -> bool:
        return self.spec.task == GENERATION

    def _whole_prior_s(self) -> float:
        return (self.spec.response_ms + self.spec.tpot_ms * self.spec.output_tokens) / 1000.0

    def tune(self, spec: TenantSpec) -> None:
        """Take over a changed plan's batch limits, rates and predictions; what was observed is kept."""
        self.spec = spec
        self.rule = batch_rule(batch=spec.batch, frames=spec.frames, fps=spec.fps)

    def idle_per_s(self, *, busy_share: float) -> float:
        """Work per second that could still be done on time."""
        if self.generates:
            return self.spec.work_per_s * max(0.0, 1.0 - self.generating / self.spec.batch)
        return self.spec.work_per_s * max(0.0, 1.0 - busy_share)

    def reset(self) -> None:
        """The worker is gone and with it what it was doing."""
        self.queue.clear()
        self.generating = 0
        self.loaded = None
