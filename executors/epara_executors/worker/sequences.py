"""One text generation on its way through an engine. Plain data: no torch, no sockets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from epara_executors.runners.contract import RequestError


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen. Temperature 0 is greedy and needs no seed; penalties hold for it too."""

    temperature: float = 0.0
    top_k: int = 0  # 0: all tokens
    top_p: float = 1.0
    seed: int = 0
    presence_penalty: float = 0.0  # subtracted from the logit of what is in the output
    frequency_penalty: float = 0.0  # the same, for each time that it is there
    repetition_penalty: float = 1.0  # > 1: less of what is in prompt or output

    def __post_init__(self) -> None:
        for key, ok, law in (
            ("temperature", self.temperature >= 0, "expected >= 0"),
            ("top_k", self.top_k >= 0, "expected >= 0"),
            ("top_p", 0 < self.top_p <= 1, "expected in (0, 1]"),
            ("presence_penalty", -2 <= self.presence_penalty <= 2, "expected in [-2, 2]"),
            ("frequency_penalty", -2 <= self.frequency_penalty <= 2, "expected in [-2, 2]"),
            ("repetition_penalty", 0.01 <= self.repetition_penalty <= 100, "expected in [0.01, 100]"),
        ):
            if not ok:
                raise RequestError(f"params.{key}: {law}, got {getattr(self, key)}")

    @staticmethod
    def from_params(params: Mapping[str, Any]) -> Sampling:
        return Sampling(
            temperature=number(params, "temperature", 0.0),
            top_k=whole(params, "top_k", 0),
            top_p=number(params, "top_p", 1.0),
            seed=whole(params, "seed", 0),
            presence_penalty=number(params, "presence_penalty", 0.0),
            frequency_penalty=number(params, "frequency_penalty", 0.0),
            repetition_penalty=number(params, "repetition_penalty", 1.0),
        )

    @property
    def penalizes(self) -> bool:
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1)


def number(params: Mapping[str, Any], key: str, default: float) -> float:
    """A request parameter as a number. Raises RequestError for anything else."""
    given = params.get(key, default)
    value = given
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise RequestError(f"params.{key}: expected a number, got {given!r}") from None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise RequestError(f"params.{key}: expected a number, got {given!r}")
    return value


def whole(params: Mapping[str, Any], key: str, default: int) -> int:
    """A request parameter as a whole number. Raises RequestError for anything else."""
    value = number(params, key, default)
    if value != int(value):
        raise RequestError(f"params.{key}: expected a whole number, got {value:g}")
    return int(value)


class Transcript(Protocol):
    """Turns tokens into text as they come."""

    @property
    def text(self) -> str: ...

    @property
    def stopped(self) -> bool:
        """A stop string has been met."""
        ...

    def push(self, token: int) -> str:
        """Text that this token makes certain; empty while a character or a stop string is incomplete."""
        ...

    def close(self) -> str:
        """What was held back."""
        ...


@dataclass(slots=True, eq=False)
class Sequence:
    """Prompt and what was generated. The engine appends, the scheduler moves it between queue and groups."""

    key: str  # the infer's id
    request: str  # the request's id
    prompt: tuple[int, ...]
    max_tokens: int
    transcript: Transcript
    end_tokens: frozenset[int] = frozenset()
    sampling: Sampling = field(default_factory=Sampling)
    stream: bool = False
    outputs: tuple[str, ...] = ()  # wanted in the answer; empty: all
    arrived_at: float = 0.0  # set by the engine
    tokens: list[int] = field(default_factory=list[int])
    blocks: list[int] = field(default_factory=list[int])  # of the key-value cache, in order; the scheduler's
    finish_reason: str = ""  # "" while it runs; stop | length | cancelled | error

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.tokens)

    @property
    def usage(self) -> dict[str, int]:
        """Tokens read and written so far, end-of-text and those of a stop string included."""
        return {"prompt_tokens": len(self.prompt), "completion_tokens": len(self.tokens)}

    def append(self, token: int) -> str:
        """Take the next token, decide whether it was the last, return the text it made certain."""
        self.tokens.append(token)
        if token in self.end_tokens:
            self.finish_reason = "stop"
            return self.transcript.push(token) + self.transcript.close()
        text = self.transcript.push(token)
        if self.transcript.stopped:
            self.finish_reason = "stop"
        elif len(self.tokens) >= self.max_tokens:
            self.finish_reason = "length"
            text += self.transcript.close()
        return text
