"""Which blocks of a paged key-value cache are free, after vLLM (SOSP'23). Plain data: no torch.

A block holds the keys and values of `BLOCK_TOKENS` consecutive tokens of one sequence, in every layer. A sequence takes
blocks as it grows and gives them back the moment it ends, so the memory of a cache is what was set, whatever is asked.
Blocks are numbered from 1; what number 0 holds nobody reads: padding is written there.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

BLOCK_TOKENS = 16
_LONG_ENOUGH = 2048  # tokens: a cache holds at least one sequence of this length, if its model does


def blocks_for(num_tokens: int) -> int:
    """Blocks that so many tokens of one sequence take."""
    return -(-num_tokens // BLOCK_TOKENS)


def cache_blocks(*, sequences: int, usual_tokens: int, max_length: int) -> int:
    """Blocks of a replica's cache.

    All its sequences at their usual length (prompt and output that its service declares), and at least one of the
    model's full length, up to 2,048 tokens. Executors and `epara profile` load by this rule alike, so that the memory
    of a profile, which plans reckon with, has the whole cache in it.
    """
    usual = sequences * blocks_for(min(usual_tokens, max_length))
    return max(usual, blocks_for(min(max_length, _LONG_ENOUGH)))


class BlockPool:
    """The free blocks of one cache. The lowest are taken first."""

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise ValueError(f"num_blocks: expected >= 1, got {num_blocks}")
        self._free = list(range(1, num_blocks + 1))  # a heap
        self._taken: set[int] = set()
        self.num_blocks = num_blocks

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def highest_taken(self) -> int:
        return max(self._taken, default=0)

    def take(self, number: int) -> list[int]:
        """So many blocks. Raises ValueError where there are fewer."""
        if number > len(self._free):
            raise ValueError(f"blocks: expected at most {len(self._free)}, which are free, got {number}")
        blocks = [heapq.heappop(self._free) for _ in range(number)]
        self._taken.update(blocks)
        return blocks

    def give(self, blocks: Iterable[int]) -> None:
        """Blocks back. Raises ValueError for one that nobody has."""
        for block in blocks:
            if block not in self._taken:
                raise ValueError(f"block {block}: expected one that is taken")
            self._taken.remove(block)
            if block <= self.num_blocks:
                heapq.heappush(self._free, block)

    def resize(self, num_blocks: int) -> None:
        """More blocks, or fewer: those beyond that are taken leave when they are given back."""
        if num_blocks < 1:
            raise ValueError(f"num_blocks: expected >= 1, got {num_blocks}")
        self._free = [b for b in self._free if b <= num_blocks]
        fresh = range(self.num_blocks + 1, num_blocks + 1)
        self._free += [b for b in fresh if b not in self._taken]
        heapq.heapify(self._free)
        self.num_blocks = num_blocks
