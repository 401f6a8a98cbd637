"""How a planner's loop runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from epara_opt.control.forecast import ForecastSettings
from epara_opt.errors import InputError, Violation
from epara_opt.problem import PlanningRules


@dataclass(frozen=True, slots=True, kw_only=True)
class CycleSettings:
    every_s: float = 30.0  # between the starts of two scheduled cycles
    time_limit_s: float = 10.0  # for the planner
    observe_every_s: float = 1.0  # between cycles, to see servers go and come
    confirm_down: int = 2  # observations in a row that must fail before a server counts as down
    apply_deadline_s: float = 120.0  # for a whole change, model loading included
    fetch_wait_s: float = 5.0  # for models to reach disks; longer ones come between cycles, and a later one goes on
    min_gain: float = 0.01  # of the objective: a change of replicas must gain more than this, beyond its price
    max_parallel: int = 16  # executors called at the same time
    learn_profiles: bool = False  # let measured batch times correct the profiles
    rules: PlanningRules = field(default_factory=PlanningRules)
    forecast: ForecastSettings = field(default_factory=ForecastSettings)

    def __post_init__(self) -> None:
        for key in ("every_s", "time_limit_s", "observe_every_s", "apply_deadline_s", "fetch_wait_s"):
            value = getattr(self, key)
            if not value > 0:
                raise InputError(Violation(path=f"cycle.{key}", law="expected > 0", value=str(value)))
        for key in ("confirm_down", "max_parallel"):
            value = getattr(self, key)
            if value < 1:
                raise InputError(Violation(path=f"cycle.{key}", law="expected >= 1", value=str(value)))
        if not self.min_gain >= 0:
            raise InputError(Violation(path="cycle.min_gain", law="expected >= 0", value=str(self.min_gain)))
