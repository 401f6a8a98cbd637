"""A key-value cache of slots for transformers models: each row of a batch has its own length.

Layout per layer: (slots, key-value heads, capacity, head size); position p of a sequence is at index p of its slot,
so a batch of the first n slots is a view and nothing is copied. Rows shorter than the longest are covered by the
attention mask, hence see exactly what they would see alone. Capacity grows by doubling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from transformers.cache_utils import Cache, CacheLayerMixin


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer. `aim` is set by the cache before each forward pass."""

    is_sliding = False

    def __init__(self, num_slots: int, capacity: int) -> None:
        super().__init__()
        self.num_slots = num_slots
        self.capacity = capacity
        self.first = 0
        self.positions = torch.empty(0, 0, dtype=torch.long)  # (rows, width), of the tokens being fed
        self.longest = 0  # of the rows, these tokens included

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        def room(like: torch.Tensor) -> torch.Tensor:
            return like.new_zeros(self.num_slots, like.shape[1], self.capacity, like.shape[3])

        self.keys, self.values = room(key_states), room(value_states)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (rows, heads, width, size) at the rows' positions; return the rows' keys and values so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.longest > self.capacity:
            self._grow()
        rows = slice(self.first, self.first + key_states.shape[0])
        seen: list[torch.Tensor] = []
        for kept, new in ((self.keys, key_states), (self.values, value_states)):
            view = cast("torch.Tensor", kept)[rows]
            index = self.positions[:, None, :, None].expand(-1, new.shape[1], -1, new.shape[3])
            view.scatter_(2, index, new)
            seen.append(view[:, :, : self.longest])
        return seen[0], seen[1]

    def move(self, source: int, target: int) -> None:
        """Copy a slot's content over another's."""
        if self.is_initialized:
            for kept in (self.keys, self.values):
                cast("torch.Tensor", kept)[target] = cast("torch.Tensor", kept)[source]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.longest, 0

    def get_seq_length(self) -> int:
        return self.longest - int(self.positions.shape[1])

    def get_max_length(self) -> int:
        return -1

    def _grow(self) -> None:
        while self.capacity < self.longest:
            self.capacity *= 2
        for name in ("keys", "values"):
            old = cast("torch.Tensor", getattr(self, name))
            new = old.new_zeros(self.num_slots, old.shape[1], self.capacity, old.shape[3])
            new[:, :, : old.shape[2]] = old
            setattr(self, name, new)


class SlotCache(Cache):
    """One layer per decoder layer of this process."""

    def __init__(self, num_layers: int, num_slots: int, capacity: int, device: torch.device) -> None:
        self.slot_layers = [SlotLayer(num_slots, capacity) for _ in range(num_layers)]
        self._device = device
        super().__init__(layers=list(self.slot_layers))

    def aim(self, first: int, starts: Sequence[int], width: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Prepare a pass that feeds `width` tokens to each row from its start position.

        Returns the position ids, (rows, width), and the mask, (rows, longest), or None where all rows are equally
        long and the causal rule alone is right.
        """
        begin = torch.tensor(starts, dtype=torch.long, device=self._device)
        positions = begin[:, None] + torch.arange(width, device=self._device)
        longest = max(starts) + width
        for layer in self.slot_layers:
            layer.first, layer.positions, layer.longest = first, positions, longest
        if min(starts) == max(starts):
            return positions, None
        if width != 1:
            raise ValueError(f"rows of different lengths: expected one token each, got {width}")
        return positions, torch.arange(longest, device=self._device)[None, :] <= begin[:, None]

    def move(self, source: int, target: int) -> None:
        for layer in self.slot_layers:
            layer.move(source, target)

    def resize(self, num_slots: int) -> None:
        """Change the number of slots; contents are kept as far as they fit."""
        for layer in self.slot_layers:
            if layer.is_initialized:
                for name in ("keys", "values"):
                    old = cast("torch.Tensor", getattr(layer, name))
                    new = old.new_zeros(num_slots, *old.shape[1:])
                    kept = min(num_slots, old.shape[0])
                    new[:kept] = old[:kept]
                    setattr(layer, name, new)
            layer.num_slots = num_slots

    @property
    def num_bytes(self) -> int:
        tensors = [t for layer in self.slot_layers if layer.is_initialized for t in (layer.keys, layer.values)]
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)
