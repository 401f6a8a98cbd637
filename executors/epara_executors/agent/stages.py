"""This executor's stages of a chain that is led elsewhere.

They are prepared and committed as any group is, and loaded when their head calls (`RunStages`): their ranks run for as
long as that call lasts. When the head ends it, falls silent or is gone, they end, and wait for the next call.

States: waiting (for the head), loading, ready, stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable
from typing import Any

import grpc.aio

from epara_executors.agent.tenancy import changeable, load_fields
from epara_executors.agent.worker_link import LoadFailed, WorkerHandle, WorkerLauncher
from epara_executors.rpc import epara_pb2 as pb
from epara_opt.control.ports import GroupSpec

log = logging.getLogger(__name__)

BEAT_S = 1.0
SILENCE_S = 10.0  # of the other side, after which it is taken for gone
EOF: Any = grpc.aio.EOF  # pyright: ignore[reportAttributeAccessIssue]  grpc exports it and forgets to say so
_KILLED = -9


async def said(call: Any, beat: pb.StageBeat) -> bool:
    """Whether the head could be told."""
    try:
        await call.write(beat)
    except Exception:  # what grpc raises of a call that broke is not all public
        return False
    return True


async def launched(launch: Awaitable[WorkerHandle]) -> WorkerHandle:
    """The worker launched. Cancelled, what is started all the same is ended as soon as it is there."""
    task = asyncio.ensure_future(launch)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(lambda t: t.cancelled() or t.exception() or t.result().kill())
        raise


class HeldStages:
    """Of one chain. Everything runs on one event loop."""

    def __init__(self, spec: GroupSpec, *, launcher: WorkerLauncher, silence_s: float = SILENCE_S) -> None:
        """silence_s: of the head, after which it is taken for gone."""
        self.spec = spec
        self._silence_s = silence_s
        self.state = "waiting"
        self.detail = "its head has not called yet"
        self.persistent = False  # part of the committed plan
        self.memory_bytes = 0  # per device, the most of the stages here; as measured when the chain loaded
        self.num_runs = 0
        self._launcher = launcher
        self._running = asyncio.Lock()
        self._stopped = False
        self._pids: tuple[int, ...] = ()  # of the ranks here
        self._over = asyncio.Event()  # whoever runs is to end
        self._leaving = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def can_become(self, spec: GroupSpec) -> bool:
        return changeable(self.spec, self.spec.tenants, spec)

    async def serve(self, first: pb.HeadBeat, call: Any) -> None:
        """Run the ranks until the head ends its call, falls silent or is gone, or until they end. Raises LoadFailed."""
        self._over.set()  # a head that calls again has given up its earlier call, whether we know it or not
        async with self._running:
            if self._stopped:
                raise LoadFailed("unloaded")
            self._over.clear()
            self._idle.clear()
            self.state, self.detail = "loading", ""
            self.num_runs += 1
            try:
                await self._attend({**load_fields(self.spec), "rendezvous": first.rendezvous}, call)
            except LoadFailed as e:
                self.detail = str(e)
                raise
            finally:
                self.memory_bytes = 0
                self.state = "stopped" if self._stopped else "waiting"
                self._idle.set()

    async def _attend(self, fields: dict[str, Any], call: Any) -> None:
        """Ranks from launch to end, beats out and in meanwhile, until one side is over; then none of them is left."""
        born: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        running = asyncio.create_task(self._run(fields, born))
        ends = [asyncio.create_task(self._hear(call)), asyncio.create_task(self._over.wait())]
        leaving = asyncio.create_task(self._leaving.wait())
        try:
            while not running.done() and not any(e.done() for e in ends):
                if not await said(call, pb.StageBeat(pids=self._pids, leaving=leaving.done())):
                    break
                news = {f for f in (born, leaving) if not f.done()}  # told at once
                await asyncio.wait({running, *ends, *news}, timeout=BEAT_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            fell = running.done()
            self.detail = "its ranks ended" if fell else "its head's call ended"
            for task in (*ends, leaving, running):
                task.cancel()
            await asyncio.wait({running})
        status = running.result() if fell else _KILLED
        if fell:
            self.detail = f"its ranks ended with {status}"
            if status:
                log.warning("chain %s: %s", self.spec.group, self.detail)
        await said(call, pb.StageBeat(ended=True, status=status))

    async def _run(self, fields: dict[str, Any], born: asyncio.Future[None]) -> int:
        """The ranks' exit status. Cancelled: they are gone when this has ended. Raises LoadFailed."""
        handle = await launched(self._launcher.launch(fields, ""))
        self._pids = tuple(handle.pids)
        born.set_result(None)
        ended = asyncio.ensure_future(handle.wait())
        try:
            return await asyncio.shield(ended)
        finally:
            handle.kill()
            await ended
            self._pids = ()

    async def _hear(self, call: Any) -> None:
        """The head's beats, until there are no more."""
        while True:
            try:
                async with asyncio.timeout(self._silence_s):
                    beat = await call.read()
            except Exception:  # what grpc raises of a call that broke is not all public
                return
            if beat is EOF:
                return
            here = [beat.memory_bytes[i] for i in self.spec.stages_here if i < len(beat.memory_bytes)]
            self.memory_bytes = max(here, default=0)
            self.state = "ready" if beat.ready else "loading"

    def adopt(self, spec: GroupSpec) -> None:
        """`spec` is live: a batch that changed reaches the ranks through their head."""
        self.spec = spec
        self.persistent = True

    def leave(self) -> None:
        """This executor is about to leave: the head is asked to let what is in flight end, and then to end the call."""
        self._leaving.set()

    async def quiet(self) -> None:
        """Until no ranks run here."""
        await self._idle.wait()

    async def stop(self, *, patience_s: float = 0.0) -> None:
        """Unload. patience_s: for the head to end its call first, with what is in flight."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await self._idle.wait()
        self._stopped, self.state = True, "stopped"
        self._over.set()
        await self._idle.wait()
