"""The split with the largest flow: chains first, then annealing over everybody's runs, against a proved bound.

A chain gives every layer to one node: for a flow F every node takes as many layers as it can hold at a rate of F, and
the largest F for which these make the model is the best of all chains where links do not bind. Two slow nodes may share
what one fast node cannot take; that is for the annealing, whose moves keep runs end to end. Where the bound meets the
flow the search is over.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from epara_solvers.layers import kernel
from epara_solvers.layers.bound import Prover
from epara_solvers.layers.cover import MARGIN, Certificate, classes_of, work_certificate
from epara_solvers.layers.problem import SINK, SOURCE, Interval, LayerSplit

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

ROUND_STEPS, LONGEST_STEPS = 4_000, 512_000  # of annealing: rounds grow, long ones find more (measured)
LONGEST_PART = 0.02  # of the time: rounds that take more do not grow
HOT, COLD = 0.05, 0.001  # parts of the best flow: temperatures of every round's first step and its last
COVER_WEIGHT = 1.0
FIRST_PART, SEARCH_PART = 0.1, 0.6  # of the time, until which the first bound and the search may run
PROOF_ROUNDS, PROOF_PART = 4, 0.05  # rounds between tries to prove a new flow the best, and the time of each
ENOUGH = 1e-3  # of a bound: how near the lowest provable one is sought


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A split, its flow, and what no split exceeds."""

    intervals: tuple[Interval, ...]  # per node, [start, end)
    flow_tokens_per_s: float
    certificate: Certificate
    rounds: int  # of annealing

    @property
    def bound_tokens_per_s(self) -> float:
        return self.certificate.bound_tokens_per_s

    @property
    def gap(self) -> float:
        """The part of the bound that is not reached."""
        bound = self.bound_tokens_per_s
        return max(0.0, bound - self.flow_tokens_per_s) / bound if bound > 0 else 0.0


@dataclass(slots=True)
class _Runs:
    start: I64  # (N,)
    size: I64  # (N,)

    def copy(self) -> _Runs:
        return _Runs(self.start.copy(), self.size.copy())


class Ground:
    """The problem in arrays."""

    def __init__(self, problem: LayerSplit) -> None:
        num, at = len(problem.nodes), problem.link_rates()
        ids = [n.id for n in problem.nodes]
        self.num_layers = problem.num_layers
        self.most: I64 = np.array([problem.max_layers(i) for i in range(num)], dtype=np.int64)
        self.rates: F64 = np.zeros((num, int(self.most.max())))
        for i, node in enumerate(problem.nodes):
            self.rates[i, : self.most[i]] = node.layers_to_tokens_per_s[: self.most[i]]
        self.source: F64 = np.array([at.get((SOURCE, n), 0.0) for n in ids])
        self.sink: F64 = np.array([at.get((n, SINK), 0.0) for n in ids])
        self.link: F64 = np.array([[at.get((a, b), 0.0) for b in ids] for a in ids])

    def flow(self, runs: _Runs) -> float:
        return float(
            kernel.max_flow(runs.start, runs.size, self.rates, self.source, self.sink, self.link, self.num_layers)
        )

    def anneal(
        self, runs: _Runs, best: _Runs, *, steps: int, scale: float, wanted: float, rng: npt.NDArray[np.uint64]
    ) -> float:
        """Changes `runs`, and `best` where something better was seen; returns the best flow."""
        return float(
            kernel.anneal(
                steps, HOT * scale, COLD * scale, COVER_WEIGHT, wanted, runs.start, runs.size, best.start, best.size,
                self.rates, self.most, self.source, self.sink, self.link, self.num_layers, rng,
            )
        )  # fmt: skip


def solve(
    problem: LayerSplit,
    *,
    time_limit_s: float = 60.0,
    rounds: int | None = None,  # of annealing, instead of the clock: runs with the same seed are then alike
    seed: int = 1,
    clock: Callable[[], float] = time.monotonic,
) -> Split:
    """The best split found, with a bound that anybody can check. Ends early where the two meet."""
    started = clock()
    ground, classes = Ground(problem), classes_of(problem)
    prover = Prover(classes, problem.num_layers)

    def left_s(part: float = 1.0) -> float:
        return math.inf if rounds is not None else started + part * time_limit_s - clock()

    best = chain(ground)
    flow, done = ground.flow(best), 0
    certificate = tightened(prover, work_certificate(classes, problem.num_layers), flow, lambda: left_s(FIRST_PART))
    proved_at = flow
    rng = np.array([seed], dtype=np.uint64)
    runs, steps = best.copy(), ROUND_STEPS
    while not _meet(certificate, flow) and (done < rounds if rounds is not None else left_s(SEARCH_PART) > 0):
        if done % 4 == 3:
            runs = scattered(ground, rng)
        elif done % 2 == 0:
            runs = best.copy()
        scale = max(flow, 1e-3 * certificate.bound_tokens_per_s)
        wanted = min(certificate.bound_tokens_per_s, 1.2 * scale)
        before_s = left_s()
        found = ground.anneal(runs, best, steps=steps, scale=scale, wanted=wanted, rng=rng)
        done += 1
        if done % 4 == 0 and (rounds is not None or before_s - left_s() < LONGEST_PART * time_limit_s):
            steps = min(2 * steps, LONGEST_STEPS)
        flow = max(flow, found)
        if flow > proved_at and done % PROOF_ROUNDS == 0:
            then_s = left_s() - PROOF_PART * time_limit_s
            proof = prover.prove(flow * (1 + MARGIN), seconds_left=lambda then_s=then_s: _since(left_s(), then_s))
            certificate, proved_at = proof or certificate, flow
    certificate = tightened(prover, certificate, flow, left_s)
    starts, ends = best.start.tolist(), (best.start + best.size).tolist()
    intervals = tuple(zip(starts, ends, strict=True))
    problem.check(intervals)
    return Split(intervals=intervals, flow_tokens_per_s=flow, certificate=certificate, rounds=done)


def _since(left_s: float, then_s: float) -> float:
    return math.inf if math.isinf(left_s) else left_s - then_s


def _meet(certificate: Certificate, flow: float) -> bool:
    return certificate.bound_tokens_per_s <= flow * (1 + 2 * MARGIN)


def tightened(prover: Prover, known: Certificate, flow: float, seconds_left: Callable[[], float]) -> Certificate:
    """The flow itself as the bound if it can be proved, else the lowest that is found between, to a part of ENOUGH."""
    if _meet(known, flow):
        return known
    proof = prover.prove(flow * (1 + MARGIN), seconds_left=seconds_left)
    if proof is not None:
        return proof
    low, best = flow, known
    while best.bound_tokens_per_s > low * (1 + ENOUGH) + MARGIN * known.bound_tokens_per_s:
        middle = (low + best.bound_tokens_per_s) / 2
        proof = prover.prove(middle, seconds_left=seconds_left)
        if proof is None:
            low = middle
        else:
            best = proof
    return best


def chain(ground: Ground) -> _Runs:
    """One node a layer, each as long as the best flow allows; who is left over stands beside the first."""
    num, num_layers = len(ground.most), ground.num_layers
    reach: I64 = np.zeros(num, dtype=np.int64)
    for flow in sorted(set(ground.rates.ravel().tolist()), reverse=True):
        enough = ground.rates >= flow
        enough[np.arange(ground.rates.shape[1])[None, :] >= ground.most[:, None]] = False
        reach = np.where(enough.any(axis=1), ground.rates.shape[1] - np.argmax(enough[:, ::-1], axis=1), 0)
        if int(reach.sum()) >= num_layers:
            break
    start, size = np.zeros(num, dtype=np.int64), np.maximum(1, np.minimum(reach, ground.most))
    at = 0
    for i in _in_line(ground, reach):
        if at < num_layers:
            size[i] = min(int(size[i]), num_layers - at)
            start[i], at = at, at + int(size[i])
    return _Runs(start, size)


def _in_line(ground: Ground, reach: I64) -> list[int]:
    """Nodes in an order along wide links, from the source."""
    waiting = [i for i in range(len(reach)) if reach[i] > 0]
    line: list[int] = []
    while waiting:
        width = ground.link[line[-1]] if line else ground.source
        line.append(max(waiting, key=lambda i: (width[i], reach[i])))
        waiting.remove(line[-1])
    return line


def scattered(ground: Ground, rng: npt.NDArray[np.uint64]) -> _Runs:
    """Runs anywhere."""
    draw = np.random.default_rng(int(rng[0]))
    size = draw.integers(1, ground.most + 1)
    start = draw.integers(0, ground.num_layers - size + 1)
    return _Runs(start.astype(np.int64), size.astype(np.int64))
