"""Recorded arrivals of LLM requests, for load tests and simulation.

A trace file is a CSV with the columns arrival_s, context_tokens, generated_tokens (those of the Azure LLM
inference traces); comment lines (#) above the header name its source and licence.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from epara_opt.errors import InputError, Violation

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

COLUMNS = ("arrival_s", "context_tokens", "generated_tokens")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trace:
    """N requests in order of arrival; `duration_s` is the time observed, from 0."""

    arrival_s: FloatArray  # (N,) from the start of the trace, not decreasing
    prompt_tokens: IntArray  # (N,) >= 1
    output_tokens: IntArray  # (N,) >= 1
    duration_s: float

    def __post_init__(self) -> None:
        if not len(self.arrival_s) == len(self.prompt_tokens) == len(self.output_tokens):
            sizes = f"{len(self.arrival_s)}, {len(self.prompt_tokens)}, {len(self.output_tokens)}"
            raise InputError(Violation(path="trace", law="expected columns of one length", value=sizes))
        if not (math.isfinite(self.duration_s) and self.duration_s > 0):
            law = "expected a finite number > 0"
            raise InputError(Violation(path="trace.duration_s", law=law, value=str(self.duration_s)))

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def rate_per_s(self) -> float:
        """Mean arrival rate over the time observed."""
        return len(self) / self.duration_s

    @property
    def interarrival_cv(self) -> float:
        """Coefficient of variation of inter-arrival times: 1 for Poisson, 0 where there are too few to say."""
        gaps = np.diff(self.arrival_s)
        mean = float(gaps.mean()) if len(gaps) else 0.0
        return float(gaps.std()) / mean if mean > 0 else 0.0

    def window(self, start_s: float, duration_s: float) -> Trace:
        """The requests of [start_s, start_s + duration_s), their clock starting at 0."""
        kept = (self.arrival_s >= start_s) & (self.arrival_s < start_s + duration_s)
        return Trace(
            arrival_s=self.arrival_s[kept] - start_s,
            prompt_tokens=self.prompt_tokens[kept],
            output_tokens=self.output_tokens[kept],
            duration_s=duration_s,
        )

    def scaled(self, rate_per_s: float) -> Trace:
        """The same requests with time stretched or shrunk to a mean rate; burstiness (CV) stays as it was."""
        if not (math.isfinite(rate_per_s) and rate_per_s > 0):
            law = "expected a finite number > 0"
            raise InputError(Violation(path="rate_per_s", law=law, value=str(rate_per_s)))
        if not len(self):
            raise InputError(Violation(path="trace", law="expected requests to scale", value="none"))
        stretch = self.rate_per_s / rate_per_s
        return Trace(
            arrival_s=self.arrival_s * stretch,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            duration_s=self.duration_s * stretch,
        )


def read_trace(path: Path | str) -> Trace:
    """Read a trace. Raises InputError with every bad line. The time observed ends with the last arrival's second."""
    path = Path(path)

    def fault(line: int, where: str, law: str, value: str = "") -> Violation:
        return Violation(path=where, law=law, value=value, file=str(path), line=line)

    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        why = e.strerror if isinstance(e, OSError) else "it is not UTF-8"
        raise InputError(fault(0, "", f"expected a trace that can be read: {why}")) from None
    top = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("#")), None)
    header = tuple(next(csv.reader([lines[top]]))) if top is not None else ()
    if top is None or header != COLUMNS:
        law = f"expected the columns {','.join(COLUMNS)}"
        raise InputError(fault(0 if top is None else top + 1, "header", law, ",".join(header) or "nothing"))
    found: list[Violation] = []
    rows: list[tuple[float, int, int]] = []
    for line, text in enumerate(lines[top + 1 :], start=top + 2):
        if not text.strip():
            continue
        try:
            arrival, prompt, output = text.split(",")
            row = (float(arrival), int(prompt), int(output))
        except ValueError:
            found.append(fault(line, "row", "expected a number and two whole numbers", text))
            continue
        if not (math.isfinite(row[0]) and row[0] >= (rows[-1][0] if rows else 0.0)):
            found.append(fault(line, "arrival_s", "expected >= the arrival before it, and >= 0", arrival))
        elif row[1] < 1 or row[2] < 1:
            found.append(fault(line, "tokens", "expected >= 1", text))
        else:
            rows.append(row)
    if not rows and not found:
        found.append(fault(top + 1, "", "expected at least one request", "none"))
    if found:
        raise InputError(found)
    return Trace(
        arrival_s=np.array([r[0] for r in rows], dtype=np.float64),
        prompt_tokens=np.array([r[1] for r in rows], dtype=np.int64),
        output_tokens=np.array([r[2] for r in rows], dtype=np.int64),
        duration_s=math.floor(rows[-1][0]) + 1.0,
    )
