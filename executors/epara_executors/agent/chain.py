"""A chain over several servers, from its head: ranks here and, through other executors, ranks there, as one worker.

Rank 0 is met at a socket bound here, at this server's own address and a port of the system's choice. Every other
executor of the chain is called first (`RunStages`, answered by `stages`): it starts its ranks and ends them when the
call ends. Then the ranks here start. Whatever falls first takes all the rest with it, so that a chain is whole or gone;
the group's supervision starts it again, as it does any worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from epara_executors.agent.stages import BEAT_S, EOF, SILENCE_S, launched
from epara_executors.agent.worker_link import STOP_GRACE_S, LoadFailed, WorkerHandle, WorkerLauncher
from epara_executors.rpc import epara_pb2 as pb
from epara_executors.rpc.convert import stage_to_pb
from epara_executors.rpc.epara_pb2_grpc import ExecutorPeerStub
from epara_opt.control.ports import StageSpec

VERDICT_S = 1.0  # after ranks here have failed: for others to say that it was they
_CHANNEL_OPTIONS = (("grpc.enable_retries", 0),)


@dataclass(frozen=True, slots=True)
class Health:
    """What the head knows of its chain, for the others to report."""

    ready: bool
    memory_bytes: Sequence[int]  # (stages,) per device; empty before it has loaded


@dataclass(frozen=True, slots=True)
class Fall:
    """How the ranks at another executor ended."""

    status: int
    by_itself: bool  # not because we had ended the call
    detail: str


class StageCall:
    """The ranks at one other executor, for as long as this call lasts."""

    def __init__(
        self,
        server: str,
        numbers: Sequence[int],
        address: str,
        first: pb.HeadBeat,
        health: Callable[[], Health],
        on_leaving: Callable[[str], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        self.started: asyncio.Future[tuple[int, ...]] = loop.create_future()  # its pids, or LoadFailed
        self.started.add_done_callback(lambda f: f.cancelled() or f.exception())  # seen, even if nobody asks
        self.what = f"stage {', '.join(map(str, numbers))} at {server}"
        self._address = address
        self._first = first
        self._health = health
        self._on_leaving = on_leaving
        self._finishing = asyncio.Event()
        self._heard = asyncio.Event()  # a first answer has come, or none is wanted any more
        self.ended: asyncio.Task[Fall] = asyncio.create_task(self._run(), name=f"{self.what} of {first.group}")

    def finish(self) -> None:
        """End the ranks there, if they have not ended; `ended` says when they have."""
        self._finishing.set()
        self._heard.set()

    async def _run(self) -> Fall:
        try:
            fall = await self._talk()
        except grpc.aio.AioRpcError as e:
            fall = Fall(-1, not self._finishing.is_set(), f"{e.code().name}: {e.details()}")
        except TimeoutError:
            fall = Fall(-1, not self._finishing.is_set(), "its executor does not answer")
        except Exception as e:  # what grpc raises of a call that broke is not all public
            fall = Fall(-1, not self._finishing.is_set(), repr(e))
        if not self.started.done():
            self.started.set_exception(LoadFailed(f"{self.what} ({self._address}): {fall.detail}"))
        return fall

    async def _talk(self) -> Fall:
        async with grpc.aio.insecure_channel(self._address, options=_CHANNEL_OPTIONS) as channel:
            stub: Any = ExecutorPeerStub(channel)
            call = stub.RunStages()
            beating = asyncio.create_task(self._beat(call))
            try:
                while True:
                    async with asyncio.timeout(SILENCE_S):
                        beat = await call.read()
                    if beat is EOF:
                        status = await call.code()
                        return Fall(-1, not self._finishing.is_set(), f"{status.name}: {await call.details()}")
                    if beat.ended:
                        where = ", why is on its standard error" if beat.status > 0 else ""
                        words = beat.detail or f"ended with {beat.status}{where}"
                        return Fall(beat.status, not self._finishing.is_set(), words)
                    self._heard.set()
                    if beat.pids and not self.started.done():
                        self.started.set_result(tuple(beat.pids))
                    if beat.leaving:
                        self._on_leaving(f"the executor of {self.what} is leaving")
            finally:
                beating.cancel()
                call.cancel()

    async def _beat(self, call: Any) -> None:
        """Say that we live, and how it goes; then that it is over."""
        beat = self._first
        with contextlib.suppress(Exception):  # of a call that broke: the reader meets it too
            while not self._finishing.is_set():
                await call.write(beat)
                await self._heard.wait()  # grpc forgets a refusal that meets a message on its way
                health = self._health()
                beat = pb.HeadBeat(ready=health.ready, memory_bytes=health.memory_bytes)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(BEAT_S):
                        await self._finishing.wait()
            await call.done_writing()


class ChainHandle:
    """All ranks of a chain, as the processes of one worker."""

    def __init__(self, here: WorkerHandle, calls: Sequence[StageCall]) -> None:
        self._here = here
        self._calls = calls
        self.why = ""
        self._ended = asyncio.create_task(self._watch(), name="watch a chain")

    @property
    def pid(self) -> int:
        return self._here.pid

    @property
    def pids(self) -> Sequence[int]:
        """Of the ranks here."""
        return self._here.pids

    def alive(self) -> bool:
        return not self._ended.done()

    def kill(self) -> None:
        self._here.kill()

    async def wait(self) -> int:
        return await asyncio.shield(self._ended)

    async def _watch(self) -> int:
        here = asyncio.ensure_future(self._here.wait())
        there = [c.ended for c in self._calls]
        await asyncio.wait({here, *there}, return_when=asyncio.FIRST_COMPLETED)
        if here.done() and here.result() > 0:  # it may have met the death of another
            await asyncio.wait(there, timeout=VERDICT_S, return_when=asyncio.FIRST_COMPLETED)
        elif not here.done() and all(t.result().status == 0 for t in there if t.done()):
            await asyncio.wait({here}, timeout=STOP_GRACE_S)  # told to stop, and sooner than we
        first = not here.done()
        fallen = [(c, c.ended.result()) for c in self._calls if c.ended.done()]
        # A rank that leaves with status 1 after ours did has met our end; one that was killed has its own story.
        guilty = [f"{c.what}: {f.detail}" for c, f in fallen if f.by_itself and f.status and (first or f.status < 0)]
        self.why = "; ".join(guilty)
        self._here.kill()
        for call in self._calls:
            call.finish()
        await asyncio.wait({here, *there})
        return here.result() or next((t.result().status for t in there if t.result().by_itself), 0)


class ChainLauncher:
    """Launches a chain as if it were a worker here; the launcher protocol of worker_link.py."""

    def __init__(
        self, launcher: WorkerLauncher, *, health: Callable[[], Health], on_leaving: Callable[[str], None]
    ) -> None:
        """health: of the group led here. on_leaving: called when another executor of it is about to leave."""
        self._launcher = launcher
        self._health = health
        self._on_leaving = on_leaving

    async def start(self) -> None:
        """Nothing: the launcher of the ranks here is its owner's to start."""

    async def stop(self) -> None:
        """Nothing, likewise."""

    async def launch(
        self, group: dict[str, Any], socket_path: str, listener: socket.socket | None = None
    ) -> WorkerHandle:
        """Raises LoadFailed with the name of the stage that could not be started; then nothing of it runs."""
        stages = [StageSpec(**s) for s in group["stages"]]
        here = str(group["server"])
        with listener or listen_at(stages[0].address) as meeting:
            host = stages[0].address.rpartition(":")[0]
            rendezvous = f"{host}:{meeting.getsockname()[1]}"
            first = pb.HeadBeat(group=group["group"], stages=[stage_to_pb(s) for s in stages], rendezvous=rendezvous)
            calls = [
                StageCall(server, numbers, address, first, self._health, self._on_leaving)
                for server, (address, numbers) in _others(stages, here).items()
            ]
            try:
                await asyncio.gather(*(c.started for c in calls))
                local = await launched(self._launcher.launch({**group, "rendezvous": rendezvous}, socket_path, meeting))
            except BaseException:
                for call in calls:
                    call.finish()
                if calls:
                    await asyncio.wait({c.ended for c in calls}, timeout=SILENCE_S)
                raise
        return ChainHandle(local, calls)


def listen_at(address: str) -> socket.socket:
    """A socket that listens at the host of an executor's address and nowhere else. Raises LoadFailed."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.bind(place)
            listener.listen()
        except OSError:
            listener.close()
            raise
    except OSError as e:
        law = f"expected the address of this server in the topology, {host}, to be one that it can listen at"
        raise LoadFailed(f"{law}: {e.strerror}") from e
    return listener


def _others(stages: Sequence[StageSpec], here: str) -> Mapping[str, tuple[str, list[int]]]:
    """Every other server of a chain: its executor's address and its stages."""
    found: dict[str, tuple[str, list[int]]] = {}
    for number, stage in enumerate(stages):
        if stage.server != here:
            found.setdefault(stage.server, (stage.address, []))[1].append(number)
    return found
