"""Refinement: neighbours of a plan, scored by simulating arrivals, kept only if arrivals not searched on agree.

A neighbour gives one group another content of as many devices, lets two groups of a kind exchange what they hold, or
routes one replica's work anew; chains over servers stay as they are. Routes to what stands are kept, what became free
is filled (`control.routing`). What would lose more than LOSS of the plan's objective by averages is passed over. A
neighbour is accepted if it delivers more of the arrivals that are searched, and no less of a second part that the
search does not choose by. At the end a third part, held out, decides between the refined plan and the one it came from.

Every plan accepted has passed the checker. The fluid program's bound holds for every placement under its rules, so it
stays; the objective is what the new routes earn by it, and a plan whose objective fell for the sake of bursts says so.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from epara_opt.contents import Content
from epara_opt.control.reroute import complete
from epara_opt.control.routing import RouteBook
from epara_opt.errors import InputError, PlanRejected, Violation
from epara_opt.plan import Plan, Replica, Route, Stop
from epara_opt.problem import PlacementProblem
from epara_opt.verify import verify
from epara_solvers.simulate.arrivals import Arrivals, drawn
from epara_solvers.simulate.outcome import simulate_plan

T = TypeVar("T")

LEAST_S, MOST_S = 10.0, 1800.0  # of a part that is drawn
LOSS = 0.02  # of the objective: neighbours that lose more on average are not simulated
PARTS = (0.5, 0.75)  # of a trace: searched on, then checked on, then held out
BETTER = 1e-6  # relative: less is no gain
PARTS_NAMED = ("searched", "checked", "held out")


@dataclass(frozen=True, slots=True, kw_only=True)
class Refinement:
    """How long to look, and at what."""

    time_limit_s: float
    arrivals: Arrivals | None = None  # recorded; None: drawn from the demand's rates and CVs
    max_steps: int | None = None  # neighbours to look at, so that runs can be repeated; None: until the time is up
    drawn: int = 60_000  # arrivals in each part, where none are recorded: some 50 ms to simulate
    seed: int = 1
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        if not self.time_limit_s > 0:
            law = "expected > 0"
            raise InputError(Violation(path="refine.time_limit_s", law=law, value=str(self.time_limit_s)))


def refined(plan: Plan, problem: PlacementProblem, refinement: Refinement) -> Plan:
    """The plan, or a neighbour of neighbours that delivers more on held-out arrivals; its notes say which."""
    if not plan.routes:
        return plan
    started = refinement.clock()
    searched, checked, held_out = parts_of(problem, refinement)
    search = _Search(problem, np.random.default_rng(refinement.seed))
    best, steps, kept = plan, 0, 0
    scores = [simulate_plan(plan, problem, part).goodput for part in (searched, checked)]
    while refinement.clock() - started < refinement.time_limit_s and (
        refinement.max_steps is None or steps < refinement.max_steps
    ):
        steps += 1
        near = search.neighbour(best)
        if near is None or near.objective < (1.0 - LOSS) * plan.objective:
            continue
        first = simulate_plan(near, problem, searched).goodput
        if first <= scores[0] * (1.0 + BETTER) or not is_valid(near, problem):
            continue
        second = simulate_plan(near, problem, checked).goodput
        if second >= scores[1]:
            best, scores, kept = near, [first, second], kept + 1
    before = simulate_plan(plan, problem, held_out).goodput
    after = simulate_plan(best, problem, held_out).goodput
    wall_s = plan.wall_s + refinement.clock() - started
    if after <= before * (1.0 + BETTER):
        note = f"refinement found nothing better on held-out arrivals ({before:.6g}) in {steps} neighbours"
        return replace(plan, wall_s=wall_s, notes=(*plan.notes, note))
    notes = [f"simulated on held-out arrivals: {before:.6g} -> {after:.6g}; {kept} of {steps} neighbours accepted"]
    if best.objective < plan.objective * (1.0 - BETTER):
        notes.append(f"refined for bursts: the fluid objective fell from {plan.objective:.6g} to {best.objective:.6g}")
    return replace(
        best,
        wall_s=wall_s,
        stop=plan.stop if best.objective >= plan.objective else Stop.HEURISTIC,
        notes=(*plan.notes, *notes),
    )


def parts_of(problem: PlacementProblem, refinement: Refinement) -> tuple[Arrivals, Arrivals, Arrivals]:
    """What is searched on, checked on and held out: parts of the record in time, or days drawn independently."""
    if refinement.arrivals is not None:
        whole = refinement.arrivals
        cuts = [0.0, *(part * whole.duration_s for part in PARTS), whole.duration_s]
        found = [whole.window(a, b) for a, b in itertools.pairwise(cuts)]
        for name, part in zip(PARTS_NAMED, found, strict=True):
            if not (part.stream < 0).any() and not len(part.stream_entry):
                raise InputError(Violation(path="trace", law=f"expected requests in the part {name}", value="none"))
    else:
        events_per_s = sum(d.offered * problem.service(d.service).events_per_work for d in problem.demand)
        duration_s = min(MOST_S, max(LEAST_S, refinement.drawn / events_per_s))
        rngs = [np.random.default_rng((refinement.seed, i)) for i in range(len(PARTS_NAMED))]
        found = [drawn(problem.demand, problem.topology.services, duration_s=duration_s, rng=r) for r in rngs]
    return found[0], found[1], found[2]


def is_valid(plan: Plan, problem: PlacementProblem) -> bool:
    """Whether the checker accepts it."""
    try:
        verify(plan, problem.topology, problem.catalogue, problem=problem)
    except PlanRejected:
        return False
    return True


class _Search:
    """Draws neighbours. Keeps nothing but what the problem says and its rng."""

    def __init__(self, problem: PlacementProblem, rng: np.random.Generator) -> None:
        self._problem, self._rng = problem, rng
        self._loaded = {(r.group, s) for r in problem.residents for s in r.services}

    def neighbour(self, plan: Plan) -> Plan | None:
        """A plan one step away; None where the step drawn leads nowhere."""
        groups: dict[str, list[Replica]] = {}
        for r in plan.replicas:
            groups.setdefault(r.group, []).append(r)
        name = self._one_of(sorted(groups))
        step = self._rng.random()
        if step < 0.6:
            changed = self._other_content(groups[name])
        elif step < 0.85:
            changed = self._exchange(groups, name)
        else:
            return self._routed(plan, list(plan.replicas), emptied={self._one_of(groups[name]).id})
        if changed is None:
            return None
        gone = {r.group for r in changed}
        kept = [r for r in plan.replicas if r.group not in gone]
        return self._routed(plan, kept + changed, emptied={r.id for r in changed})

    def _one_of(self, items: Sequence[T]) -> T:
        return items[int(self._rng.integers(len(items)))]

    def _other_content(self, members: Sequence[Replica]) -> list[Replica] | None:
        """The group with another content; mostly one that shares a service with what it holds."""
        place = members[0]
        if place.stages:
            return None
        held = {(r.service, r.batch, r.frames) for r in members}
        services = frozenset(r.service for r in members)
        near_only = self._rng.random() < 0.5
        options = [
            c
            for c in self._problem.contents.get(place.device_type, ())
            if (c.tp, c.pp) == (place.tp, place.pp)
            and {(t.service, t.config.batch, t.config.frames) for t in c.tenants} != held
            and (not near_only or services & c.services)
        ]
        if not options:
            return None
        content = self._one_of(options)
        return self._holding(content, place) if self._problem.useful_at(content, place.server) else None

    def _exchange(self, groups: dict[str, list[Replica]], name: str) -> list[Replica] | None:
        """Two groups alike in devices and shape, with each other's contents."""
        mine = groups[name]
        if mine[0].stages:
            return None
        kind = (mine[0].device_type, mine[0].tp, mine[0].pp)
        others = [
            g
            for g, rs in sorted(groups.items())
            if (rs[0].device_type, rs[0].tp, rs[0].pp) == kind and g != name and not rs[0].stages
        ]
        if not others:
            return None
        theirs = groups[self._one_of(others)]
        contents = [self._content_of(members) for members in (mine, theirs)]
        if contents[0] is None or contents[1] is None:
            return None
        places = (theirs[0], mine[0])
        if not all(self._problem.useful_at(c, p.server) for c, p in zip(contents, places, strict=True) if c):
            return None
        return [r for c, p in zip(contents, places, strict=True) if c for r in self._holding(c, p)]

    def _content_of(self, members: Sequence[Replica]) -> Content | None:
        held = {(r.service, r.batch, r.frames) for r in members}
        place = members[0]
        for c in self._problem.contents.get(place.device_type, ()):
            if (c.tp, c.pp) == (place.tp, place.pp) and held == {
                (t.service, t.config.batch, t.config.frames) for t in c.tenants
            }:
                return c
        return None

    def _holding(self, content: Content, place: Replica) -> list[Replica]:
        """The replicas of a group where `place` stands, with this content."""
        return [
            replace(
                place,
                id=f"{t.service}@{place.group}",
                service=t.service,
                batch=t.config.batch,
                frames=t.config.frames,
                share=0.0,
                capacity=0.0,
                response_ms=t.response_ms,
                memory_bytes=t.memory_bytes,
                load_s=0.0 if (place.group, t.service) in self._loaded else t.load_s,
            )
            for t in content.tenants
        ]

    def _routed(self, plan: Plan, replicas: list[Replica], *, emptied: set[str]) -> Plan:
        """Old routes to what stands, then what is free filled; groups that serve nobody are left out."""
        book = self._book(replicas, [x for x in plan.routes if x.replica not in emptied])
        served = {x.replica for x in book.routes()}
        live = {r.group for r in replicas if r.id in served}
        if any(r.group not in live for r in replicas):
            book = self._book([r for r in replicas if r.group in live], book.routes())
        made = complete(self._problem, book, generation=plan.generation, solver=plan.solver, dual_bound=plan.dual_bound)
        order = sorted(made.replicas, key=lambda r: (r.server, r.device_type, r.devices, r.service))
        return replace(
            made,
            replicas=tuple(order),
            made_at=plan.made_at,
            certificate=plan.certificate,
            edge=plan.edge,
        )

    def _book(self, replicas: Sequence[Replica], routes: Sequence[Route]) -> RouteBook:
        p = self._problem
        book = RouteBook(replicas, p.topology, p.catalogue, busy=p.busy, down=p.down)
        for x in routes:
            book.add(x.service, x.origin, x.replica, x.rate)
        book.fill(p.offered)
        return book
