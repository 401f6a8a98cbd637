"""Arrivals to hold a plan against: drawn from rates and burstiness, or recorded.

Requests are gamma renewals (AlpaServe, OSDI'23): the times between them have the demand's mean 1 / rate and coefficient
of variation. The process has run for a while before 0, so the first request is as likely to be late as any. Streams
send a frame every 1 / fps from a phase of their own, which is uniform: they are periodic, whatever their demand's CV.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from epara_opt.domain.service import Demand, Service
from epara_opt.errors import InputError, Violation

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

COLUMNS = ("arrival_s", "service", "origin")
YEAR_S = 365.0 * 86_400.0
BEFORE = 50  # mean gaps for which a renewal process runs before the clock starts


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Arrivals:
    """N requests and frames by rising time, of E demand entries and S streams."""

    entries: tuple[tuple[str, str], ...]  # (E,) service, origin
    at_s: F64  # (N,) in [0, duration_s)
    entry: I64  # (N,)
    stream: I64  # (N,) -1 for a request of its own
    draw: F64  # (N,) uniform in [0, 1): decides its route, so that two plans meet the same luck
    stream_entry: I64  # (S,)
    duration_s: float
    by_entry: I64 = field(init=False, repr=False)  # (N,) arrivals of one entry after the other's, each by time
    entry_ends: I64 = field(init=False, repr=False)  # (E + 1,) where they begin and end

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_entry", np.argsort(self.entry, kind="stable"))
        starts = np.searchsorted(self.entry[self.by_entry], np.arange(len(self.entries) + 1))
        object.__setattr__(self, "entry_ends", starts)
        sizes = {len(self.at_s), len(self.entry), len(self.stream), len(self.draw)}
        for path, ok, law, value in (
            ("at_s", len(sizes) == 1, "expected columns of one length", sorted(sizes)),
            ("at_s", bool((np.diff(self.at_s) >= 0).all()), "expected rising times", "falling ones"),
            ("duration_s", 0 < self.duration_s < math.inf, "expected a finite number > 0", self.duration_s),
        ):
            if not ok:
                raise InputError(Violation(path=f"arrivals.{path}", law=law, value=str(value)))

    def __len__(self) -> int:
        return len(self.at_s)

    def window(self, start_s: float, end_s: float) -> Arrivals:
        """Those of [start_s, end_s), their clock starting at 0."""
        kept = (self.at_s >= start_s) & (self.at_s < end_s)
        return replace(
            self,
            at_s=self.at_s[kept] - start_s,
            entry=self.entry[kept],
            stream=self.stream[kept],
            draw=self.draw[kept],
            duration_s=end_s - start_s,
        )


def num_streams(offered: float) -> int:
    """Streams are whole; a forecast need not be."""
    return max(1, round(offered))


def drawn(
    demand: Sequence[Demand], services: Mapping[str, Service], *, duration_s: float, rng: np.random.Generator
) -> Arrivals:
    """Arrivals of a demand for `duration_s`: renewals for requests, periodic frames for streams."""
    times: list[F64] = []
    for d in demand:
        fps = services[d.service].fps
        if fps is None and d.offered > 0:
            times.append(renewals(d.offered, d.burstiness_cv, duration_s=duration_s, rng=rng))
        else:
            times.append(np.zeros(0))
    return _merged(demand, services, times, duration_s=duration_s, rng=rng)


def renewals(rate_per_s: float, cv: float, *, duration_s: float, rng: np.random.Generator) -> F64:
    """Instants in [0, duration_s) of a gamma renewal process that has run for `BEFORE` mean gaps already."""
    before_s = BEFORE / rate_per_s
    wanted = int((duration_s + before_s) * rate_per_s) + 64
    at_s, last_s = [np.zeros(0)], -before_s * float(rng.random())
    while last_s < duration_s:
        if cv > 0:
            shape = 1.0 / cv**2
            gaps = rng.gamma(shape, 1.0 / (rate_per_s * shape), size=wanted)
        else:
            gaps = np.full(wanted, 1.0 / rate_per_s)
        at_s.append(last_s + np.cumsum(gaps))
        last_s = float(at_s[-1][-1])
    found = np.concatenate(at_s)
    return found[(found >= 0.0) & (found < duration_s)]


def recorded(
    requests: Sequence[tuple[float, str, str]],
    demand: Sequence[Demand],
    services: Mapping[str, Service],
    *,
    duration_s: float,
    rng: np.random.Generator,
) -> Arrivals:
    """Requests as they came (instant, service, origin), with the streams of `demand`, which no record lists.

    Requests that `demand` does not ask for are left out: no plan was made for them.
    """
    index = {(d.service, d.origin): i for i, d in enumerate(demand)}
    times: list[list[float]] = [[] for _ in demand]
    for at, service, origin in requests:
        i = index.get((service, origin))
        if i is not None and 0.0 <= at < duration_s and not services[service].is_stream:
            times[i].append(at)
    return _merged(demand, services, [np.array(t, dtype=np.float64) for t in times], duration_s=duration_s, rng=rng)


def _merged(
    demand: Sequence[Demand],
    services: Mapping[str, Service],
    times: Sequence[F64],
    *,
    duration_s: float,
    rng: np.random.Generator,
) -> Arrivals:
    at, entry, stream = list(times), [np.full(len(t), i) for i, t in enumerate(times)], []
    stream = [np.full(len(t), -1) for t in times]
    stream_entry: list[int] = []
    for i, d in enumerate(demand):
        fps = services[d.service].fps
        for _ in range(num_streams(d.offered) if fps is not None and d.offered > 0 else 0):
            assert fps is not None
            frames = np.asarray((np.arange(math.ceil(duration_s * fps)) + float(rng.random())) / fps, dtype=np.float64)
            at.append(frames[frames < duration_s])
            entry.append(np.full(len(at[-1]), i))
            stream.append(np.full(len(at[-1]), len(stream_entry)))
            stream_entry.append(i)
    at_s = np.concatenate([np.zeros(0), *at])
    order = np.argsort(at_s, kind="stable")
    return Arrivals(
        entries=tuple((d.service, d.origin) for d in demand),
        at_s=at_s[order],
        entry=np.concatenate([np.zeros(0), *entry]).astype(np.int64)[order],
        stream=np.concatenate([np.zeros(0), *stream]).astype(np.int64)[order],
        draw=rng.random(len(at_s)),
        stream_entry=np.array(stream_entry, dtype=np.int64),
        duration_s=duration_s,
    )


def asked_for(
    requests: Sequence[tuple[float, str, str]], demand: Sequence[Demand], services: Mapping[str, Service]
) -> list[tuple[float, str, str]]:
    """The requests that `recorded` would take: of what the demand asks for, and of no stream."""
    asked = {(d.service, d.origin) for d in demand if not services[d.service].is_stream}
    return [r for r in requests if r[1:] in asked]


def longest_s(demand: Sequence[Demand], services: Mapping[str, Service], *, most: float) -> float:
    """Seconds in which the demand's streams send so many frames; at most a year."""
    frames_per_s = sum(num_streams(d.offered) * (services[d.service].fps or 0.0) for d in demand if d.is_streams)
    return min(YEAR_S, most / frames_per_s if frames_per_s > 0 else YEAR_S)


def read_requests(
    path: Path | str, *, services: Container[str], servers: Container[str]
) -> list[tuple[float, str, str]]:
    """A recorded list: CSV with the columns arrival_s, service, origin, all of names that are known. Raises InputError
    with every bad line."""
    path = Path(path)
    try:
        rows = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError) as e:
        law = f"expected a list of requests that can be read: {getattr(e, 'strerror', None) or 'it is not UTF-8'}"
        raise InputError(Violation(path="", law=law, file=str(path))) from None
    lines = [(i, r) for i, r in enumerate(rows, start=1) if r and not r[0].startswith("#")]
    if not lines or tuple(lines[0][1]) != COLUMNS:
        law = f"expected the columns {','.join(COLUMNS)}"
        value = ",".join(lines[0][1]) if lines else "nothing"
        raise InputError(
            Violation(path="header", law=law, value=value, file=str(path), line=lines[0][0] if lines else 0)
        )
    found: list[tuple[float, str, str]] = []
    bad: list[Violation] = []
    for i, row in lines[1:]:
        try:
            at_s, service, origin = float(row[0]), row[1], row[2]
        except (IndexError, ValueError):
            at_s, service, origin = math.nan, "", ""
        if not (math.isfinite(at_s) and at_s >= 0 and len(row) == len(COLUMNS)):
            law = "expected an instant >= 0, a service and an origin"
            bad.append(Violation(path="row", law=law, value=",".join(row), file=str(path), line=i))
        elif service not in services:
            law = "expected a service of the topology"
            bad.append(Violation(path="service", law=law, value=service, file=str(path), line=i))
        elif origin not in servers:
            law = "expected a server of the topology"
            bad.append(Violation(path="origin", law=law, value=origin, file=str(path), line=i))
        else:
            found.append((at_s, service, origin))
    if not found and not bad:
        bad.append(Violation(path="", law="expected at least one request", value="none", file=str(path)))
    if bad:
        raise InputError(bad)
    return sorted(found)
