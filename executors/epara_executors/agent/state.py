"""What an executor reports of itself: to planners (WatchState) and to whoever scrapes it (`metrics`).

Counters and histograms are kept where things happen. Rates and shares come from a look at them once a second, and
energy is read in a thread then, so that a report costs the event loop a walk over replicas and nothing else.
"""

from __future__ import annotations

import asyncio
import time

from epara_executors.agent.energy import EnergyReader
from epara_executors.agent.executor import Executor
from epara_executors.agent.file_plane import FilePlane
from epara_executors.agent.group import DeviceGroup
from epara_executors.agent.logistics import Logistics
from epara_executors.agent.replica import Replica
from epara_executors.agent.stages import HeldStages
from epara_executors.agent.window import Window
from epara_opt.control.ports import DeviceObservation, ExecutorState, ReplicaObservation, ServiceObservation

LOOK_EVERY_S = 1.0


class StateReader:
    """Of one executor, on its event loop. `run` keeps rates and energy fresh until cancelled."""

    def __init__(
        self,
        executor: Executor,
        *,
        energy: EnergyReader | None = None,
        logistics: Logistics | None = None,
        files: FilePlane | None = None,  # where files are given to peers
    ) -> None:
        self._executor = executor
        self._logistics = logistics
        self._files = files
        self._energy = energy
        self._window = Window()
        self._devices: tuple[DeviceObservation, ...] = ()

    async def run(self) -> None:
        """Look at the counters every LOOK_EVERY_S."""
        loop = asyncio.get_running_loop()
        while True:
            self.look(loop.time())
            if self._energy is not None:
                self._devices = tuple(await asyncio.to_thread(self._energy.read))
            await asyncio.sleep(LOOK_EVERY_S)

    def look(self, now: float) -> None:
        """Take the counters that rates come from. now: of the event loop."""
        counts = {f"arrived at service {n}": float(c.arrived) for n, c in self._executor.counters.items()}
        for group in self._executor.groups.values():
            for name, r in group.replicas.items():
                counts[f"arrived at replica {name}"] = float(r.arrived)
                counts[f"busy {name}"] = r.busy_s
        self._window.look(now, counts)

    def state(
        self, *, now: float, with_plan: bool = False, with_histograms: bool = False, with_recent: bool = True
    ) -> ExecutorState:
        """now: of the event loop. with_recent: latencies of the last window too, which must be sorted for it."""
        executor = self._executor
        committed = executor.committed
        live = {t.replica for g in committed.groups for t in g.tenants} if committed else set[str]()
        return ExecutorState(
            server=executor.server,
            incarnation=executor.incarnation,
            epoch=executor.seen.epoch,
            generation=executor.generation,
            at=time.time(),
            services=self._services(now, with_histograms=with_histograms, with_recent=with_recent),
            replicas=(
                *(
                    self._replica(name, group, r, live=live, with_histograms=with_histograms)
                    for name, group in sorted(executor.groups.items())
                    for r in group.replicas.values()
                ),
                *(o for _, stages in sorted(executor.stages.items()) for o in _stages(stages)),
            ),
            plan_json=committed.plan_json if with_plan and committed else "",
            devices=self._devices,
            draining=executor.draining,
            fetches=self._logistics.observations() if self._logistics is not None else (),
            model_bytes_received=self._logistics.received_bytes if self._logistics is not None else 0,
            model_bytes_sent=self._files.sent_bytes if self._files is not None else 0,
        )

    def _services(self, now: float, *, with_histograms: bool, with_recent: bool) -> tuple[ServiceObservation, ...]:
        found: list[ServiceObservation] = []
        for name, counters in sorted(self._executor.counters.items()):
            routing = self._executor.routing.get(name)
            found.append(
                counters.observation(
                    at=now,
                    streams=routing.num_streams(now) if routing else 0,
                    arrived_per_s=self._window.per_s(f"arrived at service {name}"),
                    with_histogram=with_histograms,
                    with_recent=with_recent,
                )
            )
        return tuple(found)

    def _replica(
        self, name: str, group: DeviceGroup, r: Replica, *, live: set[str], with_histograms: bool
    ) -> ReplicaObservation:
        replica = r.spec.replica
        state = group.state_of(r)
        return ReplicaObservation(
            replica=replica,
            group=name,
            service=r.spec.service,
            state="live" if state == "ready" and replica in live else state,
            queued=group.queued(r),
            served=r.served,
            busy_s=r.busy_s,
            mean_batch=r.rows_done / r.batches_done if r.batches_done else 0.0,
            batch_ms=r.batch_s.mean_s * 1000.0,
            detail=group.detail,
            waiting=len(r.queue),
            arrived=r.arrived,
            arrived_per_s=self._window.per_s(f"arrived at replica {replica}"),
            busy_share=min(1.0, self._window.per_s(f"busy {replica}")),
            memory_bytes=r.loaded.memory_bytes if r.loaded is not None else 0,
            restarts=group.num_restarts,
            batch_times=r.meter.batch_times(),
            histograms=r.meter.histograms() if with_histograms else None,
            stages=group.spec.stages_here,
            num_stages=len(group.spec.stages),
        )


def _stages(held: HeldStages) -> list[ReplicaObservation]:
    """Stages of a chain led elsewhere: what they do is counted at its head."""
    state = "live" if held.state == "ready" and held.persistent else held.state
    return [
        ReplicaObservation(
            replica=t.replica,
            group=held.spec.group,
            service=t.service,
            state=state,
            queued=0,
            served=0,
            busy_s=0.0,
            mean_batch=0.0,
            batch_ms=0.0,
            detail=held.detail,
            memory_bytes=held.memory_bytes,
            restarts=max(0, held.num_runs - 1),
            stages=held.spec.stages_here,
            num_stages=len(held.spec.stages),
        )
        for t in held.spec.tenants
    ]
