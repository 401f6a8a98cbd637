"""Starting workers, from the agent's side. Imports no torch: all of that happens in the fork server.

    launcher = Launcher(model_root); launcher.start()
    handle = launcher.launch(group, socket_path)     # the agent listens at socket_path; rank 0 connects
    ... speak frames over that connection ...
    launcher.close()

`group` is what a `load` frame says about the group: group, device_kind, devices, tp, pp, parts. For a chain over
several servers also `server`, `stages` and `rendezvous`; then its ranks at this server are started, and rank 0, if it
is one of them, is given the socket that listens there.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from epara_executors.worker.chain import ranks_here

START_TIMEOUT_S = 180.0  # importing torch and transformers on a small, busy box


class LaunchError(Exception):
    """A worker could not be started."""


class WorkerHandle:
    """The processes of one device group."""

    def __init__(self, launcher: Launcher, key: int) -> None:
        self._launcher = launcher
        self._key = key
        self._started = threading.Event()
        self._ended = threading.Event()
        self._status: int | None = None
        self.pids: tuple[int, ...] = ()  # by rank

    @property
    def pid(self) -> int:
        """Of rank 0, which speaks to the agent."""
        return self.pids[0]

    def alive(self) -> bool:
        """Any of its processes lives."""
        return not self._ended.is_set()

    def kill(self) -> None:
        """End all its processes at once; returns before they have ended."""
        self._launcher.send({"kill": self._key})

    def wait(self, timeout_s: float | None = None) -> int | None:
        """The exit status once all have ended (negative: a signal), or None if they have not in time."""
        return self._status if self._ended.wait(timeout_s) else None

    def started(self, pids: list[int]) -> None:
        """Called by the launcher."""
        self.pids = tuple(pids)
        self._started.set()

    def ended(self, status: int) -> None:
        """Called by the launcher."""
        self._status = status
        self._ended.set()
        self._started.set()

    def await_start(self, timeout_s: float) -> bool:
        return self._started.wait(timeout_s) and bool(self.pids)


class Launcher:
    """Owns the fork server. Its methods may be called from any thread."""

    def __init__(
        self,
        model_root: Path,
        threads_per_device: int = 1,
        model_cache: Path | None = None,
        *,
        pin_cpus: bool = False,
    ) -> None:
        """model_cache: where models are that were fetched, for sources that are no local folder.

        pin_cpus: the worker of CPU device i runs on cores i x threads to (i + 1) x threads - 1, of those allowed.
        """
        self._model_root = model_root
        self._model_cache = model_cache
        self._threads = threads_per_device
        self._cores = sorted(os.sched_getaffinity(0)) if pin_cpus and hasattr(os, "sched_getaffinity") else []
        self._handles: dict[int, WorkerHandle] = {}
        self._keys = itertools.count()
        self._lock = threading.Lock()
        self._up = threading.Event()
        self._gone = False
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._reader: threading.Thread | None = None

    def start(self) -> None:
        """Start the fork server and return; it imports meanwhile, and the first launch waits for it."""
        ours, theirs = socket.socketpair()
        threads = str(self._threads)
        quiet = {"TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
        limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "epara_executors.worker.fork_server", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={**os.environ, **quiet, **limits},
            start_new_session=True,  # a Ctrl-C in the terminal is the agent's to handle
        )
        theirs.close()
        self._control = ours
        self._reader = threading.Thread(target=self._listen, args=(ours,), name="fork-server", daemon=True)
        self._reader.start()

    def wait_up(self, timeout_s: float = START_TIMEOUT_S) -> bool:
        """Wait until the imports are done; False if they were not in time, or failed."""
        return self._up.wait(timeout_s) and not self._gone

    def launch(self, group: Mapping[str, Any], socket_path: str, listener: socket.socket | None = None) -> WorkerHandle:
        """Start one process per rank of a group; rank 0 connects to `socket_path`.

        listener: of a chain whose rank 0 is started here; the caller closes its own end.

        Raises
        ------
        LaunchError
            When the fork server is not there, or the group does not add up.
        """
        tp, pp, devices = int(group["tp"]), int(group["pp"]), list(group["devices"])
        if not group.get("stages") and len(devices) != tp * pp:
            raise LaunchError(f"group {group.get('group', '')}: expected tp * pp = {tp * pp} devices, got {devices}")
        parts = int(group.get("parts", 1))
        if parts > 1 and (tp * pp > 1 or group.get("stages")):
            law = "expected one device per group where devices are parts of an accelerator"
            raise LaunchError(f"group {group.get('group', '')}: {law}, got tp {tp}, pp {pp}")
        if group.get("stages") and (group["stages"][0]["server"] == group["server"]) != (listener is not None):
            raise LaunchError(f"group {group['group']}: expected a listening socket for rank 0, and for it alone")
        kind = group["device_kind"]
        ranks = [{"rank": i, "tp": tp, "device_kind": kind, "device": d} for i, d in enumerate(devices)]
        if group.get("stages"):
            ranks = list(_chain_ranks(group))
        for rank in ranks:
            rank["cores"] = self._cores_of(rank["device"]) if rank["device_kind"] == "cpu" else []
        if not self.wait_up():
            raise LaunchError("the fork server did not come up; its reason is on standard error")
        key = next(self._keys)
        handle = WorkerHandle(self, key)
        with self._lock:
            self._handles[key] = handle
        common = {
            "socket_path": socket_path,
            "model_root": str(self._model_root.absolute()),
            "model_cache": str(self._model_cache.absolute()) if self._model_cache is not None else "",
            "threads": self._threads,
            "pp": pp,
            "mps_percentage": 100 // parts if parts > 1 else 0,
        }
        ranks = [{**common, **rank, "device": rank["device"] // parts} for rank in ranks]
        listeners = () if listener is None else (listener.fileno(),)
        self.send({"launch": key, "ranks": ranks}, listeners)
        if not handle.await_start(START_TIMEOUT_S):
            raise LaunchError("the fork server started no process; its reason is on standard error")
        return handle

    def _cores_of(self, device: int) -> list[int]:
        """The cores that are this CPU device's alone; none where workers are not pinned."""
        if not self._cores:
            return []
        first, last = device * self._threads, (device + 1) * self._threads
        if last > len(self._cores):
            law = f"expected {last} cores to pin {self._threads} for each device up to {device}"
            raise LaunchError(f"cpu device {device}: {law}, got {len(self._cores)}")
        return self._cores[first:last]

    def close(self) -> None:
        """End the fork server and with it every worker."""
        if self._control is None or self._process is None or self._reader is None:
            return
        self._control.shutdown(socket.SHUT_RDWR)
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        self._control.close()
        self._control = None

    def send(self, message: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
        """One line to the fork server, open files with it; nothing if it is gone, for then so are its workers."""
        data = json.dumps(message).encode() + b"\n"
        with self._lock:
            if self._control is not None and not self._gone:
                try:
                    sent = socket.send_fds(self._control, [data], descriptors) if descriptors else 0
                    self._control.sendall(data[sent:])
                except OSError:
                    return

    def _listen(self, control: socket.socket) -> None:
        partial = b""
        while True:
            try:
                data = control.recv(65536)
            except OSError:
                data = b""
            if not data:
                break
            *lines, partial = (partial + data).split(b"\n")
            for line in lines:
                self._take(json.loads(line))
        with self._lock:
            self._gone = True
            left = list(self._handles.values())
            self._handles.clear()
        self._up.set()
        for handle in left:
            handle.ended(-9)

    def _take(self, message: dict[str, Any]) -> None:
        if "up" in message:
            self._up.set()
        elif "launched" in message:
            self._handles[int(message["launched"])].started(message["pids"])
        elif "exited" in message:
            with self._lock:
                handle = self._handles.pop(int(message["exited"]))
            handle.ended(int(message["status"]))


def _chain_ranks(group: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What each rank of a chain at this server is told, beside what all are."""
    stages: list[dict[str, Any]] = group["stages"]
    whole = {
        "tps": [len(s["devices"]) for s in stages],
        "layers": [[s["first_layer"], s["end_layer"]] for s in stages],
        "kinds": [s["device_kind"] for s in stages],
        "rendezvous": group["rendezvous"],
    }
    for rank, number, device in ranks_here(stages, group["server"]):
        stage = stages[number]
        chain = {**whole, "host": stage["address"].rpartition(":")[0]}
        yield {
            "rank": rank,
            "tp": len(stage["devices"]),
            "device_kind": stage["device_kind"],
            "device": device,
            "chain": chain,
        }
