"""Chat and completion bodies as requests of the Open Inference Protocol."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from epara_executors.agent.decode import set_parameter
from epara_executors.agent.http_front.errors import BadField
from epara_executors.agent.http_front.fields import MAX_TIMEOUT_S, Fields, encoded, milliseconds, token_ids
from epara_executors.agent.requests import Scalar
from epara_executors.contents import join_bytes, pack_numbers
from epara_executors.rpc import open_inference_pb2 as oip

TIMEOUT_HEADER = "x-epara-timeout-ms"
DEFAULT_TEMPERATURE = 1.0  # of OpenAI's API; the executor's own default is greedy
MAX_TEMPERATURE = 100.0
MAX_SEED = 2**53  # drawn ones stay exact in any client


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What a chat or completion body asks for."""

    request: oip.ModelInferRequest
    stream: bool
    include_usage: bool  # of a stream: whether usage comes in a last piece


def chat_request(body: Mapping[str, Any], headers: Mapping[str, str], rng: random.Random) -> Generation:
    """The body of /v1/chat/completions. Raises BadField."""
    fields = Fields(body)
    request = oip.ModelInferRequest(model_name=fields.text("model"))
    conversation = json.dumps(_messages(fields.take("messages")))
    add_texts(request, "messages", [conversation.encode()])
    return _generation(fields, headers, request, rng)


def completion_request(body: Mapping[str, Any], headers: Mapping[str, str], rng: random.Random) -> Generation:
    """The body of /v1/completions: one prompt, as text or as token ids. Raises BadField."""
    fields = Fields(body)
    request = oip.ModelInferRequest(model_name=fields.text("model"))
    prompt = fields.take("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        add_texts(request, "text", [encoded("prompt", prompt)])
    elif isinstance(prompt, list) and prompt and not isinstance(prompt[0], str | list):
        add_token_ids(request, token_ids("prompt", cast("list[object]", prompt)))
    else:
        fields.refuse("prompt", "expected one text or one list of token ids", prompt)
    return _generation(fields, headers, request, rng)


def _generation(
    fields: Fields, headers: Mapping[str, str], request: oip.ModelInferRequest, rng: random.Random
) -> Generation:
    stream = fields.flag("stream")
    options = Fields(_object(fields, "stream_options"), path="stream_options.")
    include_usage = options.flag("include_usage")
    options.flag("include_obfuscation")  # padding against eavesdroppers of OpenAI's own service
    options.end()
    parameters = _sampling(fields, rng)
    if stream:
        parameters["stream"] = True
    read_deadline(fields, headers, request)
    fields.end()
    for name, value in parameters.items():
        set_parameter(request.parameters[name], value)
    request.outputs.add(name="text")
    return Generation(request=request, stream=stream, include_usage=stream and include_usage)


def _sampling(fields: Fields, rng: random.Random) -> dict[str, Scalar]:
    found: dict[str, Scalar] = {}
    limits = {n: fields.integer(n, low=1, high=2**31 - 1) for n in ("max_completion_tokens", "max_tokens")}
    given = {v for v in limits.values() if v is not None}
    if len(given) > 1:
        raise BadField("max_tokens", f"expected the value of max_completion_tokens, got {limits['max_tokens']}")
    if given:
        found["max_tokens"] = given.pop()
    temperature = fields.number("temperature", low=0.0, high=MAX_TEMPERATURE)
    found["temperature"] = DEFAULT_TEMPERATURE if temperature is None else temperature
    if (top_p := fields.number("top_p", low=0.0, high=1.0)) is not None:
        found["top_p"] = max(top_p, 1e-9)  # 0 means: the likeliest token alone
    if (top_k := fields.integer("top_k", low=0, high=2**31 - 1)) is not None:
        found["top_k"] = top_k
    penalties = {"presence_penalty": (-2.0, 2.0), "frequency_penalty": (-2.0, 2.0), "repetition_penalty": (0.01, 100.0)}
    for name, (low, high) in penalties.items():
        if (penalty := fields.number(name, low=low, high=high)) is not None:
            found[name] = penalty
    seed = fields.integer("seed", low=-(2**63))
    found["seed"] = rng.randrange(MAX_SEED) if seed is None else seed
    stops = [s for s in fields.texts("stop") if s]
    if len(stops) == 1:
        found["stop"] = stops[0]
    elif stops:
        found["stops"] = json.dumps(stops)
    return found


def read_deadline(fields: Fields, headers: Mapping[str, str], request: oip.ModelInferRequest) -> None:
    """The deadline and priority of a request: `timeout` in seconds, or the header, which wins."""
    timeout_s = fields.number("timeout", low=1e-6, high=MAX_TIMEOUT_S)
    if TIMEOUT_HEADER in headers:
        timeout_s = milliseconds(TIMEOUT_HEADER, headers[TIMEOUT_HEADER]) / 1000.0
    if timeout_s is not None:
        set_parameter(request.parameters["timeout"], max(1, round(timeout_s * 1e6)))
    if (priority := fields.integer("priority", low=0, high=2**31 - 1)) is not None:
        set_parameter(request.parameters["priority"], priority)


def add_texts(request: oip.ModelInferRequest, name: str, items: list[bytes]) -> None:
    request.inputs.add(name=name, datatype="BYTES", shape=[len(items)])
    request.raw_input_contents.append(join_bytes(items))


def add_token_ids(request: oip.ModelInferRequest, ids: list[int]) -> None:
    request.inputs.add(name="input_ids", datatype="INT64", shape=[1, len(ids)])
    request.raw_input_contents.append(pack_numbers(ids, "INT64"))


def _messages(given: object) -> list[dict[str, str]]:
    """Role and text of each message, in order."""
    if not isinstance(given, list) or not given:
        raise BadField("messages", "expected a non-empty list of messages")
    return [_message(f"messages[{i}]", item) for i, item in enumerate(cast("list[object]", given))]


def _message(path: str, given: object) -> dict[str, str]:
    if not isinstance(given, dict):
        raise BadField(path, "expected an object with role and content")
    fields = Fields(cast("dict[str, Any]", given), path=f"{path}.")
    role = fields.text("role")
    content = fields.take("content")
    if isinstance(content, list):
        content = "".join(_part(f"{path}.content[{i}]", p) for i, p in enumerate(cast("list[object]", content)))
    if not isinstance(content, str):
        fields.refuse("content", "expected text or a list of text parts", content)
    encoded(f"{path}.content", content)
    name = fields.take("name")
    if name is not None and not isinstance(name, str):
        fields.refuse("name", "expected text", name)
    fields.end()
    return {"role": role, "content": content} | ({"name": name} if isinstance(name, str) else {})


def _part(path: str, given: object) -> str:
    """The text of one content part; images and sounds are not offered."""
    if not isinstance(given, dict):
        raise BadField(path, "expected an object with type and text")
    fields = Fields(cast("dict[str, Any]", given), path=f"{path}.")
    kind = fields.text("type")
    if kind != "text":
        fields.refuse("type", 'expected "text"', kind)
    text = fields.text("text")
    fields.end()
    return text


def _object(fields: Fields, name: str) -> dict[str, Any]:
    value = fields.take(name)
    if value is not None and not isinstance(value, dict):
        fields.refuse(name, "expected an object", value)
    return cast("dict[str, Any]", value or {})
