"""One life of one worker: its process, its socket, its frames. Ends when either ends; is never revived."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from epara_executors.worker import frames
from epara_executors.worker.frames import Frame, Tensor

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 120.0  # importing torch on a loaded small box takes long
STOP_GRACE_S = 5.0
LAST_WORDS_S = 0.2
_BUFFER_BYTES = 2**22


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


@dataclass(slots=True)
class WorkerLink:
    """A connected worker that has loaded its group."""

    handle: WorkerHandle
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    ended: asyncio.Future[int]
    loaded: dict[str, Loaded] = field(default_factory=dict[str, Loaded])

    @staticmethod
    async def open(launcher: WorkerLauncher, group: dict[str, Any], socket_path: Path) -> WorkerLink:
        """Launch, connect, load. Raises LoadFailed; then nothing of it is left running."""
        socket_path.unlink(missing_ok=True)
        connected: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]]
        connected = asyncio.get_running_loop().create_future()

        def on_connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if connected.done():
                writer.close()
            else:
                connected.set_result((reader, writer))

        listener = await asyncio.start_unix_server(on_connect, str(socket_path), limit=_BUFFER_BYTES)
        handle: WorkerHandle | None = None
        link: WorkerLink | None = None
        try:
            handle = await launcher.launch(group, str(socket_path))
            ended = asyncio.ensure_future(handle.wait())
            await asyncio.wait({connected, ended}, timeout=CONNECT_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
            if not connected.done():
                raise LoadFailed(
                    f"worker exited with {ended.result()} before it connected"
                    if ended.done()
                    else f"worker did not connect within {CONNECT_TIMEOUT_S:.0f} s"
                )
            link = WorkerLink(handle, *connected.result(), ended=ended)
            ended.add_done_callback(link._abort_soon)
            await link._load(group)
        except BaseException as e:
            if link is not None:
                await link.close(grace_s=0.0)
            elif handle is not None:
                handle.kill()
                await handle.wait()
            if isinstance(e, OSError):
                raise LoadFailed(f"worker could not be started: {e}") from e
            if isinstance(e, LoadFailed) and handle is not None and handle.why:
                raise LoadFailed(f"{handle.why} while it loaded") from e
            raise
        finally:
            listener.close()
            socket_path.unlink(missing_ok=True)
        return link

    async def _load(self, group: dict[str, Any]) -> None:
        self.send(Frame("load", group))
        while True:
            frame = await self.read()
            if frame is None:
                raise LoadFailed(f"worker left while loading {group['group']}")
            if frame.type == "loaded":
                try:
                    tenant = Loaded.from_fields(frame.fields)
                except (KeyError, ValueError, TypeError) as e:
                    raise LoadFailed(f"worker's loaded frame is malformed: {e!r}") from e
                self.loaded[tenant.replica] = tenant
            elif frame.type == "failed":
                raise LoadFailed(str(frame.fields.get("detail", "no detail given")))
            elif frame.type == "ready":
                break
        missing = {t["replica"] for t in group["tenants"]} - self.loaded.keys()
        if missing:
            raise LoadFailed(f"worker is ready but never loaded {', '.join(sorted(missing))}")

    def send(self, frame: Frame) -> None:
        """Hand a frame to the socket. What is in flight is bounded by the group, so nothing waits here."""
        if not self.writer.is_closing():
            self.writer.write(frames.encode(frame))

    async def read(self) -> Frame | None:
        """The next frame; None when the worker has left, by socket or by process (any rank)."""
        try:
            return await frames.read(self.reader)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        except (ValueError, KeyError, TypeError) as e:
            log.error("worker %d broke the frame protocol: %s", self.handle.pid, e)
            return None

    def _abort_soon(self, _: asyncio.Future[int]) -> None:
        """A rank has ended: what rank 0 still said may be on its way, then the link is over."""
        asyncio.get_running_loop().call_later(LAST_WORDS_S, self.writer.transport.abort)

    async def close(self, *, grace_s: float = STOP_GRACE_S) -> None:
        """Ask it to stop; after the grace close the socket and kill. Returns when no process is left."""
        if grace_s > 0 and not self.ended.done():
            self.send(Frame("stop"))
            await asyncio.wait({self.ended}, timeout=grace_s)
        self.writer.close()
        if not self.ended.done():
            self.handle.kill()
        await asyncio.shield(self.ended)


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
