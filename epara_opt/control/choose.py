"""What to bring into force: a new plan, the old one with other routes, or nothing.

A plan replaces the one in force only if it is better by a margin that covers what the change costs; otherwise routes
alone are adapted where that gains, or nothing is touched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from epara_opt.control.diff import actions
from epara_opt.control.events import EventKind
from epara_opt.control.ports import Planner
from epara_opt.control.regroup import regrouped
from epara_opt.control.reroute import rerouted
from epara_opt.control.routing import standing
from epara_opt.control.settings import CycleSettings
from epara_opt.control.transition import same_content, stages
from epara_opt.domain.topology import Topology
from epara_opt.errors import EparaError, FleetError, PlanRejected
from epara_opt.plan import ActionKind, Plan
from epara_opt.problem import PlacementProblem
from epara_opt.verify import verify


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What to bring into force, and why. `plan` None: nothing."""

    plan: Plan | None
    outcome: str  # applied | rerouted | kept
    planned: Plan | None = None  # what the planner made, for the record
    error: str = ""  # of the planner, where its plan could not be had
    meanwhile: Plan | None = None  # routes for the replicas that run, worth having while `plan` waits for its models


class Chooser:
    """Asks the planner, checks what it says, weighs it against what stands. Keeps nothing between two choices."""

    def __init__(
        self,
        topology: Topology,
        planner: Planner,
        settings: CycleSettings,
        *,
        tell: Callable[..., None],
    ) -> None:
        """tell: of (kind, message, **fields), as the cycle tells events."""
        self._topology = topology
        self._planner = planner
        self._settings = settings
        self._tell = tell

    def choose(
        self,
        problem: PlacementProblem,
        in_force: Plan | None,
        *,
        generation: int,
        down: frozenset[str],
        unsettled: frozenset[str],
    ) -> Choice:
        """The planner's plan, the plan in force with other routes, or nothing.

        generation: of whatever is chosen. unsettled: servers that answer and may not serve the plan in force.
        """
        standing_plan = standing(in_force, self._topology, down)
        planned, error = self._planned(problem, generation, standing_plan, down)
        if standing_plan is None:
            if planned is None:
                self._tell(EventKind.FAILED, error)
            return Choice(plan=planned, outcome="applied" if planned else "failed", planned=planned, error=error)
        bound = planned.dual_bound if planned else None
        as_is = rerouted(standing_plan, problem, generation=generation, dual_bound=bound, fill=False)
        adapted = rerouted(standing_plan, problem, generation=generation, dual_bound=bound)
        usable = self._passes(adapted, problem)
        keep_value = adapted.objective if usable else 0.0
        touched = bool(unsettled) or standing_plan is not in_force
        gains = adapted.objective > as_is.objective * (1.0 + self._settings.min_gain) + 1e-9
        if planned is not None and self._worth(planned, standing_plan, keep_value, problem, down):
            meanwhile = adapted if usable and (touched or gains) else None
            return Choice(plan=planned, outcome="applied", planned=planned, meanwhile=meanwhile)
        if usable and (touched or gains):
            return Choice(plan=adapted, outcome="rerouted", planned=planned, error=error)
        if touched:  # not worth a new plan, not checkable as it is: say again what is in force
            return Choice(
                plan=replace(standing_plan, generation=generation), outcome="rerouted", planned=planned, error=error
            )
        outcome = "kept" if planned is not None else "failed"
        self._tell(
            EventKind.KEPT,
            f"plan {standing_plan.generation} stays: worth {keep_value:.6g}"
            + (f", a new one {planned.objective:.6g}" if planned else f"; {error}"),
            generation=standing_plan.generation,
        )
        return Choice(plan=None, outcome=outcome, planned=planned, error=error)

    def _planned(
        self, problem: PlacementProblem, generation: int, standing_plan: Plan | None, down: frozenset[str]
    ) -> tuple[Plan | None, str]:
        """The planner's plan once checked, or why there is none."""
        self._tell(EventKind.PLANNING, f"{self._planner.name}: {len(problem.demand)} demands", generation=generation)
        try:
            plan = self._planner.plan(
                problem, generation=generation, time_limit_s=self._settings.time_limit_s, in_force=standing_plan
            )
            plan = regrouped(plan, standing_plan, problem)
            plan = plan.with_actions(actions(standing_plan, plan, self._topology, problem.catalogue, down=down))
            verify(plan, self._topology, problem.catalogue, problem=problem)
        except FleetError:
            raise
        except EparaError as e:
            return None, f"{self._planner.name}: {e}"
        except (OSError, ArithmeticError, LookupError, TypeError, ValueError, RuntimeError, MemoryError) as e:
            # The boundary to planners and vendors: a full disk or a bug of theirs costs this cycle, not the loop.
            return None, f"{self._planner.name} failed: {type(e).__name__}: {e}"
        self._tell(
            EventKind.PLANNED,
            f"plan {generation}: objective {plan.objective:.6g}, {plan.stop.value}",
            generation=generation,
            objective=plan.objective,
            dual_bound=plan.dual_bound,
            gap=plan.gap,
            stop=plan.stop.value,
            solver=plan.solver,
        )
        return plan, ""

    def _passes(self, plan: Plan, problem: PlacementProblem) -> bool:
        try:
            verify(plan, self._topology, problem.catalogue, problem=problem)
        except PlanRejected:
            return False
        return True

    def _worth(
        self, plan: Plan, standing_plan: Plan, keep_value: float, problem: PlacementProblem, down: frozenset[str]
    ) -> bool:
        """Better than what stands by `min_gain`, after the price of loading (in the objective) and of making room."""
        if same_content(standing_plan, plan):
            return False
        steps = stages(standing_plan, plan, self._topology, problem.catalogue, down=down)
        lost = 0.0
        for step in steps:
            if step.kind is ActionKind.COMMIT and step.target is not plan:
                between = rerouted(step.target, problem, generation=plan.generation)
                lost = max(0.0, keep_value - between.predicted.goodput)
        loading_s = max((r.load_s for r in plan.replicas), default=0.0)
        price = lost * min(1.0, loading_s / self._settings.rules.horizon_s)
        return plan.objective - price > keep_value * (1.0 + self._settings.min_gain) + 1e-9
