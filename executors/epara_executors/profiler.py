"""Measuring models on this machine's devices: the rows that the planner's curves are made of.

Every number comes from a real worker process, started and loaded as an agent would, running the real runner on
synthetic requests of typical size: full batches for one-pass tasks; prompts alone and steps of a full batch for
generation, in the middle of the output asked for. The median of repeats counts. A point is settled as soon as the
medians of two successive rounds agree within 5 %, or its share of the time budget is spent.
"""

from __future__ import annotations

import platform
import shlex
import shutil
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from epara_executors.worker.frames import Frame
from epara_executors.worker.launch import Launcher, WorkerHandle
from epara_executors.worker.wire import Closed, Wire
from epara_opt.domain.profile import ProfileRow
from epara_opt.errors import EparaError

GENERATION = "text-generation"
SETTLED = 0.05  # relative difference of two successive rounds
_ROUND = 3  # repeats between looks at the clock
_MAX_ROUNDS = 10


class ProfileError(EparaError):
    """A model could not be measured; the message says in which shape and why."""


class UnsupportedError(ProfileError):
    """The model cannot be loaded in this shape: no rows, hence no plan that uses it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Points:
    """What to measure."""

    rows: tuple[int, ...]
    prompt_tokens: tuple[int, ...]
    output_tokens: int
    budget_s: float


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
    progress: Callable[[str], None] | None = None,
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
    command
        What the user ran, for the rows' source text.
    launcher
        A started one over the same model root, to save its start where many models are measured.

    Raises
    ------
    ProfileError
        When the model cannot be loaded or its worker ends; the worker's own reason.
    """
    points = _Points(
        rows=tuple(sorted({b * f for b in batches for f in frames})),
        prompt_tokens=tuple(sorted(set(prompt_tokens))),
        output_tokens=output_tokens,
        budget_s=budget_s,
    )
    if not points.rows or points.rows[0] < 1:
        raise ProfileError(f"batches: expected at least one, each >= 1, got {list(batches)} x {list(frames)}")
    origin = _source_text(now or datetime.now(UTC), device_kind, command)
    tell = progress or (lambda _: None)
    with _started(launcher, model_root) as started:
        for tp, pp in shapes:
            name = f"{source} on {device_type} tp{tp} pp{pp}"
            tell(f"{name}: loading")
            try:
                with _worker(started, tp, pp, device_kind) as bench:
                    for point in bench.measure(source, task, points, clock, lambda what, n=name: tell(f"{n}: {what}")):
                        yield ProfileRow(
                            model=model or source, device_type=device_type, tp=tp, pp=pp, source=origin, **point
                        )
            except UnsupportedError as error:
                tell(f"{name}: skipped, {error}")


@dataclass(frozen=True, slots=True)
class _Loaded:
    memory_bytes: int
    load_s: float


class _Bench:
    """A worker under measurement, seen from its agent's side."""

    def __init__(self, wire: Wire, handle: WorkerHandle, group: Mapping[str, Any]) -> None:
        self._wire = wire
        self._handle = handle
        self._group = group
        self._replica = ""

    def measure(
        self, source: str, task: str, points: _Points, clock: Callable[[], float], tell: Callable[[str], None]
    ) -> Iterator[dict[str, Any]]:
        """The fields of one row after another."""
        generates = task == GENERATION
        loads = {rows: self._load(source, task, rows, points) for rows in points.rows}
        load_s = loads[points.rows[0]].load_s
        share_s = points.budget_s / (len(points.rows) + (len(points.prompt_tokens) if generates else 0))
        for width in points.prompt_tokens if generates else ():
            tell(f"prompt of {width} tokens")
            median_ms = self.median_ms(1, width, 0, clock, share_s)
            memory_bytes = loads[points.rows[0]].memory_bytes
            figures = {"prefill_ms": median_ms, "prompt_tokens": width, "batch": 1}
            yield {**figures, "memory_bytes": memory_bytes, "load_s": load_s}
        middle = max(points.prompt_tokens, default=0) + points.output_tokens // 2
        memory_bytes = 0
        for rows in points.rows:
            tell(f"batch {rows} of {points.rows[-1]}")
            memory_bytes = max(memory_bytes, loads[rows].memory_bytes)  # a larger batch never needs less
            figure = {"decode_step_ms" if generates else "latency_ms": self.median_ms(rows, 1, middle, clock, share_s)}
            yield {**figure, "batch": rows, "memory_bytes": memory_bytes, "load_s": load_s}

    def _load(self, source: str, task: str, rows: int, points: _Points) -> _Loaded:
        """Load afresh for this batch, so that memory is that of this batch."""
        self._replica = f"{source}@b{rows}"
        tenant = {
            "replica": self._replica,
            "source": source,
            "task": task,
            "batch": rows,
            "frames": 1,
            "prompt_tokens": max(points.prompt_tokens, default=0) if task == GENERATION else 0,
            "output_tokens": points.output_tokens,
        }
        for tenants in ([], [tenant]):  # the empty load frees the batch before
            self._wire.write(Frame("load", {**self._group, "tenants": tenants}))
            loaded = self._until("ready")
        return _Loaded(int(loaded["memory_bytes"]), float(loaded["load_s"]))

    def median_ms(self, rows: int, width: int, start: int, clock: Callable[[], float], share_s: float) -> float:
        """Median over rounds, until two successive ones agree or the time is up."""
        ends_at = clock() + share_s
        rounds: list[float] = []
        while len(rounds) < _MAX_ROUNDS:
            fields = {"replica": self._replica, "rows": rows, "repeats": _ROUND, "width": width, "start": start}
            self._wire.write(Frame("measure", fields))
            rounds.append(float(self._until("measured")["median_ms"]))
            settled = len(rounds) > 1 and abs(rounds[-1] - rounds[-2]) <= SETTLED * rounds[-2]
            if settled or clock() >= ends_at:
                break
        return statistics.median(rounds)

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
