"""Measured performance of models on devices, and interpolation inside what was measured.

Source of the idea that placement needs only such curves: Clockwork (OSDI'20), Nexus (SOSP'19), AlpaServe
(OSDI'23). Interpolation is linear between measured points; outside their hull the answer is an error that
names the missing point, never a guess.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from epara_opt.errors import InputError, Violation


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileRow:
    """One measured point. Either latency_ms, or prefill_ms at prompt_tokens, or decode_step_ms at batch."""

    model: str
    device_type: str
    tp: int = 1
    pp: int = 1
    batch: int = 1
    frames: int = 1
    latency_ms: float | None = None  # one pass of the whole batch, first stage to last
    interval_ms: float | None = None  # between batches at full load; None: latency / pp (even stages)
    prefill_ms: float | None = None  # one prompt of prompt_tokens
    prompt_tokens: int | None = None
    decode_step_ms: float | None = None  # one step of all `batch` sequences
    layers: int | None = None  # of a slice: so many consecutive layers alone; None: the whole model
    memory_bytes: int  # per device, weights and activations (and KV cache at this batch)
    load_s: float  # from cold until it can serve
    source: str  # where the number comes from
    error: float | None = None  # of the time: half its 95 % confidence interval, relative; None: not known
    file: str = ""
    line: int = 0

    def __post_init__(self) -> None:
        found: list[Violation] = []

        def need(ok: bool, key: str, law: str, value: object) -> None:
            if not ok:
                found.append(Violation(path=key, law=law, value=str(value), file=self.file, line=self.line))

        forms = [self.latency_ms is not None, self.prefill_ms is not None, self.decode_step_ms is not None]
        need(
            sum(forms) == 1, "latency_ms", "expected exactly one of latency_ms, prefill_ms, decode_step_ms", sum(forms)
        )
        need(
            (self.prefill_ms is None) == (self.prompt_tokens is None),
            "prompt_tokens",
            "expected together with prefill_ms",
            self.prompt_tokens,
        )
        for key in ("tp", "pp", "batch", "frames", "prompt_tokens", "layers"):
            value = getattr(self, key)
            need(value is None or value >= 1, key, "expected >= 1", value)
        for key in ("latency_ms", "interval_ms", "prefill_ms", "decode_step_ms", "memory_bytes"):
            value = getattr(self, key)
            need(value is None or 0 < value < float("inf"), key, "expected a finite number > 0", value)
        need(self.layers is None or self.pp == 1, "layers", "expected for pp 1 alone: a slice is one stage", self.pp)
        need(self.error is None or 0 <= self.error < float("inf"), "error", "expected a finite number >= 0", self.error)
        need(0 <= self.load_s < float("inf"), "load_s", "expected a finite number >= 0", self.load_s)
        need(bool(self.source.strip()), "source", "expected where the number comes from", "nothing")
        if found:
            raise InputError(found)


@dataclass(frozen=True, slots=True)
class Curve:
    """y over x, linear between measured points. x strictly increasing."""

    name: str  # of x, for messages
    x: tuple[int, ...]
    y: tuple[float, ...]

    def at(self, x: int) -> float:
        if not self.x or not self.x[0] <= x <= self.x[-1]:
            hull = f"{self.x[0]} .. {self.x[-1]}" if self.x else "nothing"
            raise InputError(
                Violation(path=self.name, law=f"expected a point inside the measured {hull}", value=str(x))
            )
        i = bisect_left(self.x, x)
        if self.x[i] == x:
            return self.y[i]
        x0, x1, y0, y1 = self.x[i - 1], self.x[i], self.y[i - 1], self.y[i]
        return y0 + (y1 - y0) * (x - x0) / (x1 - x0)

    def covers(self, x: int) -> bool:
        return bool(self.x) and self.x[0] <= x <= self.x[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """All that was measured of one model on one device type in one (tp, pp) shape."""

    model: str
    device_type: str
    tp: int
    pp: int
    latency_ms: Curve  # over items; empty for generation
    interval_ms: Curve  # over items; empty for generation
    prefill_ms: Curve  # over prompt tokens; empty unless generation
    decode_step_ms: Curve  # over batch; empty unless generation
    memory_bytes: Curve  # over items (or batch)
    load_s: float

    @property
    def generates(self) -> bool:
        return bool(self.decode_step_ms.x)

    def batch_points(self) -> tuple[int, ...]:
        """Measured batch sizes, and the powers of two between them."""
        curve = self.decode_step_ms if self.generates else self.latency_ms
        points = set(curve.x)
        power = 1
        while curve.x and power <= curve.x[-1]:
            if curve.covers(power):
                points.add(power)
            power *= 2
        return tuple(sorted(points))


@dataclass(frozen=True, slots=True)
class ProfileCatalogue:
    """Profiles by (model, device type), then by (tp, pp)."""

    profiles: Mapping[tuple[str, str], Mapping[tuple[int, int], Profile]] = field(default_factory=dict)
    rows: tuple[ProfileRow, ...] = ()
    slices: Mapping[tuple[str, str, int], Mapping[int, Profile]] = field(default_factory=dict)
    """Slices of models by (model, device type, tp), then by number of layers; see domain/slices.py."""

    def shapes(self, model: str, device_type: str) -> Mapping[tuple[int, int], Profile]:
        """Measured shapes; empty where the model was never measured on this device type."""
        return self.profiles.get((model, device_type), {})

    @staticmethod
    def from_rows(rows: Iterable[ProfileRow]) -> ProfileCatalogue:
        """Group rows into curves. A point given twice is an error: which would be true?"""
        kept = tuple(rows)
        found: list[Violation] = []
        groups: dict[tuple[str, str, int, int, int | None], list[ProfileRow]] = {}
        for row in kept:
            groups.setdefault((row.model, row.device_type, row.tp, row.pp, row.layers), []).append(row)
        table: dict[tuple[str, str], dict[tuple[int, int], Profile]] = {}
        sliced: dict[tuple[str, str, int], dict[int, Profile]] = {}
        for (model, device_type, tp, pp, layers), members in groups.items():
            where = f"{model} on {device_type} tp{tp} pp{pp}" + (f", {layers} layers" if layers else "")
            latency: dict[int, float] = {}
            interval: dict[int, float] = {}
            prefill: dict[int, float] = {}
            step: dict[int, float] = {}
            memory: dict[int, float] = {}
            for row in members:
                items = row.batch * row.frames
                if row.latency_ms is not None:
                    target, x, y = latency, items, row.latency_ms
                    interval.setdefault(items, row.interval_ms or row.latency_ms / pp)
                elif row.prefill_ms is not None and row.prompt_tokens is not None:
                    target, x, y = prefill, row.prompt_tokens, row.prefill_ms
                elif row.decode_step_ms is not None:
                    target, x, y = step, items, row.decode_step_ms
                else:  # a row of none of the three forms cannot be born
                    continue
                if x in target:
                    place = f"{where} at {x}"
                    found.append(
                        Violation(
                            path=place, law="expected each point once", value="twice", file=row.file, line=row.line
                        )
                    )
                target[x] = y
                if row.prefill_ms is None:
                    memory[items] = float(row.memory_bytes)
            name = f"profiles.{where}"
            if latency and (prefill or step):
                found.append(
                    Violation(
                        path=name,
                        law="expected latency rows, or prefill and decode rows, not both",
                        value="both",
                        file=members[0].file,
                        line=members[0].line,
                    )
                )
            if bool(prefill) != bool(step):
                missing = "decode_step_ms" if prefill else "prefill_ms"
                found.append(
                    Violation(
                        path=name,
                        law="expected prefill and decode rows together",
                        value=f"no {missing} row",
                        file=members[0].file,
                        line=members[0].line,
                    )
                )
            made = Profile(
                model=model,
                device_type=device_type,
                tp=tp,
                pp=pp,
                latency_ms=_curve(f"{name}.batch", latency),
                interval_ms=_curve(f"{name}.batch", interval),
                prefill_ms=_curve(f"{name}.prompt_tokens", prefill),
                decode_step_ms=_curve(f"{name}.batch", step),
                memory_bytes=_curve(f"{name}.batch", memory),
                load_s=max(row.load_s for row in members),
            )
            if layers is None:
                table.setdefault((model, device_type), {})[tp, pp] = made
            else:
                sliced.setdefault((model, device_type, tp), {})[layers] = made
        if found:
            raise InputError(found)
        return ProfileCatalogue(profiles=table, rows=kept, slices=sliced)


def _curve(name: str, points: Mapping[int, float]) -> Curve:
    xs = tuple(sorted(points))
    return Curve(name, xs, tuple(points[x] for x in xs))
