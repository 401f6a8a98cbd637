"""Answers in the shapes of OpenAI's API: chat completions and text completions, whole and in pieces."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from epara_executors.contents import split_bytes
from epara_executors.rpc import open_inference_pb2 as oip

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What one response of a generation says: a piece of text, and at the end why it ended and what it cost."""

    text: str
    finish_reason: str  # empty while it goes on
    usage: Mapping[str, int]  # empty while it goes on
    final: bool

    @staticmethod
    def of(response: oip.ModelInferResponse) -> Made:
        params = response.parameters
        text = ""
        for output, data in zip(response.outputs, response.raw_output_contents, strict=True):
            if output.name == "text":
                text = b"".join(split_bytes(data)).decode(errors="replace")
        return Made(
            text=text,
            finish_reason=params["finish_reason"].string_param if "finish_reason" in params else "",
            usage=usage_of(response),
            final=params["triton_final_response"].bool_param if "triton_final_response" in params else True,
        )


def usage_of(response: oip.ModelInferResponse) -> dict[str, int]:
    """Token counts of a response, with their sum; empty where it has none."""
    params = response.parameters
    found = {k: params[k].int64_param for k in ("prompt_tokens", "completion_tokens") if k in params}
    return {**found, "total_tokens": sum(found.values())} if found else {}


class Shape(Protocol):
    """How one endpoint says what was made."""

    def whole(self, made: Made) -> Json: ...

    def opening(self) -> Json | None:
        """What a stream says before the first text."""
        ...

    def piece(self, text: str) -> Json: ...

    def ending(self, finish_reason: str) -> Json: ...

    def usage(self, usage: Mapping[str, int]) -> Json:
        """The last piece of a stream whose client wants to know."""
        ...


class ChatShape:
    """chat.completion and chat.completion.chunk."""

    def __init__(self, model: str, created: int, *, include_usage: bool) -> None:
        self._head: Json = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": created, "model": model}
        self._pending: Json = {"usage": None} if include_usage else {}

    def whole(self, made: Made) -> Json:
        message = {"role": "assistant", "content": made.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": made.finish_reason or "stop"}
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": dict(made.usage) or None}

    def opening(self) -> Json:
        return self._chunk({"role": "assistant", "content": ""}, None)

    def piece(self, text: str) -> Json:
        return self._chunk({"content": text}, None)

    def ending(self, finish_reason: str) -> Json:
        return self._chunk({}, finish_reason or "stop")

    def usage(self, usage: Mapping[str, int]) -> Json:
        return {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": dict(usage)}

    def _chunk(self, delta: Json, finish_reason: str | None) -> Json:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice], **self._pending}


class CompletionShape:
    """text_completion, which is the same whole and in pieces."""

    def __init__(self, model: str, created: int, *, include_usage: bool) -> None:
        self._head: Json = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": created,
            "model": model,
        }
        self._pending: Json = {"usage": None} if include_usage else {}

    def whole(self, made: Made) -> Json:
        choice = self._choice(made.text, made.finish_reason or "stop")
        return {**self._head, "choices": [choice], "usage": dict(made.usage) or None}

    def opening(self) -> None:
        return None

    def piece(self, text: str) -> Json:
        return {**self._head, "choices": [self._choice(text, None)], **self._pending}

    def ending(self, finish_reason: str) -> Json:
        return {**self._head, "choices": [self._choice("", finish_reason or "stop")], **self._pending}

    def usage(self, usage: Mapping[str, int]) -> Json:
        return {**self._head, "choices": [], "usage": dict(usage)}

    @staticmethod
    def _choice(text: str, finish_reason: str | None) -> Json:
        return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}
