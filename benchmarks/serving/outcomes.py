"""From requests and what became of them to the figures that are reported. Pure."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

from rows import percentile

NOT_LET_IN = ("is draining", "failed to connect")  # an executor's own words, and grpc's where nobody listens
_LAWS: Mapping[str, Callable[[float, float], bool]] = {">=": operator.ge, "<=": operator.le, "==": operator.eq}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One call. Instants in seconds of one clock."""

    flow: int
    due_at: float  # when the load said that it should be sent
    sent_at: float
    done_at: float
    status: str  # gRPC's name; WRONG: an answer of another size than the flow's first
    detail: str = ""  # the status's message

    @property
    def taken_ms(self) -> float:
        return 1000 * (self.done_at - self.sent_at)

    @property
    def late_ms(self) -> float:
        """How long it waited in the client before it was sent."""
        return 1000 * (self.sent_at - self.due_at)


FIELDS = tuple(field.name for field in fields(Outcome))


def outcomes_of(columns: Mapping[str, Sequence[Any]]) -> list[Outcome]:
    """What open_loop.py answered, in order of sending."""
    made = [
        Outcome(**dict(zip(FIELDS, values, strict=True))) for values in zip(*(columns[n] for n in FIELDS), strict=True)
    ]
    return sorted(made, key=lambda o: o.sent_at)


def on_time(outcomes: Sequence[Outcome], deadline_ms: float) -> int:
    """How many were answered within the deadline, from their sending to the answer in the client's hands."""
    return sum(o.status == "OK" and o.taken_ms <= deadline_ms for o in outcomes)


def goodput(outcomes: Sequence[Outcome], deadlines_ms: Sequence[float], *, begins_at: float, ends_at: float) -> float:
    """Requests per second that were due in [begins_at, ends_at) and answered within the deadline of their flow."""
    if not ends_at > begins_at:
        raise ValueError(f"ends_at: expected > begins_at = {begins_at:g}, got {ends_at:g}")
    mine = [o for o in outcomes if begins_at <= o.due_at < ends_at]
    good = sum(on_time([o for o in mine if o.flow == i], d) for i, d in enumerate(deadlines_ms))
    return good / (ends_at - begins_at)


def longest_gap_s(outcomes: Sequence[Outcome]) -> float:
    """The longest time without a good answer between the first and the last of them; 0 where there are fewer than 2."""
    answered_at = sorted(o.done_at for o in outcomes if o.status == "OK")
    return max((b - a for a, b in pairwise(answered_at)), default=0.0)


def lost(outcomes: Sequence[Outcome]) -> int:
    """Requests whose last call was not answered well. Calls of one request share flow and due_at."""
    last = {(o.flow, o.due_at): o for o in sorted(outcomes, key=lambda o: o.done_at)}
    return sum(o.status != "OK" for o in last.values())


def in_flight(outcomes: Sequence[Outcome], at: float) -> list[Outcome]:
    """Calls that were sent before an instant and answered after it."""
    return [o for o in outcomes if o.sent_at < at < o.done_at]


def left_behind(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Of the calls of an executor that left: what was in flight when it first refused one, and what of that was lost.

    Whoever came later was refused, or found nobody: those did not get in, and their status says so. Any other end than
    a good one is a request that had got in and was lost.
    """
    refused = [o for o in outcomes if o.status == "UNAVAILABLE" and any(w in o.detail for w in NOT_LET_IN)]
    first_at = min((o.done_at for o in refused), default=float("inf"))
    bad = [o for o in outcomes if o.status != "OK" and o not in refused]
    flying = [o for o in in_flight(outcomes, first_at) if o not in refused]
    return {
        "in_flight": len(flying),
        "in_flight_lost": len(bad),
        "words": dict(Counter(o.detail for o in outcomes if o.status != "OK")),
    }


def statuses(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """How many ended how, most frequent first."""
    return dict(Counter(o.status for o in outcomes).most_common())


def percentiles_ms(values: Sequence[float]) -> dict[str, float] | None:
    """Median and 99th percentile; None of nothing."""
    return {"p50_ms": percentile(values, 0.5), "p99_ms": percentile(values, 0.99)} if values else None


def row(what: str, value: float, unit: str, *, law: str = "", target: float | None = None) -> dict[str, Any]:
    """A figure; with a law and a target also whether it was met."""
    if law and law not in _LAWS:
        raise ValueError(f"law: expected one of {', '.join(_LAWS)}, got {law}")
    met = _LAWS[law](value, target) if law and target is not None else None
    return {"what": what, "value": value, "unit": unit, "law": law, "target": target, "met": met}
