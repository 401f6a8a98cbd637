"""One rank of a device group, as a process. Forked from the fork server on CPUs, started afresh on GPUs."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from epara_executors.runners.contract import LoadError, UnsupportedShape
from epara_executors.worker.chain import Chain
from epara_executors.worker.frames import Frame
from epara_executors.worker.hosting import Host
from epara_executors.worker.loop import Loop, explained
from epara_executors.worker.ranks import JOIN_TIMEOUT_S, Ranks
from epara_executors.worker.wire import Closed, Wire

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSpec:
    """What a rank must know before it hears from anybody."""

    rank: int
    tp: int
    pp: int
    device_kind: str  # "cpu" | "gpu" | "npu"
    device: int  # index of this rank's device
    socket_path: str  # where the agent listens
    model_root: str
    threads: int
    model_cache: str = ""  # where fetched models are; empty: nowhere
    cores: tuple[int, ...] = ()  # of a CPU device that has its own; empty: any
    mps_percentage: int = 0  # of an accelerator's threads, where this device is a part of one; 0: all
    rendezvous: str = ""  # a file that does not exist yet; for groups of several ranks
    chain: Mapping[str, Any] | None = None  # of a group over several servers, in place of rendezvous: a `Chain`


def run_rank(spec: RankSpec) -> int:
    """Serve until stopped; the exit status: 0 stopped, 1 failed, 3 the agent left."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the agent decides when its workers end
    if spec.cores:
        os.sched_setaffinity(0, spec.cores)  # before torch starts threads, which inherit it
    torch.set_num_threads(spec.threads)
    connection: socket.socket | None = None
    if spec.rank == 0:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(spec.socket_path)
    try:
        device = device_of(spec)
        rendezvous = Path(spec.rendezvous) if spec.rendezvous else None
        chain = None if spec.chain is None else Chain.from_fields(spec.chain)
        late = threading.Timer(JOIN_TIMEOUT_S, _give_up, (spec, connection))
        late.daemon = True
        if chain is not None:
            late.start()
        ranks = Ranks(spec.rank, spec.tp, spec.pp, rendezvous, spec.device_kind, chain=chain)
        late.cancel()
        host = Host(Path(spec.model_root), device, ranks, Path(spec.model_cache) if spec.model_cache else None)
        if connection is None:
            host.follow()
        else:
            Loop(Wire(connection), host, loads_beside=ranks.world == 1).run()
            ranks.tell(Frame("stop"))
        ranks.close()
    except Closed:
        return 3
    except Exception as error:
        if not isinstance(error, LoadError):
            traceback.print_exc()
        if connection is not None:
            fields = {"detail": explained(error), "unsupported": isinstance(error, UnsupportedShape)}
            Wire(connection).write(Frame("failed", fields))
        return 1
    return 0


def _give_up(spec: RankSpec, connection: socket.socket | None) -> None:
    """The other servers' ranks were not met: torch itself would wait for ever."""
    detail = f"rank {spec.rank} met not all ranks of its chain within {JOIN_TIMEOUT_S:.0f} s: are ports blocked?"
    if connection is not None:
        Wire(connection).write(Frame("failed", {"detail": detail}))
    print(detail, file=sys.stderr, flush=True)
    os._exit(1)


def device_of(spec: RankSpec) -> torch.device:
    """The torch device of a rank. Raises ValueError for a kind that torch does not serve here."""
    if spec.device_kind == "cpu":
        return torch.device("cpu")
    if spec.device_kind != "gpu" or not torch.cuda.is_available():
        raise ValueError(f"device kind {spec.device_kind}: expected cpu, or gpu where CUDA is available")
    if spec.device >= torch.cuda.device_count():
        raise ValueError(f"device {spec.device}: expected less than {torch.cuda.device_count()}")
    device = torch.device("cuda", spec.device)
    torch.cuda.set_device(device)
    return device


def die_with_parent(parent: int) -> None:
    """Linux: SIGKILL when the parent ends, however it ends. Elsewhere the closed socket does it for rank 0."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before we asked
            os._exit(3)


def spec_from(fields: dict[str, Any]) -> RankSpec:
    return RankSpec(**fields)


if __name__ == "__main__":
    import json

    die_with_parent(int(sys.argv[2]))
    status = run_rank(spec_from(json.loads(sys.argv[1])))
    sys.stderr.flush()
    os._exit(status)
