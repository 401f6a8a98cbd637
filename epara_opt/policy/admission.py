"""Will it be on time? Predicted finish and admission: what cannot be on time is refused at once, never queued.

Instants in seconds of the caller's clock. Expected durations come from `Expected`, a running mean with its mean
deviation in the manner of TCP's round-trip estimate (Jacobson, SIGCOMM '88), which starts from the plan's
prediction and follows observation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

STALE_S = 1.0  # what was not observed for so long no longer refuses what the plan's prediction would admit


@dataclass(slots=True)
class Expected:
    """A duration as expected from a prior and observations. Mutable: one owner, who feeds it."""

    prior_s: float
    gain: float = 0.125
    mean_s: float = 0.0
    deviation_s: float = 0.0
    num_observed: int = 0

    def observe(self, seconds: float) -> None:
        """Move towards what was seen. The first observation replaces the prior."""
        if self.num_observed == 0:
            self.mean_s, self.deviation_s = seconds, seconds / 4
        else:
            error = seconds - self.mean_s
            self.mean_s += self.gain * error
            self.deviation_s += 2 * self.gain * (abs(error) - self.deviation_s)
        self.num_observed += 1

    @property
    def value_s(self) -> float:
        """Mean plus one deviation once something was seen, else the prior."""
        return self.mean_s + self.deviation_s if self.num_observed else self.prior_s

    @property
    def seen_s(self) -> float:
        """The same, but 0 before anything was seen: what was never tried is not called too slow."""
        return self.value_s if self.num_observed else 0.0

    def forget(self) -> None:
        """Back to the prior: what was seen is too old to refuse by."""
        self.mean_s, self.deviation_s, self.num_observed = 0.0, 0.0, 0


def batch_prior_s(*, response_ms: float, frames: int, fps: float) -> float:
    """One batch's duration implied by a predicted response: response = accumulate + wait for one batch + batch."""
    accumulate_ms = 1000.0 * (frames - 1) / fps if fps > 0 else 0.0
    return max(0.0, response_ms - accumulate_ms) / 2000.0


def batch_finish_at(
    *,
    now: float,
    busy_until: float,
    rows_ahead: int,
    rows: int,
    max_rows: int,
    batch_s: float,
    others_s: float = 0.0,
) -> float:
    """When a request that came now would be answered by a batching replica.

    busy_until: when what already runs on the device group ends. rows_ahead: rows of this service with earlier
    deadlines in the queue. others_s: time that co-hosted services with earlier deadlines will take first.
    A window that waits for further frames is not counted: it closes in time for the earliest deadline.
    """
    batches = math.ceil((rows_ahead + rows) / max_rows)
    return max(now, busy_until) + others_s + batches * batch_s


def slot_finish_at(*, now: float, in_flight: int, slots: int, answer_s: float, whole_s: float) -> float:
    """When a generation that came now would be answered under continuous batching over `slots`.

    answer_s: until the answer that counts (the first token, or the whole text); whole_s: one generation. Those
    beyond the slots wait until enough generations have ended; they end evenly spread over whole_s.
    """
    waiting = max(0, in_flight + 1 - slots)
    return now + waiting * whole_s / slots + answer_s


def may_forget(expected: Expected, *, now: float, observed_at: float, due_at: float) -> bool:
    """Whether a replica must be tried again: by observation alone it would be late for ever, and nothing corrects that.

    One slow stretch of the machine may put the expectation above the deadline; then all is refused, and nothing is
    observed any more. The plan's prediction gets one request in so that it may be.
    """
    too_slow = now + expected.seen_s > due_at >= now + expected.prior_s
    return too_slow and now - observed_at > STALE_S


def admits(*, finish_at: float, due_at: float) -> bool:
    """The rule of admission."""
    return finish_at <= due_at
