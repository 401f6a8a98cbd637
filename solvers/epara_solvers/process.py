"""Back ends behind a process of their own, with a deadline that no vendor can overrun.

Why a process each: HiGHS ships twice (highspy, ortools) and the copies crash in one process; vendors overrun
their limits by seconds; and a crash in native code must cost a search, not the planner. The process persists
between solves (a cold start costs about half a second) and is replaced after a kill or a crash.

At the deadline plus `grace_s` the process is killed, with all its children. What was reported until then stays:
SCIP and CP-SAT send incumbents as they find them, HiGHS writes them to a file, CBC has none to salvage.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy.typing as npt

from epara_opt.formulation.program import FloatArray, MilpProgram, MilpResult, SearchStop
from epara_solvers import wire
from epara_solvers.backends import logs
from epara_solvers.backends.outcome import FEASIBILITY, concluded, violation, without_search
from epara_solvers.worker import VENDOR_LOG, Frame

GRACE_S = 1.0  # beyond the deadline, for the vendor to hand over what it has
LAST_WORDS_S = 1.0
TAIL = 600  # characters of a crashed vendor's log that go into the detail
INCUMBENT_FILE = "incumbents.sol"  # see backends.mathopt, which cannot be imported here: it imports its vendor
CBC_LOG = "cbc.log"  # see backends.pulp


class SolverProcess:
    """One process of one back end: started, asked, killed. Not thread-safe; one request at a time."""

    def __init__(self, name: str, *, threads: int, command: tuple[str, ...] | None = None) -> None:
        self.name = name
        self.scratch = Path(tempfile.mkdtemp(prefix=f"epara-{name}-"))
        argv = [*(command or (sys.executable, "-m", "epara_solvers.worker")), name, str(threads), str(self.scratch)]
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(), start_new_session=True
        )
        self._inbox: queue.SimpleQueue[Frame | None] = queue.SimpleQueue()
        threading.Thread(
            target=_drain, args=(self._process.stdout, self._inbox), daemon=True, name=f"{name} answers"
        ).start()
        self._close = weakref.finalize(self, _end, self._process, self.scratch)

    def receive(self, timeout_s: float) -> Frame:
        """The next frame. Raises TimeoutError, and ConnectionError with its last words when the process ended."""
        try:
            frame = self._inbox.get(timeout=max(0.0, timeout_s))
        except queue.Empty:
            raise TimeoutError from None
        if frame is None:
            raise ConnectionAbortedError(f"the solver's process ended: {self._last_words()}")
        return frame

    def send(self, meta: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Raises ConnectionError when the process is gone."""
        for stale in (INCUMBENT_FILE, CBC_LOG):
            (self.scratch / stale).unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.truncate(self.scratch / VENDOR_LOG, 0)
        try:
            wire.write_frame(cast("BinaryIO", self._process.stdin), meta, arrays)
        except BrokenPipeError:
            raise ConnectionAbortedError(f"the solver's process ended: {self._last_words()}") from None

    @property
    def pid(self) -> int:
        return self._process.pid

    def _last_words(self) -> str:
        """How it ended, and the end of what the vendor printed."""
        try:
            code = self._process.wait(LAST_WORDS_S)  # its output has ended, so it has, too, or is about to
            how = f"signal {-code}" if code < 0 else f"exit status {code}"
        except subprocess.TimeoutExpired:
            how = "it closed its output"
        return f"{how}; {self.text(VENDOR_LOG)[-TAIL:].strip()}".rstrip("; ")

    def text(self, name: str) -> str:
        path = self.scratch / name
        return path.read_text(errors="replace") if path.exists() else ""

    def kill(self) -> None:
        _kill(self._process)

    def close(self) -> None:
        """Kill and remove the scratch folder. Idempotent."""
        self._close()


class IsolatedBackend:
    """A MilpBackend whose vendor runs elsewhere. Keep one per planner; `close` it, or let it be collected."""

    def __init__(
        self,
        name: str,
        *,
        threads: int = 1,
        grace_s: float = GRACE_S,
        command: tuple[str, ...] | None = None,  # what to run instead of this package's worker
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._threads = threads
        self._grace_s = grace_s
        self._command = command
        self._clock = clock
        self._process: SolverProcess | None = None
        self._ready = False

    @property
    def name(self) -> str:
        return self._name

    def warm_up(self) -> None:
        """Start the process now, so that it is ready when a program is. Returns at once."""
        if self._process is None:
            self._process = SolverProcess(self._name, threads=self._threads, command=self._command)
            self._ready = False

    def close(self) -> None:
        """End the process, if any. The next solve starts another."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def solve(
        self, program: MilpProgram, *, time_limit_s: float, gap: float = 1e-4, warm_start: FloatArray | None = None
    ) -> MilpResult:
        started = self._clock()
        trivial = without_search(program)
        if trivial is not None:
            return trivial
        arrays = wire.program_to_arrays(program)
        if warm_start is not None:
            arrays["warm_start"] = warm_start
        heard = _Heard()
        process: SolverProcess | None = None
        stop = SearchStop.FAILED
        try:
            process = self._hello(started + time_limit_s)
            left_s = time_limit_s - (self._clock() - started)
            process.send({"kind": "solve", "time_limit_s": max(0.01, left_s), "gap": gap}, arrays)
            while True:
                meta, received = process.receive(time_limit_s + self._grace_s - (self._clock() - started))
                if meta["kind"] == "result":
                    return replace(wire.result_from_frame(meta, received), wall_s=self._clock() - started)
                if meta["kind"] == "failed":
                    detail = meta["detail"]
                    break
                heard.take(program, received["x"], meta["dual_bound"])
        except TimeoutError:
            stop, detail = SearchStop.TIME_LIMIT, f"killed {self._grace_s:g} s after its deadline"
            self._salvage(program, heard)
        except ConnectionError as e:
            detail = str(e)
            self._salvage(program, heard)
        x = heard.x if heard.x is not None and violation(program, heard.x) <= FEASIBILITY else None
        return concluded(
            program, stop=stop, x=x, dual_bound=heard.dual_bound, wall_s=self._clock() - started, detail=detail
        )

    def prices(self, program: MilpProgram, *, time_limit_s: float) -> Mapping[str, float] | None:
        """Duals of the relaxation by row name, for the back end called `glop`; None where it gave none in time."""
        started = self._clock()
        try:
            process = self._hello(started + time_limit_s)
            left_s = time_limit_s - (self._clock() - started)
            process.send({"time_limit_s": max(0.01, left_s)}, wire.program_to_arrays(program))
            _, received = process.receive(time_limit_s + self._grace_s - (self._clock() - started))
        except (TimeoutError, ConnectionError):
            self.close()
            return None
        values = received.get("prices")
        return None if values is None else dict(zip(program.row_names, values.tolist(), strict=True))

    def _salvage(self, program: MilpProgram, heard: _Heard) -> None:
        """End the process and read what its vendor left on disk: HiGHS its incumbents and log, CBC its log."""
        process = self._process
        if process is None:
            return
        process.kill()
        if process.name == "mathopt-highs":
            x = logs.highs_incumbent(process.text(INCUMBENT_FILE), program.num_vars)
            heard.take(program, x, logs.highs_upper_bound(process.text(VENDOR_LOG)))
        elif process.name == "pulp-cbc":
            heard.take(program, None, logs.cbc_upper_bound(process.text(CBC_LOG)))
        self.close()

    def _hello(self, deadline: float) -> SolverProcess:
        """The process, ready. Raises ConnectionError where it ends or its vendor refuses, TimeoutError."""
        self.warm_up()
        process = cast("SolverProcess", self._process)
        if not self._ready:
            meta, _ = process.receive(deadline + self._grace_s - self._clock())
            if meta["kind"] != "hello":
                raise ConnectionRefusedError(meta["detail"])
            self._ready = True
        return process


@dataclass(slots=True)
class _Heard:
    """The best point and bound that a search has told so far."""

    x: FloatArray | None = None
    objective: float = -float("inf")
    dual_bound: float | None = None

    def take(self, program: MilpProgram, x: FloatArray | None, dual_bound: float | None) -> None:
        if x is not None and float(program.objective @ x) > self.objective:
            self.x, self.objective = x, float(program.objective @ x)
        if dual_bound is not None:
            self.dual_bound = dual_bound if self.dual_bound is None else min(self.dual_bound, dual_bound)


def environment() -> dict[str, str]:
    """This interpreter's search path, so that an uninstalled checkout works, too."""
    path = os.pathsep.join(p for p in sys.path if p)
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def _drain(stream: BinaryIO, inbox: queue.SimpleQueue[Frame | None]) -> None:
    with stream, contextlib.suppress(OSError, ValueError):
        while (frame := wire.read_frame(stream)) is not None:
            inbox.put(frame)
    inbox.put(None)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # its session's leader: children (CBC) go with it
    process.wait()


def _end(process: subprocess.Popen[bytes], scratch: Path) -> None:
    _kill(process)
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    shutil.rmtree(scratch, ignore_errors=True)
