"""Measuring models on this machine's devices: the rows that the planner's curves are made of.

Every number comes from a real worker process, started and loaded as an agent would, running the real runner on
synthetic requests of typical size: full batches for one-pass tasks; prompts alone and steps of a full batch for
generation, in the middle of the output asked for. The median of repeats counts, and its 95 % confidence interval
(`confidence`) is its error. A point is settled as soon as that is within 5 %, or its share of the time budget is spent.
Which sizes are measured is given, or found by `curve_search` until the curve between them is known.
"""

from __future__ import annotations

import math
import platform
import shlex
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from epara_executors.confidence import Estimate, estimate
from epara_executors.curve_search import CurveSearch
from epara_executors.worker.frames import Frame
from epara_executors.worker.launch import Launcher, WorkerHandle
from epara_executors.worker.wire import Closed, Wire
from epara_opt.domain.profile import ProfileRow
from epara_opt.errors import EparaError

GENERATION = "text-generation"
SETTLED = 0.05  # relative error at which a point is measured no more
MAX_SIZES = 16  # of one curve that is searched
_ROUND = 3  # repeats between looks at the clock
_MAX_SAMPLES = 60  # of one point, at a time
_SHARES = 8  # a searched curve's sizes get one of so many parts of the budget at a time


class ProfileError(EparaError):
    """A model could not be measured; the message says in which shape and why."""


class UnsupportedError(ProfileError):
    """The model cannot be loaded in this shape: no rows, hence no plan that uses it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a measurement is, for whoever watches."""

    text: str
    done: int = 0  # points of this model and shape
    total: int = 0  # as far as is known; 0: not yet
    is_note: bool = False  # worth keeping when the next one has come


Tell = Callable[[Progress], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """What to measure of one model."""

    source: str
    task: str
    rows: tuple[int, ...]  # ascending
    prompt_tokens: tuple[int, ...]  # ascending; none unless it generates
    output_tokens: int
    budget_s: float
    tolerance: float | None  # of the curve between the least and the most rows; None: measure the rows given
    clock: Callable[[], float]

    @property
    def generates(self) -> bool:
        return self.task == GENERATION

    @property
    def is_searched(self) -> bool:
        return self.tolerance is not None and self.rows[0] < self.rows[-1]


def profile_model(
    source: str,
    task: str,
    device_type: str,
    *,
    model_root: Path,
    shapes: Sequence[tuple[int, int]] = ((1, 1),),
    batches: Sequence[int] = (1, 2, 4, 8),
    frames: Sequence[int] = (1,),
    prompt_tokens: Sequence[int] = (16, 64, 256),
    output_tokens: int = 64,
    budget_s: float = 4.0,
    model: str = "",
    device_kind: str = "cpu",
    command: Sequence[str] = (),
    launcher: Launcher | None = None,
    clock: Callable[[], float] = time.monotonic,
    now: datetime | None = None,
    tolerance: float | None = None,
    progress: Tell | None = None,
) -> Iterator[ProfileRow]:
    """Measure one model, shape by shape; rows come as soon as they are settled.

    Parameters
    ----------
    model_root
        Where `source` is looked for before it is taken as a hub id.
    shapes
        (tp, pp). One that the model cannot be loaded in gets no rows, and `progress` is told why.
    batches, frames
        Every product is measured once, as so many rows of one batch.
    prompt_tokens, output_tokens
        Generation only. Steps are measured at the longest prompt and half the output.
    budget_s
        Seconds of measuring per shape once the model is loaded, shared evenly by its points.
    model
        The name in the catalogue; the source if empty.
    tolerance
        Measure only as many sizes between the smallest and the largest product as it takes until the curve is known
        within this (`curve_search`), at most MAX_SIZES and as long as the budget lasts; `progress` is told what was
        reached. None: measure every product.
    command
        What the user ran, for the rows' source text.
    launcher
        A started one over the same model root, to save its start where many models are measured.

    Raises
    ------
    ProfileError
        When the model cannot be loaded or its worker ends; the worker's own reason.
    """
    if tolerance is not None and not 0 < tolerance < 1:
        raise ProfileError(f"tolerance: expected between 0 and 1, got {tolerance:g}")
    wanted = _Task(
        source=source,
        task=task,
        rows=tuple(sorted({b * f for b in batches for f in frames})),
        prompt_tokens=tuple(sorted(set(prompt_tokens))) if task == GENERATION else (),
        output_tokens=output_tokens,
        budget_s=budget_s,
        tolerance=tolerance,
        clock=clock,
    )
    if not wanted.rows or wanted.rows[0] < 1:
        raise ProfileError(f"batches: expected at least one, each >= 1, got {list(batches)} x {list(frames)}")
    origin = _source_text(now or datetime.now(UTC), device_kind, command)
    tell: Tell = progress or (lambda _: None)
    with _started(launcher, model_root) as started:
        for tp, pp in shapes:
            name = f"{source} on {device_type} tp{tp} pp{pp}"
            tell(Progress(text=f"{name}: loading"))

            def named(step: Progress, name: str = name) -> None:
                tell(replace(step, text=f"{name}: {step.text}"))

            try:
                with _worker(started, tp, pp, device_kind) as bench:
                    for point in bench.measure(wanted, named):
                        yield ProfileRow(
                            model=model or source, device_type=device_type, tp=tp, pp=pp, source=origin, **point
                        )
            except UnsupportedError as error:
                tell(Progress(text=f"{name}: skipped, {error}", is_note=True))


@dataclass(frozen=True, slots=True)
class _Loaded:
    memory_bytes: int
    load_s: float


_Point = tuple[int, Estimate, _Loaded]  # rows, milliseconds, memory and load time


def _middle(wanted: _Task) -> int:
    """Tokens that stand before the step that is measured."""
    return max(wanted.prompt_tokens, default=0) + wanted.output_tokens // 2


def _finite(error: float) -> float | None:
    return error if math.isfinite(error) else None


class _Bench:
    """A worker under measurement, seen from its agent's side."""

    def __init__(self, wire: Wire, handle: WorkerHandle, group: Mapping[str, Any]) -> None:
        self._wire = wire
        self._handle = handle
        self._group = group
        self._replica = ""
        self._rows = 0
        self._loaded: _Loaded | None = None

    def measure(self, wanted: _Task, tell: Tell) -> Iterator[dict[str, Any]]:
        """The fields of one row after another."""
        prompts = wanted.prompt_tokens
        num_sizes = _SHARES if wanted.is_searched else len(wanted.rows)
        share_s = wanted.budget_s / (len(prompts) + num_sizes)
        first = self._load(wanted, wanted.rows[0])
        for done, width in enumerate(prompts):
            tell(Progress(text=f"prompt of {width} tokens", done=done, total=len(prompts) + num_sizes))
            made = estimate(self._sample([], 1, width, 0, wanted.clock, share_s, SETTLED))
            point = {"prefill_ms": made.median, "error": _finite(made.error), "prompt_tokens": width, "batch": 1}
            yield {**point, "memory_bytes": first.memory_bytes, "load_s": first.load_s}
        found = self._search(wanted, tell, share_s) if wanted.is_searched else self._each(wanted, tell, share_s)
        memory_bytes = 0
        for rows, made, loaded in found:
            memory_bytes = max(memory_bytes, loaded.memory_bytes)  # a larger batch never needs less
            figure = {"decode_step_ms" if wanted.generates else "latency_ms": made.median}
            point = {**figure, "error": _finite(made.error), "batch": rows}
            yield {**point, "memory_bytes": memory_bytes, "load_s": first.load_s}

    def _each(self, wanted: _Task, tell: Tell, share_s: float) -> Iterator[_Point]:
        """All rows that were asked for, ascending."""
        before = len(wanted.prompt_tokens)
        for index, rows in enumerate(wanted.rows):
            text = f"batch {rows} of {wanted.rows[-1]}"
            tell(Progress(text=text, done=before + index, total=before + len(wanted.rows)))
            loaded = self._load(wanted, rows)
            samples = self._sample([], rows, 1, _middle(wanted), wanted.clock, share_s, SETTLED)
            yield rows, estimate(samples), loaded

    def _search(self, wanted: _Task, tell: Tell, share_s: float) -> list[_Point]:
        """As many rows as it takes until the curve is known, ascending."""
        tolerance = wanted.tolerance or SETTLED
        ends_at = wanted.clock() + share_s * _SHARES
        search = CurveSearch(wanted.rows[0], wanted.rows[-1], tolerance=tolerance)
        samples: dict[int, list[float]] = {}
        loads: dict[int, _Loaded] = {}
        before = len(wanted.prompt_tokens)
        why = "known"
        while (rows := search.next_size()) is not None:
            is_whole = search.bound < math.inf
            if is_whole and wanted.clock() >= ends_at:
                why = "the budget is spent"
                break
            if rows not in samples and len(samples) >= MAX_SIZES:
                why = f"{MAX_SIZES} sizes are measured"
                break
            within = f", known within {search.bound:.1%} so far" if is_whole else ""
            total = before + max(_SHARES, len(samples) + 1)
            tell(Progress(text=f"batch {rows} of {wanted.rows[-1]}{within}", done=before + len(samples), total=total))
            loads[rows] = self._load(wanted, rows)
            taken = samples.setdefault(rows, [])
            # An interval adds to the bound of both gaps beside it, so that it must be narrower than the bound.
            self._sample(taken, rows, 1, _middle(wanted), wanted.clock, share_s, tolerance / 2)
            search.add(rows, estimate(taken))
        said = f"{len(samples)} sizes of {wanted.rows[0]} to {wanted.rows[-1]}: known within {search.bound:.1%}"
        said += "" if why == "known" else f"; stopped because {why}"
        tell(Progress(text=said, done=before + len(samples), total=before + len(samples), is_note=True))
        return [(rows, estimate(samples[rows]), loads[rows]) for rows in search.sizes]

    def _load(self, wanted: _Task, rows: int) -> _Loaded:
        """Load afresh for this batch, so that memory is that of this batch. Kept if it is loaded already."""
        if self._loaded is not None and self._rows == rows:
            return self._loaded
        self._replica, self._rows = f"{wanted.source}@b{rows}", rows
        tenant = {
            "replica": self._replica,
            "source": wanted.source,
            "task": wanted.task,
            "batch": rows,
            "frames": 1,
            "prompt_tokens": max(wanted.prompt_tokens, default=0),
            "output_tokens": wanted.output_tokens,
        }
        for tenants in ([], [tenant]):  # the empty load frees the batch before
            self._wire.write(Frame("load", {**self._group, "tenants": tenants}))
            loaded = self._until("ready")
        self._loaded = _Loaded(int(loaded["memory_bytes"]), float(loaded["load_s"]))
        return self._loaded

    def _sample(
        self,
        taken: list[float],
        rows: int,
        width: int,
        start: int,
        clock: Callable[[], float],
        share_s: float,
        target: float,
    ) -> list[float]:
        """Add milliseconds to those taken, round by round, until the median's error is the target or time is up."""
        ends_at = clock() + share_s
        most = len(taken) + _MAX_SAMPLES
        while len(taken) < most:
            fields = {"replica": self._replica, "rows": rows, "repeats": _ROUND, "width": width, "start": start}
            self._wire.write(Frame("measure", fields))
            taken += [float(ms) for ms in self._until("measured")["samples_ms"]]
            if estimate(taken).error <= target or clock() >= ends_at:
                break
        return taken

    def _until(self, last: str) -> dict[str, Any]:
        """Fields of the frames up to the one of this type, together."""
        seen: dict[str, Any] = {}
        try:
            while True:
                frame = self._wire.read()
                if frame.type == "failed":
                    if frame.fields.get("unsupported"):
                        raise UnsupportedError(str(frame.fields["detail"]))
                    raise ProfileError(str(frame.fields["detail"]))
                seen.update(frame.fields)
                if frame.type == last:
                    return seen
        except Closed as error:
            status = self._handle.wait(5.0)
            raise ProfileError(f"{self._replica}: the worker ended with status {status}") from error


@contextmanager
def _started(launcher: Launcher | None, model_root: Path) -> Generator[Launcher, None, None]:
    """The launcher given, or one of our own while it is needed."""
    if launcher is not None:
        yield launcher
        return
    own = Launcher(model_root)
    own.start()
    try:
        yield own
    finally:
        own.close()


@contextmanager
def _worker(launcher: Launcher, tp: int, pp: int, device_kind: str) -> Generator[_Bench, None, None]:
    folder = tempfile.mkdtemp(prefix="epara-profile-")
    path = str(Path(folder) / "worker")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(path)
            listener.listen(1)
            devices = list(range(tp * pp))
            group = {"group": "profile", "device_kind": device_kind, "devices": devices, "tp": tp, "pp": pp}
            handle = launcher.launch(group, path)
            listener.settimeout(60.0)
            try:
                connection, _ = listener.accept()
            except TimeoutError as error:
                handle.kill()
                raise ProfileError(f"tp{tp} pp{pp}: the worker did not connect within 60 s") from error
            with connection:
                connection.settimeout(None)
                yield _Bench(Wire(connection), handle, group)
            handle.wait(10.0)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _source_text(now: datetime, device_kind: str, command: Sequence[str]) -> str:
    device = platform.processor() or platform.machine()
    ran = f", `{shlex.join(command)}`" if command else ""
    return (
        f"measured {now.date().isoformat()} on {device_kind} ({device}, {platform.system()}), "
        f"torch {version('torch')}, transformers {version('transformers')}{ran}"
    )
