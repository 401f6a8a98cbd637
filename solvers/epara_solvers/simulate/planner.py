"""A planner that refines what another one finds, within the same time limit."""

from __future__ import annotations

from dataclasses import replace

from epara_opt.control.ports import Planner
from epara_opt.errors import InputError, Violation
from epara_opt.plan import Plan
from epara_opt.problem import PlacementProblem
from epara_solvers.simulate.refine import Refinement, refined

LEAST_PART = 0.2  # of the time limit stays with the planner


class RefiningPlanner:
    """`refine_s` of the time limit, at most four fifths of it, go to simulated arrivals drawn from the demand."""

    def __init__(self, planner: Planner, *, refine_s: float, max_steps: int | None = None) -> None:
        if not refine_s > 0:
            raise InputError(Violation(path="refine_s", law="expected > 0", value=str(refine_s)))
        self._planner, self._refine_s, self._max_steps = planner, refine_s, max_steps

    @property
    def name(self) -> str:
        return self._planner.name

    def plan(
        self, problem: PlacementProblem, *, generation: int, time_limit_s: float, in_force: Plan | None = None
    ) -> Plan:
        refine_s = min(self._refine_s, (1.0 - LEAST_PART) * time_limit_s)
        left_s = time_limit_s - refine_s
        made = self._planner.plan(problem, generation=generation, time_limit_s=left_s, in_force=in_force)
        refinement = Refinement(time_limit_s=refine_s, max_steps=self._max_steps, seed=generation)
        better = refined(made, problem, refinement)
        return replace(better, generation=made.generation)
