"""Where to cut a model for a row of stages: a dynamic program over layers.

Let stage i on kind g_i take k layers: it adds pass_i(k) to the loop of a batch, is busy for busy_i(k) per batch, and
may take no more layers than its memory holds. For a bound B on every stage's busy time,

    f_i(l, B) = min over k with busy_i(k) <= B of f_{i-1}(l - k, B) + pass_i(k),      f_0(0, B) = 0

is the least loop time of the first i stages over the first l layers. B runs over all busy times there are, so the
table holds the whole trade-off between the slowest stage (the rate) and the loop (the deadline), for all B at once in
arrays: (B, l). Rows of stages share the tables of their beginnings.

The best split in time is the B of the highest rate whose loop is short enough; for batch services that is exact. For
generation the deadline also depends on the prefill's part of the loop, which the program does not see: splits are
tried in falling order of rate until one is in time, `MAX_TRIED` at most.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from epara_opt.domain.chain import Part, stage_memory, stage_part
from epara_opt.domain.parallel import ParallelConfig
from epara_opt.domain.profile import Profile
from epara_opt.domain.service import Service
from epara_opt.domain.topology import Topology
from epara_opt.errors import InputError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int16]

MAX_TRIED = 8
MAX_BOUNDS = 400  # busy times looked at; of more, evenly chosen ones


@dataclass(frozen=True, slots=True, order=True)
class Kind:
    """What a stage runs on."""

    device_type: str
    tp: int


class Slices(Protocol):
    """What is known of a service's slices."""

    service: Service
    topology: Topology
    kinds: dict[str, list[Kind]]

    def slice(self, kind: Kind, layers: int) -> Profile: ...


@dataclass(frozen=True, slots=True)
class _Row:
    """f_i(l, B) of a row of kinds (B, L + 1), and the last stage's layers that reach it."""

    loop_ms: FloatArray
    taken: IntArray


@dataclass(slots=True)
class Splits:
    """Splits of one service in one configuration, for rows of `config.pp` stages."""

    service: Service
    config: ParallelConfig
    layers: int
    generates: bool
    passes: dict[Kind, FloatArray]  # (L + 1,) by layers; inf where that slice cannot run
    busy: dict[Kind, FloatArray]  # (L + 1,)
    bounds: FloatArray  # (B,) rising
    rows: dict[tuple[Kind, ...], _Row] = field(default_factory=dict)

    @staticmethod
    def of(known: Slices, config: ParallelConfig, num_stages: int) -> Splits:
        """num_stages: config.pp; a stage's memory may depend on it."""
        service, layers = known.service, known.service.model.layers or 0
        passes: dict[Kind, FloatArray] = {}
        busy: dict[Kind, FloatArray] = {}
        generates = False
        for kind in (k for kinds in known.kinds.values() for k in kinds):
            passes[kind], busy[kind] = np.full(layers + 1, np.inf), np.full(layers + 1, np.inf)
            memory = known.topology.device_types[kind.device_type].memory_bytes
            for k in range(1, layers - num_stages + 2):
                try:
                    profile = known.slice(kind, k)
                    generates |= profile.generates
                    if stage_memory(profile, config) > memory:
                        continue
                    part = stage_part(service, profile, config)
                except InputError:
                    continue
                passes[kind][k], busy[kind][k] = part.pass_ms, part.busy_ms
        every = np.unique(np.concatenate([b[np.isfinite(b)] for b in busy.values()] or [np.zeros(0)]))
        if len(every) > MAX_BOUNDS:
            every = every[np.unique(np.linspace(0, len(every) - 1, MAX_BOUNDS).round().astype(np.int64))]
        return Splits(service, config, layers, generates, passes, busy, every)

    def best(self, kinds: Sequence[Kind], hops: Sequence[Part], slack_ms: float) -> Iterator[tuple[int, ...]]:
        """First layers of the stages, for splits that may answer within the slack, the highest rate first."""
        if not len(self.bounds):
            return
        row = self._row(tuple(kinds))
        loop_ms = row.loop_ms[:, self.layers] + sum(h.pass_ms for h in hops)
        slowest_ms = np.maximum(self.bounds, max(h.busy_ms for h in hops))
        if self.generates:
            per_batch_ms = np.maximum(loop_ms, self.config.pp * slowest_ms)
            in_time = np.isfinite(loop_ms)
            if self.service.ttft_ms is None:
                in_time &= per_batch_ms <= slack_ms
        else:
            fps = self.service.fps
            accumulate_ms = 1000.0 * (self.config.frames - 1) / fps if fps else 0.0
            per_batch_ms = slowest_ms
            in_time = accumulate_ms + 2.0 * loop_ms <= slack_ms * (1.0 + 1e-12)
        order = np.lexsort((loop_ms, np.where(in_time, per_batch_ms, np.inf)))
        seen: set[tuple[int, ...]] = set()
        for b in order[: int(in_time.sum())].tolist():
            cuts = self._cuts(tuple(kinds), b)
            if cuts not in seen:
                seen.add(cuts)
                yield cuts
                if len(seen) == MAX_TRIED:
                    return

    def _row(self, kinds: tuple[Kind, ...]) -> _Row:
        known = self.rows.get(kinds)
        if known is not None:
            return known
        shape = (len(self.bounds), self.layers + 1)
        before = np.full(shape, np.inf)
        if len(kinds) == 1:
            before[:, 0] = 0.0
        else:
            before = self._row(kinds[:-1]).loop_ms
        loop_ms, taken = np.full(shape, np.inf), np.zeros(shape, dtype=np.int16)
        for k in np.flatnonzero(np.isfinite(self.passes[kinds[-1]])).tolist():
            allowed = int(np.searchsorted(self.bounds, self.busy[kinds[-1]][k]))  # from this bound on
            found = before[allowed:, : self.layers + 1 - k] + self.passes[kinds[-1]][k]
            better = found < loop_ms[allowed:, k:]
            loop_ms[allowed:, k:][better] = found[better]
            taken[allowed:, k:][better] = k
        self.rows[kinds] = _Row(loop_ms, taken)
        return self.rows[kinds]

    def _cuts(self, kinds: tuple[Kind, ...], bound: int) -> tuple[int, ...]:
        """First layers, walked back from the last stage."""
        firsts: list[int] = []
        end = self.layers
        for num in range(len(kinds), 0, -1):
            end -= int(self._row(kinds[:num]).taken[bound, end])
            firsts.append(end)
        return tuple(reversed(firsts))
