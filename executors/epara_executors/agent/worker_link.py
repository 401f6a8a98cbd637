"""One life of one worker: its process, its socket, its frames. Ends when either ends; is never revived."""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from epara_executors.worker.frames import Frame, Splitter, Tensor, encode

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 120.0  # importing torch on a loaded small box takes long
STOP_GRACE_S = 5.0
LAST_WORDS_S = 0.2


class WorkerHandle(Protocol):
    """The processes of one device group."""

    @property
    def pid(self) -> int: ...
    @property
    def pids(self) -> Sequence[int]: ...
    @property
    def why(self) -> str:
        """Once ended: what ended it, where that is more than an exit code; else empty."""
        ...

    def alive(self) -> bool: ...
    def kill(self) -> None: ...
    async def wait(self) -> int:
        """Until they ended; the exit code of the first that failed, else 0."""
        ...


class WorkerLauncher(Protocol):
    """Starts workers. `start` must run before anything of gRPC does, because it may fork."""

    async def start(self) -> None: ...
    async def launch(
        self, group: dict[str, Any], socket_path: str, listener: socket.socket | None = None
    ) -> WorkerHandle:
        """listener: of a chain whose first rank is started here, at its rendezvous; the caller closes its own end."""
        ...

    async def stop(self) -> None: ...


class LoadFailed(Exception):
    """The worker could not load its group. The message is the worker's own words."""


TensorDecl = tuple[str, str, tuple[int, ...]]  # name, datatype, shape with -1 for variable


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What a worker says of one tenant once it is loaded."""

    replica: str
    memory_bytes: int
    load_s: float
    inputs: tuple[TensorDecl, ...]
    outputs: tuple[TensorDecl, ...]
    stage_bytes: tuple[int, ...] = ()  # (stages,) of a chain: memory per device of each

    @staticmethod
    def from_fields(fields: Mapping[str, Any]) -> Loaded:
        def decls(key: str) -> tuple[TensorDecl, ...]:
            return tuple((str(n), str(d), tuple(int(x) for x in s)) for n, d, s in fields[key])

        return Loaded(
            replica=str(fields["replica"]),
            memory_bytes=int(fields["memory_bytes"]),
            load_s=float(fields["load_s"]),
            inputs=decls("inputs"),
            outputs=decls("outputs"),
            stage_bytes=tuple(int(b) for b in fields.get("stage_bytes", ())),
        )


class WorkerLink(asyncio.Protocol):
    """A connected worker. Its frames are handed over as they are read, in the same turn of the loop."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.loaded: dict[str, Loaded] = {}
        self.ended: asyncio.Future[int] = loop.create_future()  # exit status of its processes
        self.left: asyncio.Future[None] = loop.create_future()  # the socket is closed: no more frames will come
        self._handle: WorkerHandle | None = None
        self._connected: asyncio.Future[None] = loop.create_future()
        self._ready: asyncio.Future[None] = loop.create_future()  # it has loaded its group, or said why not
        self._ready.add_done_callback(lambda f: f.cancelled() or f.exception())  # seen, even if nobody asks
        self._transport: asyncio.Transport | None = None
        self._splitter = Splitter()
        self._on_frame: Callable[[Frame], None] = self._on_load_frame

    @staticmethod
    async def open(launcher: WorkerLauncher, group: dict[str, Any], socket_path: Path) -> WorkerLink:
        """Launch, connect, load. Raises LoadFailed; then nothing of it is left running."""
        socket_path.unlink(missing_ok=True)
        link = WorkerLink()
        protocols = itertools.chain([link], iter(_TurnedAway, None))
        listener = await asyncio.get_running_loop().create_unix_server(lambda: next(protocols), str(socket_path))
        try:
            link._handle = await launcher.launch(group, str(socket_path))
            link.ended = asyncio.ensure_future(link._handle.wait())
            ways = {link._connected, link.ended}
            await asyncio.wait(ways, timeout=CONNECT_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
            if not link._connected.done():
                raise LoadFailed(
                    f"worker exited with {link.ended.result()} before it connected"
                    if link.ended.done()
                    else f"worker did not connect within {CONNECT_TIMEOUT_S:.0f} s"
                )
            link.ended.add_done_callback(link._abort_soon)
            link.send(Frame("load", group))
            await asyncio.wait({link._ready, link.left}, return_when=asyncio.FIRST_COMPLETED)
            if not link._ready.done():
                raise LoadFailed(f"worker left while loading {group['group']}")
            link._ready.result()
            if missing := {t["replica"] for t in group["tenants"]} - link.loaded.keys():
                raise LoadFailed(f"worker is ready but never loaded {', '.join(sorted(missing))}")
        except BaseException as e:
            if link._handle is not None:
                await link.close(grace_s=0.0)
            if isinstance(e, OSError):
                raise LoadFailed(f"worker could not be started: {e}") from e
            if isinstance(e, LoadFailed) and link._handle is not None and link._handle.why:
                raise LoadFailed(f"{link._handle.why} while it loaded") from e
            raise
        finally:
            listener.close()
            socket_path.unlink(missing_ok=True)
        return link

    @property
    def handle(self) -> WorkerHandle:
        """Its processes."""
        if self._handle is None:
            raise RuntimeError("expected a link that was opened")
        return self._handle

    def listen(self, on_frame: Callable[[Frame], None]) -> None:
        """Where frames go from now on. Until then, those that tell of loading are taken in and others dropped."""
        self._on_frame = on_frame

    def send(self, frame: Frame) -> None:
        """Hand a frame to the socket. What is in flight is bounded by the group, so nothing waits here."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode(frame))

    async def close(self, *, grace_s: float = STOP_GRACE_S) -> None:
        """Ask it to stop; after the grace close the socket and kill. Returns when no process is left."""
        if grace_s > 0 and not self.ended.done():
            self.send(Frame("stop"))
            await asyncio.wait({self.ended}, timeout=grace_s)
        if self._transport is not None:
            self._transport.close()
        if not self.ended.done():
            self.handle.kill()
        await asyncio.shield(self.ended)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._connected.set_result(None)

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._splitter.feed(data):
                self._on_frame(frame)
        except (ValueError, KeyError, TypeError) as e:
            log.error("worker %d broke the frame protocol: %s", self.handle.pid, e)
            if self._transport is not None:
                self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.left.done():
            self.left.set_result(None)

    def _on_load_frame(self, frame: Frame) -> None:
        if self._ready.done():
            return
        if frame.type == "loaded":
            try:
                tenant = Loaded.from_fields(frame.fields)
            except (KeyError, ValueError, TypeError) as e:
                self._ready.set_exception(LoadFailed(f"worker's loaded frame is malformed: {e!r}"))
                return
            self.loaded[tenant.replica] = tenant
        elif frame.type == "failed":
            self._ready.set_exception(LoadFailed(str(frame.fields.get("detail", "no detail given"))))
        elif frame.type == "ready":
            self._ready.set_result(None)

    def _abort_soon(self, _: asyncio.Future[int]) -> None:
        """A rank has ended: what rank 0 still said may be on its way, then the link is over."""
        if self._transport is not None:
            asyncio.get_running_loop().call_later(LAST_WORDS_S, self._transport.abort)


class _TurnedAway(asyncio.Protocol):
    """Whoever connects beside the one worker."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).abort()


def tensors_by_count(tensors: Sequence[Tensor], counts: Sequence[int]) -> list[Sequence[Tensor]]:
    """Cut a frame's tensors into runs of the given lengths. Raises ValueError where they do not add up."""
    if sum(counts) != len(tensors):
        raise ValueError(f"counts: expected a sum of {len(tensors)} tensors, got {sum(counts)}")
    runs: list[Sequence[Tensor]] = []
    at = 0
    for n in counts:
        runs.append(tensors[at : at + n])
        at += n
    return runs
