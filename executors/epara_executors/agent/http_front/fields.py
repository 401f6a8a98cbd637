"""One JSON body, read field by field. What nobody read is refused by name, unless it could not change the answer.

null is as good as absent: clients send it for what their user left out.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, cast

from epara_executors.agent.http_front.errors import BadField
from epara_executors.agent.requests import BadRequest

MAX_INTEGER = 2**63 - 1
MAX_TIMEOUT_S = 86_400.0

# Bookkeeping of the client and of OpenAI's platform.
HARMLESS = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)

# Not offered; these values ask for nothing.
NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
}


def parse(body: bytes) -> dict[str, Any]:
    """The object that a body holds. Raises BadRequest."""

    def no_number(text: str) -> NoReturn:
        raise ValueError(f"{text} is no JSON number")

    try:
        parsed = cast("object", json.loads(body, parse_constant=no_number))
    except (ValueError, RecursionError) as e:
        raise BadRequest(f"body: expected JSON: {e}") from None
    if not isinstance(parsed, dict):
        raise BadRequest(f"body: expected a JSON object, got {type(parsed).__name__}")
    return cast("dict[str, Any]", parsed)


class Fields:
    """Each getter takes its field; `end` refuses what is left."""

    def __init__(self, body: Mapping[str, Any], *, path: str = "") -> None:
        self._left = {name: value for name, value in body.items() if value is not None}
        self._path = path
        self._known: set[str] = set()

    def take(self, name: str) -> Any:
        """The raw value; None where it is absent."""
        self._known.add(name)
        return self._left.pop(name, None)

    def refuse(self, name: str, law: str, value: object) -> NoReturn:
        raise BadField(f"{self._path}{name}", f"{law}, got {_short(value)}")

    def text(self, name: str) -> str:
        value = self.take(name)
        if not isinstance(value, str):
            self.refuse(name, "expected text", value)
        encoded(f"{self._path}{name}", value)
        return value

    def flag(self, name: str) -> bool:
        value = self.take(name)
        if value is not None and not isinstance(value, bool):
            self.refuse(name, "expected true or false", value)
        return bool(value)

    def integer(self, name: str, *, low: int, high: int = MAX_INTEGER) -> int | None:
        value = self.take(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.refuse(name, f"expected an integer in [{low}, {high}]", value)
        return value

    def number(self, name: str, *, low: float, high: float) -> float | None:
        value = self.take(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            self.refuse(name, f"expected a number in [{low:g}, {high:g}]", value)
        return float(value)

    def texts(self, name: str) -> list[str]:
        """Nothing, one text, or a list of texts."""
        value = self.take(name)
        listed: list[object] = [] if value is None else value if isinstance(value, list) else [value]
        for item in listed:
            if not isinstance(item, str):
                self.refuse(name, "expected text or a list of texts", value)
            encoded(f"{self._path}{name}", item)
        return cast("list[str]", listed)

    def end(self) -> None:
        """Refuse what was not read and is neither harmless nor neutral."""
        for name, value in self._left.items():
            if not self._path and (name in HARMLESS or value in NEUTRAL.get(name, ())):
                continue
            if not self._path and name in NEUTRAL:
                allowed = " or ".join(json.dumps(v) for v in NEUTRAL[name])
                self.refuse(name, f"is not offered; expected {allowed} or nothing", value)
            near = difflib.get_close_matches(name, sorted(self._known), n=1)
            raise BadField(f"{self._path}{name}", "is not known" + (f"; did you mean {near[0]}?" if near else ""))


def encoded(path: str, text: str) -> bytes:
    """UTF-8 of a text from JSON, which may hold half a surrogate pair."""
    try:
        return text.encode()
    except UnicodeEncodeError as e:
        raise BadField(path, f"expected Unicode text, got a lone surrogate at {e.start}") from None


def token_ids(path: str, value: Sequence[object]) -> list[int]:
    """A list of token ids; what the vocabulary allows, the model knows."""
    for token in value:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < 2**31:
            raise BadField(path, f"expected token ids in [0, 2^31), got {_short(token)}")
    return cast("list[int]", list(value))


def milliseconds(path: str, text: str) -> float:
    """A positive number of milliseconds from a header."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= MAX_TIMEOUT_S * 1000.0:
        raise BadField(path, f"expected milliseconds in (0, {MAX_TIMEOUT_S * 1000:g}], got {_short(text)}")
    return value


def _short(value: object) -> str:
    if value is None:
        return "nothing"
    shown = json.dumps(value, default=repr)
    return shown if len(shown) <= 80 else shown[:77] + "..."
