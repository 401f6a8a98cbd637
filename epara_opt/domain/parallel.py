"""Parallel configurations: how one replica spreads over devices and batches its work."""

from __future__ import annotations

from dataclasses import dataclass

from epara_opt.errors import InputError, Violation


@dataclass(frozen=True, slots=True, order=True)
class ParallelConfig:
    """EPARA's operators of one replica. DP is a stream's routes over replicas; MT is sharing a group.

    tp      tensor-parallel degree, inside one server (MP)
    pp      pipeline stages (MP)
    batch   requests, or streams' frame groups, served in one batch; concurrent sequences for generation (BS)
    frames  consecutive frames of one stream in one batch (MF); 1 unless frequency-sensitive
    """

    tp: int = 1
    pp: int = 1
    batch: int = 1
    frames: int = 1

    def __post_init__(self) -> None:
        for key in ("tp", "pp", "batch", "frames"):
            value = getattr(self, key)
            if value < 1:
                raise InputError(Violation(path=key, law="expected >= 1", value=str(value)))

    @property
    def devices(self) -> int:
        return self.tp * self.pp

    @property
    def items(self) -> int:
        """Rows of the batched tensor."""
        return self.batch * self.frames

    def __str__(self) -> str:
        return f"tp{self.tp} pp{self.pp} b{self.batch} f{self.frames}"
