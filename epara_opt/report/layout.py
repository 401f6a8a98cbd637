"""Where servers stand on a map: by latitude and longitude when all have them, else by springs. Deterministic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import networkx as nx
import numpy as np
import numpy.typing as npt

from epara_opt.domain.topology import Topology

FloatArray = npt.NDArray[np.float64]

_MOST_SPRINGS = 499  # networkx needs SciPy for springs between more nodes; beyond, they stand on a circle
_MOST_PUSHED = 1500  # beyond, every pair's distance would take too much memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Points in a box of width x height, y downwards."""

    points: dict[str, tuple[float, float]]
    width: float
    height: float
    is_geographic: bool


def place(topology: Topology, *, width: float = 1000.0, margin: float = 56.0, apart: float | None = None) -> Layout:
    """Lay the servers out. `apart` is the least distance between two of them, as far as the box allows."""
    names = list(topology.servers)
    located = [s.location for s in topology.servers.values() if s.location is not None]
    is_geographic = len(located) == len(names) and len({(p.lat, p.lon) for p in located}) > 1
    if is_geographic:
        middle = math.radians(sum(p.lat for p in located) / len(located))
        xy = np.array([(p.lon * math.cos(middle), -p.lat) for p in located], dtype=np.float64)
    else:
        xy = _springs(topology, names)
    span = xy.max(axis=0) - xy.min(axis=0)  # (2,)
    ratio = float(span[1] / span[0]) if span[0] > 0 else 1.0
    height = round(width * min(0.75, max(0.34, ratio if is_geographic else 0.5)))
    inner = np.array([width - 2 * margin, height - 2 * margin])
    if is_geographic:  # one scale for both axes, so that distances stay true
        scale = float(min(i / s for i, s in zip(inner, span, strict=True) if s > 0))
        scaled = (xy - xy.min(axis=0)) * scale
        points = scaled + margin + (inner - span * scale) / 2
    else:
        stretch = np.divide(inner, span, out=np.zeros(2), where=span > 1e-9)
        points = (xy - xy.min(axis=0)) * stretch + margin + np.where(span > 1e-9, 0.0, inner / 2)
    gap = apart if apart is not None else _spacing(len(names), width, float(height))
    points = _pushed_apart(points, gap, margin, width, float(height))
    return Layout(
        points={n: (float(x), float(y)) for n, (x, y) in zip(names, points, strict=True)},
        width=width,
        height=float(height),
        is_geographic=is_geographic,
    )


def _spacing(num_nodes: int, width: float, height: float) -> float:
    return min(110.0, 0.55 * math.sqrt(width * height / max(1, num_nodes)))


def _springs(topology: Topology, names: Sequence[str]) -> FloatArray:
    """Short round trips pull together; seeded, so the same edge is always drawn alike."""
    if len(names) == 1:
        return np.zeros((1, 2))
    graph: nx.Graph[str] = nx.Graph()
    graph.add_nodes_from(names)
    for link in topology.links:
        graph.add_edge(*link.between, weight=1.0 / math.sqrt(1.0 + link.rtt_ms))
    if len(names) > _MOST_SPRINGS:
        positions = nx.circular_layout(graph)
    else:
        positions = nx.spring_layout(graph, seed=7, iterations=120, k=1.6 / math.sqrt(len(names)))
    table = cast("dict[str, FloatArray]", positions)
    return np.array([table[n] for n in names], dtype=np.float64)


def _pushed_apart(points: FloatArray, gap: float, margin: float, width: float, height: float) -> FloatArray:
    """Move near neighbours away from each other, each half of what is missing, for a bounded number of rounds.

    (N, 2) in and out. Points that coincide part along directions fixed by their index.
    """
    n = len(points)
    if not 2 <= n <= _MOST_PUSHED:
        return points
    angle = np.arange(n) * 2.399963  # the golden angle: no two alike
    out = points + 0.01 * np.column_stack((np.cos(angle), np.sin(angle)))
    low, high = np.array([margin, margin]), np.array([width - margin, height - margin])
    for _ in range(60):
        delta = out[:, None, :] - out[None, :, :]  # (N, N, 2)
        distance = np.hypot(delta[..., 0], delta[..., 1])
        np.fill_diagonal(distance, np.inf)
        missing = np.maximum(0.0, gap - distance)
        if not missing.any():
            break
        push = delta * (0.5 * missing / np.maximum(distance, 1e-9))[..., None]
        out = np.clip(out + np.clip(push.sum(axis=1), -gap / 2, gap / 2), low, high)
    return out
