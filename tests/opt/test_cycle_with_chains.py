"""The control cycle over an edge whose only service runs over two servers or not at all, with failures anywhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from epara_solvers.planners.greedy import GreedyPlanner

from epara_opt.control.cycle import ControlCycle
from epara_opt.control.fakes import FakeClock, FakeFleet
from epara_opt.control.settings import CycleSettings
from epara_opt.control.store import Store
from epara_opt.domain.service import Task
from epara_opt.errors import ExecutorRefused, ExecutorUnreachable


class Died(BaseException):
    """The planner's process ends here."""


class Edge:
    """Three servers in a row, of which any two neighbours can hold the model (see `Row`)."""

    def __init__(self, path: Path, row: Any) -> None:
        self.rules, self.catalogue = row.rules, row.catalogue
        big = row.topology.services["big"]
        shape = replace(big.request, prompt_tokens=1, output_tokens=1)
        text = replace(big, model=replace(big.model, task=Task.TEXT_GENERATION), request=shape)
        self.topology = replace(row.topology, services={"big": text})
        self.clock = FakeClock()
        self.fleet = FakeFleet(self.topology, self.catalogue, self.clock)
        self.path = path
        self.boot()

    def boot(self) -> None:
        self.store = Store(self.path)
        settings = CycleSettings(max_parallel=1, rules=self.rules)
        self.cycle = ControlCycle(
            self.topology, self.catalogue, GreedyPlanner(), self.fleet, self.store, self.clock, settings=settings
        )
        self.cycle.start()

    def reboot(self, *, lose_store: bool = False) -> None:
        self.store.close()
        for file in self.path.parent.glob(self.path.name + "*") if lose_store else ():
            file.unlink()
        self.boot()

    def second(self) -> None:
        self.clock.advance(1.0)
        for d in self.topology.demand:
            self.fleet.offer(d.service, d.origin, int(d.offered))
        self.cycle.observe()

    def held(self) -> dict[str, set[str]]:
        """What is loaded, live or not, by server."""
        return {n: {t.replica for g in e.loaded.values() for t in g.values()} for n, e in self.fleet.executors.items()}

    def in_line(self) -> bool:
        """Every server holds its parts of the plan in force, live, and nothing else."""
        plan = self.cycle.in_force
        replicas = plan.replicas if plan else ()
        wanted = {n: {r.id for r in replicas if n in r.servers} for n in self.fleet.executors}
        live = {n: e.live() for n, e in self.fleet.executors.items()}
        return wanted == self.held() == live


@pytest.fixture
def edge(tmp_path: Path, make: Any) -> Edge:
    return Edge(tmp_path / "planner.db", make.row_edge())


@pytest.mark.parametrize("lost", ["a", "b"])
def test_a_lost_server_ends_its_chain_everywhere_and_another_comes(edge: Edge, lost: str) -> None:
    assert edge.cycle.step().outcome == "applied"
    (first,) = edge.cycle.in_force.replicas if edge.cycle.in_force else ()
    assert set(first.servers) == {"a", "b"}
    edge.fleet.crash(lost)
    edge.second()
    edge.second()
    edge.cycle.step()
    assert not any(first.id in held for n, held in edge.held().items() if n != lost)
    edge.fleet.restart(lost)  # it still has its part on its disk
    edge.second()
    edge.cycle.step()
    edge.second()
    edge.cycle.step()
    assert edge.in_line()
    assert edge.cycle.in_force is not None
    assert len(edge.cycle.in_force.replicas) == 1
    assert edge.fleet.broken_laws == []


@pytest.mark.parametrize("seed", range(10))
def test_random_crashes_failures_and_restarts_leave_no_half_of_a_chain(edge: Edge, seed: int) -> None:
    rng = Random(seed)

    def fault(server: str) -> Any:
        what = rng.randrange(4)
        if what == 3:
            raise Died
        if what == 2:
            edge.fleet.crash(server)
            return None
        return (ExecutorRefused if what else ExecutorUnreachable)(server, "not now")

    for _ in range(15):
        name, what = rng.choice("abc"), rng.randrange(5)
        e = edge.fleet.executors[name]
        if what == 0 and e.up:
            edge.fleet.crash(name)
        elif what == 1 and not e.up:
            edge.fleet.restart(name, blank=rng.random() < 0.3)
        elif what == 2:
            edge.fleet.fail_at(rng.randrange(6), fault)
        elif what == 3:
            edge.reboot(lose_store=rng.random() < 0.3)
        for _ in range(rng.randrange(1, 4)):
            edge.second()
        try:
            edge.cycle.step()
        except Died:
            edge.reboot()
    edge.fleet._faults.clear()  # pyright: ignore[reportPrivateUsage]
    for name, e in edge.fleet.executors.items():
        if not e.up:
            edge.fleet.restart(name)
    for _ in range(6):
        edge.second()
        edge.cycle.step()
    assert edge.in_line()
    assert edge.cycle.in_force is not None
    assert len(edge.cycle.in_force.replicas) == 1
    assert edge.fleet.broken_laws == []
