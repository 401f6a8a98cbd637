"""Executors as processes on this machine: for `epara demo`, and for tests. Started without a sleep, ended for sure."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from epara_opt.errors import FleetError

START_TIMEOUT_S = 60.0


class LocalExecutor:
    """One agent process. `address` is where it listens, `http_address` where its HTTP front does, `metrics` where it is
    scraped (empty: nowhere)."""

    def __init__(
        self,
        server: str,
        *,
        state_dir: Path,
        model_root: Path,
        listen: str = "127.0.0.1:0",
        log_file: Path | None = None,  # of the agent and its workers; None: this process's standard error
        arguments: Sequence[str] = (),  # further ones of `python -m epara_executors.agent`
    ) -> None:
        """Returns once it listens. Raises FleetError with its own words if it does not come to that."""
        self.server = server
        command = [sys.executable, "-m", "epara_executors.agent", "--server", server, "--listen", listen]
        command += ["--state-dir", str(state_dir), "--model-root", str(model_root), *arguments]
        log = log_file.open("ab") if log_file is not None else None
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, start_new_session=True
            )
        finally:
            if log is not None:
                log.close()
        timer = threading.Timer(START_TIMEOUT_S, self.process.kill)
        timer.start()
        line = self.process.stdout.readline() if self.process.stdout is not None else b""
        timer.cancel()
        if not line:
            status = self.process.wait()
            self._close()
            where = f"; see {log_file}" if log_file is not None else ""
            raise FleetError(f"executor of {server} ended with {status} before it listened on {listen}{where}")
        said = json.loads(line)
        self.address: str = said["listening"]
        self.http_address: str = said.get("http", "")
        self.metrics: str = said.get("metrics", "")

    @property
    def pid(self) -> int:
        return self.process.pid

    def stop(self, *, timeout_s: float = 60.0) -> int:
        """Let it drain and leave; kill it when it does not in time. Returns its exit status. Idempotent."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        self._close()
        return status

    def kill(self) -> None:
        """As a power cut would. Its workers end by themselves."""
        self.process.kill()
        self.process.wait()
        self._close()

    def _close(self) -> None:
        if self.process.stdout is not None:
            self.process.stdout.close()

    def __enter__(self) -> LocalExecutor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
