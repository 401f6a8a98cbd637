"""A fresh process that has imported torch and transformers once and forks every worker from there.

Importing them costs seconds of CPU, forking milliseconds. The server computes nothing itself, so no thread of
torch's exists when it forks, and it is started by exec, so nothing of its parent (gRPC above all) is inherited.
CUDA cannot be used in a forked process whose parent touched it: ranks on GPUs are started afresh instead.

It speaks JSON lines over the socket it inherits: {launch, ranks}, {kill} in; {up}, {launched, pids},
{exited, status} out. A launch of a chain's rank 0 comes with a listening socket, handed on to that rank. Its end, or
its parent's, is the end of all its children.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import selectors
import shutil
import signal
import socket
import sys
import tempfile
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from epara_executors.worker.main import die_with_parent, run_rank, spec_from

# What transformers would import at a worker's first load; each costs every worker up to seconds if left to it.
_PRELOADED = (
    "transformers.generation.utils",
    "transformers.models.llama.modeling_llama",
    "transformers.models.bert.modeling_bert",
    "transformers.models.vit.modeling_vit",
    "transformers.models.segformer.modeling_segformer",
    "transformers.models.yolos.modeling_yolos",
    "transformers.tokenization_utils_tokenizers",
    "torch.distributed",
)


@dataclass(slots=True)
class _Group:
    folder: str  # holds the rendezvous file
    ranks: dict[int, int] = field(default_factory=dict[int, int])  # pid to rank, of those alive
    status: int | None = None  # of rank 0, or of the first that failed


class ForkServer:
    """Starts groups, notices deaths, and lets no rank outlive its group."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._groups: dict[int, _Group] = {}
        self._partial = b""
        self._listeners: deque[int] = deque()  # that came with launches not yet read
        self._wake_out, self._wake_in = socket.socketpair()
        for end in (self._wake_out, self._wake_in):
            end.setblocking(False)

    def run(self) -> None:
        """Serve until the other side of the control socket is gone."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_in.fileno(), warn_on_full_buffer=False)
        self._say({"up": os.getpid()})
        with selectors.DefaultSelector() as selector:
            selector.register(self._control, selectors.EVENT_READ)
            selector.register(self._wake_out, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._wake_out:
                        with contextlib.suppress(BlockingIOError):
                            self._wake_out.recv(4096)
                        self._reap()
                    elif not self._hear():
                        self._kill_all()
                        return

    def _hear(self) -> bool:
        try:
            data, listeners, _, _ = socket.recv_fds(self._control, 65536, 16)
        except ConnectionError:
            return False
        self._listeners += listeners
        if not data:
            return False
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            message: dict[str, Any] = json.loads(line)
            if "launch" in message:
                self._launch(int(message["launch"]), message["ranks"])
            elif (group := self._groups.get(int(message["kill"]))) is not None:
                _kill(group)
        return True

    def _launch(self, key: int, ranks: list[dict[str, Any]]) -> None:
        group = self._groups[key] = _Group(tempfile.mkdtemp(prefix="epara-ranks-"))
        for fields in ranks:
            chain: dict[str, Any] | None = fields.get("chain")
            if chain is None and len(ranks) > 1:
                fields["rendezvous"] = os.path.join(group.folder, "store")
            listener = self._listeners.popleft() if chain is not None and fields["rank"] == 0 else None
            if chain is not None and listener is not None:
                chain["listener"] = listener
                os.set_inheritable(listener, True)
            group.ranks[self._start(fields)] = int(fields["rank"])
            if listener is not None:
                os.close(listener)  # rank 0's alone
        self._say({"launched": key, "pids": list(group.ranks)})

    def _start(self, fields: dict[str, Any]) -> int:
        server = os.getpid()
        if fields["device_kind"] != "cpu":
            command = [sys.executable, "-m", "epara_executors.worker.main", json.dumps(fields), str(server)]
            return os.posix_spawn(sys.executable, command, environment_of(fields))
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            die_with_parent(server)
            for end in (self._control, self._wake_in, self._wake_out):
                end.close()
            status = run_rank(spec_from(fields))
            sys.stderr.flush()
        finally:
            os._exit(status)

    def _reap(self) -> None:
        while True:
            try:
                pid, raw = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._ended(pid, os.waitstatus_to_exitcode(raw))

    def _ended(self, pid: int, status: int) -> None:
        key, group = next((k, g) for k, g in self._groups.items() if pid in g.ranks)
        rank = group.ranks.pop(pid)
        if group.status is None and (rank == 0 or status != 0):
            group.status = status
            _kill(group)
        if not group.ranks:
            del self._groups[key]
            shutil.rmtree(group.folder, ignore_errors=True)
            self._say({"exited": key, "status": group.status or 0})

    def _kill_all(self) -> None:
        for group in self._groups.values():
            _kill(group)
            for pid in group.ranks:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)
            shutil.rmtree(group.folder, ignore_errors=True)

    def _say(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(ConnectionError):  # the next read finds the other side gone
            self._control.sendall(json.dumps(message).encode() + b"\n")


def environment_of(fields: dict[str, Any]) -> dict[str, str]:
    """Of a rank on an accelerator. CUDA reads the share when it starts, and only with MPS running does it hold."""
    percentage = int(fields.get("mps_percentage", 0))
    share = {"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": str(percentage)} if percentage else {}
    return {**os.environ, **share}


def _kill(group: _Group) -> None:
    for pid in group.ranks:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    for _module in _PRELOADED:
        with contextlib.suppress(ImportError):  # a release that moved it is only slower
            importlib.import_module(_module)
    ForkServer(socket.socket(fileno=int(sys.argv[1]))).run()
    os._exit(0)  # tearing torch down takes seconds and frees nothing that the end does not
