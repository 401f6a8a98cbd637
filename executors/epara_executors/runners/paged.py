"""A paged key-value cache for transformers models: each row of a batch has its own length and its own blocks.

Layout per layer: (1 + blocks, BLOCK_TOKENS, key-value heads, head size); a row's table names its blocks in order, so
position p is in block `table[p // BLOCK_TOKENS]` at `p % BLOCK_TOKENS`. Prompts attend to the keys they bring; steps
gather the blocks of their rows. What is not a sequence's own is covered by the mask: it sees what it would see alone.
The whole cache is there, and was written to, from the first pass on: what it takes can be measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from epara_executors.worker.blocks import BLOCK_TOKENS, blocks_for

_Desks = dict[tuple[int, torch.Size], torch.Tensor]  # by 0 for keys or 1 for values, and the shape of a block
_DESK_SIZE = 2  # times a layer's blocks: room to gather rows of different lengths, padded to the longest


@dataclass(slots=True)
class _Aim:
    """Where the tokens of a pass go, and which the rows see."""

    write: torch.Tensor  # (tokens,) places: block * BLOCK_TOKENS + offset
    read: torch.Tensor | None  # (rows * blocks,) blocks of each row in order; None: prompts, which see this pass alone
    num_rows: int
    width: int
    longest: int  # of the rows, these tokens included
    desks: _Desks  # where blocks are gathered; layers of one shape use the same in turn


class PagedLayer(CacheLayerMixin):
    """Keys and values of one layer. The cache aims it before each forward pass."""

    is_sliding = False

    def __init__(self, num_blocks: int) -> None:
        super().__init__()
        self.num_blocks = num_blocks
        self.aim: _Aim | None = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.keys, self.values = self._room(key_states), self._room(value_states)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (rows, heads, width, size) where it was aimed; return the rows' keys and values so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        aim = self.aimed
        seen: list[torch.Tensor] = []
        for i, (kept, new) in enumerate(((self.keys, key_states), (self.values, value_states))):
            blocks = cast("torch.Tensor", kept)
            blocks.flatten(0, 1).index_copy_(0, aim.write, new.transpose(1, 2).flatten(0, 1))
            if aim.read is None:
                seen.append(new)
            else:
                rows = torch.index_select(blocks, 0, aim.read, out=self._desk(i, blocks, len(aim.read)))
                seen.append(rows.view(aim.num_rows, -1, *blocks.shape[2:])[:, : aim.longest].transpose(1, 2))
        return seen[0], seen[1]

    def _desk(self, index: int, like: torch.Tensor, num_blocks: int) -> torch.Tensor:
        """Room for so many blocks that nobody needs any more: fresh memory would cost more than the copy."""
        desks, key = self.aimed.desks, (index, like.shape[1:])
        if key not in desks:
            desks[key] = like.new_empty(_DESK_SIZE * self.num_blocks, *like.shape[1:]).zero_()
        return desks[key][:num_blocks]

    def resize(self, num_blocks: int) -> None:
        """Another number of blocks; those that both have keep their content."""
        self.num_blocks = num_blocks
        if not self.is_initialized:
            return
        for name in ("keys", "values"):
            old = cast("torch.Tensor", getattr(self, name))
            new = old.new_empty(1 + num_blocks, *old.shape[1:]).zero_()
            kept = min(len(new), len(old))
            new[:kept] = old[:kept]
            setattr(self, name, new)

    @property
    def aimed(self) -> _Aim:
        if self.aim is None:
            raise ValueError("paged cache: expected to be aimed before a pass")
        return self.aim

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.aimed.longest, 0

    def get_seq_length(self) -> int:
        return self.aim.longest - self.aim.width if self.aim is not None else 0

    def get_max_length(self) -> int:
        return -1

    def _room(self, like: torch.Tensor) -> torch.Tensor:
        # Written to at once: memory that was only promised could neither be measured nor relied on.
        return like.new_empty(1 + self.num_blocks, BLOCK_TOKENS, like.shape[1], like.shape[3]).zero_()


class PagedCache(Cache):
    """One layer per decoder layer of this process."""

    def __init__(self, num_layers: int, num_blocks: int, device: torch.device) -> None:
        self.paged_layers = [PagedLayer(num_blocks) for _ in range(num_layers)]
        self.num_blocks = num_blocks
        self._device = device
        self._desks: _Desks = {}
        super().__init__(layers=list(self.paged_layers))

    def aim_prompts(
        self, tables: Sequence[Sequence[int]], lengths: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Prepare a pass of whole prompts, one after the other in a single row of T tokens.

        Returns
        -------
        Position ids, (1, T), and which tokens each sees: its own prompt's up to itself, (1, 1, T, T) booleans; None for
        one prompt, where the causal rule alone is right.
        """
        places = torch.arange(max(lengths), device=self._device)
        positions = torch.cat([places[:n] for n in lengths])
        blocks = [t[p // BLOCK_TOKENS] for t, n in zip(tables, lengths, strict=True) for p in range(n)]
        write = torch.tensor(blocks, device=self._device) * BLOCK_TOKENS + positions % BLOCK_TOKENS
        self._aim(write, None, 1, len(positions), 0)
        if len(lengths) == 1:
            return positions[None, :], None
        counts = torch.tensor(lengths, device=self._device)
        owners = torch.arange(len(lengths), device=self._device).repeat_interleave(counts)
        seen = (owners[:, None] == owners[None, :]) & (positions[None, :] <= positions[:, None])
        return positions[None, :], seen[None, None]

    def aim_steps(
        self, tables: Sequence[Sequence[int]], starts: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Prepare a pass of one token for each row, at its position. Of no more rows than `rows_at_once` says.

        Returns
        -------
        Position ids, (rows, 1), and which keys each row has, (rows, longest); None where all rows have all.
        """
        longest = max(starts) + 1
        num_blocks = blocks_for(longest)
        padded = torch.tensor([[*t[:num_blocks], *[0] * (num_blocks - len(t))] for t in tables], device=self._device)
        positions = torch.tensor(starts, device=self._device)[:, None]
        write = padded.gather(1, positions // BLOCK_TOKENS) * BLOCK_TOKENS + positions % BLOCK_TOKENS
        self._aim(write.flatten(), padded.flatten(), len(starts), 1, longest - 1)
        if min(starts) == max(starts):
            return positions, None
        return positions, torch.arange(longest, device=self._device)[None, :] <= positions

    def rows_at_once(self, lengths: Sequence[int]) -> list[list[int]]:
        """Rows of a step in parts, the longest first. Padded to its longest row each has room on the desks.

        One long sequence beside many short ones would else need room for as many long ones, which nobody set.
        """
        parts: list[list[int]] = []
        most = 0
        for row in sorted(range(len(lengths)), key=lambda r: -lengths[r]):
            if not parts or len(parts[-1]) == most:
                parts.append([])
                most = _DESK_SIZE * self.num_blocks // blocks_for(lengths[row])
            parts[-1].append(row)
        return parts

    def _aim(self, write: torch.Tensor, read: torch.Tensor | None, num_rows: int, width: int, before: int) -> None:
        aim = _Aim(write=write, read=read, num_rows=num_rows, width=width, longest=before + width, desks=self._desks)
        for layer in self.paged_layers:
            layer.aim = aim

    def resize(self, num_blocks: int) -> None:
        """More blocks, or fewer; content beyond them is lost."""
        self.num_blocks = num_blocks
        for key, desk in self._desks.items():
            self._desks[key] = desk.new_empty(_DESK_SIZE * num_blocks, *desk.shape[1:]).zero_()
        for layer in self.paged_layers:
            layer.resize(num_blocks)

    @property
    def num_bytes(self) -> int:
        tensors = [t for layer in self.paged_layers if layer.is_initialized for t in (layer.keys, layer.values)]
        return sum(t.numel() * t.element_size() for t in (*tensors, *self._desks.values()) if t is not None)
