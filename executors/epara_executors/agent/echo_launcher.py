"""Starts echo workers (`worker/echo.py`) for an agent, as torch_launcher.py starts those with models."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any


class EchoHandle:
    """One echo process."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        threading.Thread(target=self._watch, args=(self._ended.get_loop(),), daemon=True).start()

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        status = self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            loop.call_soon_threadsafe(self._ended.set_result, status)
        except RuntimeError:
            return  # the loop is gone, and with it whoever asked

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def pids(self) -> Sequence[int]:
        return (self._process.pid,)

    @property
    def why(self) -> str:
        return ""

    def alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        self._process.kill()

    async def wait(self) -> int:
        return await asyncio.shield(self._ended)


class EchoLauncher:
    """Starts echo workers; the launcher protocol of agent/worker_link.py."""

    async def start(self) -> None:
        """Nothing to preload."""

    async def launch(
        self, group: dict[str, Any], socket_path: str, listener: socket.socket | None = None
    ) -> EchoHandle:
        """One process for all ranks; of the further stages of a chain, which have no socket, one that does nothing."""
        command = [sys.executable, "-m", "epara_executors.worker.echo", socket_path]
        stdin = subprocess.DEVNULL if socket_path else subprocess.PIPE  # whose end is the agent's
        return EchoHandle(subprocess.Popen(command, stdin=stdin, stdout=sys.stderr.fileno(), start_new_session=True))

    async def stop(self) -> None:
        """Nothing is kept."""
