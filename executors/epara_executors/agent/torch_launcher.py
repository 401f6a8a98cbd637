"""The torch worker's launcher, which blocks, for an event loop, which must not. Imports no torch."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from epara_executors.agent.worker_link import LoadFailed, WorkerHandle
from epara_executors.worker.launch import Launcher, LaunchError
from epara_executors.worker.launch import WorkerHandle as BlockingHandle

T = TypeVar("T")
KILLED = -9


async def in_thread(call: Callable[[], T]) -> T:
    """Run a call that may block for minutes in a thread of its own: a pool's could all be taken by such calls."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result, error = None, None
        try:
            result = call()
        except BaseException as e:
            error = e
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:
            return  # the loop is gone, and with it whoever asked

    threading.Thread(target=work, daemon=True).start()
    return await done


class TorchHandle:
    """The processes of one device group."""

    def __init__(self, blocking: BlockingHandle) -> None:
        self._blocking = blocking
        self._ended = asyncio.ensure_future(in_thread(blocking.wait))

    @property
    def pid(self) -> int:
        return self._blocking.pid

    @property
    def pids(self) -> Sequence[int]:
        return self._blocking.pids

    @property
    def why(self) -> str:
        return ""

    def alive(self) -> bool:
        return self._blocking.alive()

    def kill(self) -> None:
        self._blocking.kill()

    async def wait(self) -> int:
        status = await asyncio.shield(self._ended)
        return KILLED if status is None else status


class TorchLauncher:
    """The launcher protocol of worker_link.py over the fork server's."""

    def __init__(
        self, model_root: Path, *, threads_per_device: int, model_cache: Path | None = None, pin_cpus: bool = False
    ) -> None:
        """model_cache: where models are that were fetched."""
        self._fresh = lambda: Launcher(model_root, threads_per_device, model_cache, pin_cpus=pin_cpus)
        self._blocking = self._fresh()

    async def start(self) -> None:
        self._blocking.start()

    async def launch(
        self, group: dict[str, Any], socket_path: str, listener: socket.socket | None = None
    ) -> WorkerHandle:
        """Raises LoadFailed where no process could be started. A fork server that is gone is replaced for the next."""
        used = self._blocking
        try:
            return TorchHandle(await in_thread(lambda: used.launch(group, socket_path, listener)))
        except LaunchError as e:
            if not used.wait_up(0.0) and self._blocking is used:
                self._blocking = self._fresh()
                self._blocking.start()
                await in_thread(used.close)
            raise LoadFailed(str(e)) from e

    async def stop(self) -> None:
        await in_thread(self._blocking.close)
