"""The processes of one device group and how they talk. Ranks go stage by stage: those of the first stage first.

Rank 0 alone speaks to the agent. It tells the others what to do in frames (no pickle), which they hear in order;
activations flow from stage to stage, logits from the last stage to rank 0. gloo carries it on
CPUs, gloo for the frames and NCCL for the tensors on GPUs.

The stages of a chain (`worker/chain.py`) stand at several servers, may have unlike numbers of ranks, and find each
other over TCP instead of a file. Where some are on CPUs and some on GPUs, gloo carries activations over the CPU.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from epara_executors.worker.chain import Chain, interface_of
from epara_executors.worker.frames import Frame
from epara_executors.worker.wire import pack, unpack

# A follower waits for orders for as long as its group is idle. Death is noticed by closed connections, not by time.
_PATIENCE = timedelta(days=365)
_GPU_BACKENDS = "cpu:gloo,cuda:nccl"
JOIN_TIMEOUT_S = 120.0  # for the ranks of a chain to find each other: another server may still be importing torch


class Ranks:
    """This process's place in its group. A group of one needs no communication and starts none."""

    def __init__(
        self, rank: int, tp: int, pp: int, rendezvous: Path | None, device_kind: str, *, chain: Chain | None = None
    ) -> None:
        """chain: of a group over several servers, in place of rendezvous; tp and pp are its own stage's and its length.

        Raises ValueError where the address of this server is none of this machine's; torch's own errors beyond that.
        """
        self.tps = chain.tps if chain is not None else (tp,) * pp  # ranks of each stage
        self.firsts = tuple(sum(self.tps[:s]) for s in range(pp))  # rank of each stage's first
        self.world = sum(self.tps)
        self.rank, self.pp = rank, pp
        self.stage = sum(first <= rank for first in self.firsts) - 1
        self.tp = self.tps[self.stage]
        self.tp_rank = rank - self.firsts[self.stage]
        self.layers = chain.layers[self.stage] if chain is not None else None  # [first, end); None: spread evenly
        self.tp_group: Any = None
        self._over_cpu = chain is not None and len(set(chain.kinds)) > 1
        self._sending: deque[tuple[Any, torch.Tensor]] = deque()
        if self.world == 1:
            return
        if chain is not None:
            self._join(chain)
        elif rendezvous is None:
            raise ValueError(f"rendezvous: expected a file for a group of {self.world} ranks, got none")
        else:
            if sys.platform == "linux":
                os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # ranks of one server: nothing leaves the machine
            backend = "gloo" if device_kind == "cpu" else _GPU_BACKENDS
            dist.init_process_group(
                backend, init_method=rendezvous.as_uri(), rank=rank, world_size=self.world, timeout=_PATIENCE
            )
        for stage, (first, ranks) in enumerate(zip(self.firsts, self.tps, strict=True)):
            members = list(range(first, first + ranks))
            group = self._group_of(members, chain, stage) if pp > 1 else dist.group.WORLD
            if stage == self.stage:
                self.tp_group = group

    def _join(self, chain: Chain) -> None:
        """Find the ranks at other servers. What listens does so at this server's own address only."""
        interface = interface_of(chain.host)
        os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = interface
        host, _, port = chain.rendezvous.rpartition(":")
        store = dist.TCPStore(
            host.strip("[]"),
            int(port),
            self.world,
            self.rank == 0,
            timedelta(seconds=JOIN_TIMEOUT_S),
            wait_for_workers=False,
            master_listen_fd=chain.listener if self.rank == 0 else None,
        )
        backend = _GPU_BACKENDS if set(chain.kinds) == {"gpu"} else "gloo"
        dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.world, timeout=_PATIENCE)

    def _group_of(self, members: list[int], chain: Chain | None, stage: int) -> Any:
        """Of one stage. Where stages are of unlike kinds, those on GPUs add up over NCCL all the same."""
        if self._over_cpu and chain is not None and chain.kinds[stage] == "gpu" and len(members) > 1:
            return dist.new_group(members, timeout=_PATIENCE, backend=_GPU_BACKENDS)
        return dist.new_group(members, timeout=_PATIENCE)

    @property
    def is_last_stage(self) -> bool:
        return self.stage == self.pp - 1

    def tell(self, frame: Frame) -> None:
        """Rank 0: give an order to all others; returns before they have taken it."""
        if self.world == 1:
            return
        payload = pack(frame)
        data = torch.from_numpy(np.frombuffer(payload, dtype=np.uint8).copy())
        size = torch.tensor([len(payload)], dtype=torch.int64)
        for other in range(1, self.world):
            self._send(size, other)
            self._send(data, other)

    def hear(self) -> Frame:
        """Others: the next order of rank 0."""
        return self._receive_frame(0)

    def report(self, frame: Frame) -> None:
        """Others: answer rank 0's order."""
        payload = pack(frame)
        self._send(torch.tensor([len(payload)], dtype=torch.int64), 0)
        self._send(torch.from_numpy(np.frombuffer(payload, dtype=np.uint8).copy()), 0)

    def reports(self) -> list[Frame]:
        """Rank 0: one answer of each other rank."""
        return [self._receive_frame(other) for other in range(1, self.world)]

    def send_activations(self, hidden: torch.Tensor) -> None:
        """To the ranks of the next stage that hear from this one: all ranks of a stage hold the same."""
        given = self._portable(hidden)
        for other in range(self.tp_rank, self.tps[self.stage + 1], self.tp):
            self._send(given, self.firsts[self.stage + 1] + other)

    def receive_activations(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        before = self.stage - 1
        return self._receive(shape, dtype, device, self.firsts[before] + self.tp_rank % self.tps[before])

    def send_logits(self, logits: torch.Tensor) -> None:
        self._send(self._portable(logits), 0)

    def receive_logits(self, shape: Sequence[int], device: torch.device) -> torch.Tensor:
        return self._receive(shape, torch.float32, device, self.firsts[-1])

    def _portable(self, tensor: torch.Tensor) -> torch.Tensor:
        """As the ranks in common can carry it."""
        return tensor.contiguous().cpu() if self._over_cpu else tensor.contiguous()

    def _receive(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device, source: int) -> torch.Tensor:
        taken = torch.empty(tuple(shape), dtype=dtype, device="cpu" if self._over_cpu else device)
        dist.recv(taken, source)
        return taken.to(device)

    def close(self) -> None:
        """Wait for what is being sent, then leave the group."""
        if self.world > 1:
            while self._sending:
                self._sending.popleft()[0].wait()
            dist.destroy_process_group()

    def _receive_frame(self, source: int) -> Frame:
        size = torch.empty(1, dtype=torch.int64)
        dist.recv(size, source)
        data = torch.empty(int(size), dtype=torch.uint8)
        dist.recv(data, source)
        return unpack(data.numpy().tobytes())

    def _send(self, tensor: torch.Tensor, target: int) -> None:
        """Without waiting for the other side; the tensor is kept until it is gone."""
        while self._sending and self._sending[0][0].is_completed():
            self._sending.popleft()
        self._sending.append((dist.isend(tensor, target), tensor))


def alone() -> Ranks:
    """A group of one."""
    return Ranks(0, 1, 1, None, "cpu")
