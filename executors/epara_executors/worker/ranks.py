"""The processes of one device group and how they talk: rank = stage * tp + position inside the stage.

Rank 0 alone speaks to the agent. It tells the others what to do in frames (no pickle), which they hear in order;
activations flow from stage to stage, logits from the last stage to rank 0. gloo carries it on
CPUs, gloo for the frames and NCCL for the tensors on GPUs.
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

from epara_executors.worker.frames import Frame
from epara_executors.worker.wire import pack, unpack

# A follower waits for orders for as long as its group is idle. Death is noticed by closed connections, not by time.
_PATIENCE = timedelta(days=365)


class Ranks:
    """This process's place in its group. A group of one needs no communication and starts none."""

    def __init__(self, rank: int, tp: int, pp: int, rendezvous: Path | None, device_kind: str) -> None:
        self.rank, self.tp, self.pp = rank, tp, pp
        self.stage, self.tp_rank = divmod(rank, tp)
        self.tp_group: Any = None
        self._sending: deque[tuple[Any, torch.Tensor]] = deque()
        if self.world == 1:
            return
        if rendezvous is None:
            raise ValueError(f"rendezvous: expected a file for a group of {self.world} ranks, got none")
        if sys.platform == "linux":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # ranks of one server: nothing leaves the machine
        backend = "gloo" if device_kind == "cpu" else "cpu:gloo,cuda:nccl"
        dist.init_process_group(
            backend, init_method=rendezvous.as_uri(), rank=rank, world_size=self.world, timeout=_PATIENCE
        )
        for stage in range(pp):
            members = list(range(stage * tp, (stage + 1) * tp))
            group = dist.new_group(members, timeout=_PATIENCE) if pp > 1 else dist.group.WORLD
            if stage == self.stage:
                self.tp_group = group

    @property
    def world(self) -> int:
        return self.tp * self.pp

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
        self._send(hidden.contiguous(), self.rank + self.tp)

    def receive_activations(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        hidden = torch.empty(tuple(shape), dtype=dtype, device=device)
        dist.recv(hidden, self.rank - self.tp)
        return hidden

    def send_logits(self, logits: torch.Tensor) -> None:
        self._send(logits.contiguous(), 0)

    def receive_logits(self, shape: Sequence[int], device: torch.device) -> torch.Tensor:
        logits = torch.empty(tuple(shape), dtype=torch.float32, device=device)
        dist.recv(logits, (self.pp - 1) * self.tp)
        return logits

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
