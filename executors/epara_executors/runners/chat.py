"""A conversation as a prompt: by the model's own chat template, else one "role: content" line per message.

The plain form, for tokenizers without a template, ends with the line the model is to go on with:

    system: Answer briefly.
    user: Where is the edge?
    assistant:

Templates come with the model and are rendered by transformers in Jinja's immutable sandbox. Knows no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from epara_executors.runners.contract import RequestError

Message = Mapping[str, Any]


def conversation(text: str) -> list[Message]:
    """The messages of a JSON array of {role, content, ...}. Raises RequestError naming the first that is none."""
    try:
        listed = cast("object", json.loads(text))
    except (ValueError, RecursionError) as error:
        raise RequestError(f"messages: expected a JSON array: {error}") from error
    if not isinstance(listed, list) or not listed:
        raise RequestError(f"messages: expected a non-empty array, got {text[:40]}")
    messages = cast("list[object]", listed)
    for i, message in enumerate(messages):
        if not isinstance(message, dict):
            raise RequestError(f"messages[{i}]: expected an object, got {message!r}")
        for key in ("role", "content"):
            value = cast("dict[str, object]", message).get(key)
            if not isinstance(value, str):
                raise RequestError(f"messages[{i}].{key}: expected text, got {value!r}")
    return cast("list[Message]", messages)


def token_ids(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """The prompt's tokens. A template writes its special tokens itself; the plain form gets the tokenizer's own."""
    if getattr(tokenizer, "chat_template", None):
        try:
            text = str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))
        except Exception as error:  # a template is a program: whatever it raises is about these messages
            raise RequestError(f"messages: the model's chat template refuses them: {error}") from error
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return list(tokenizer(plain(messages))["input_ids"])


def plain(messages: Sequence[Message]) -> str:
    """The documented form for models without a template."""
    return "\n".join([*(f"{m['role']}: {m['content']}" for m in messages), "assistant:"])
