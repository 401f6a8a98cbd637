"""Embeddings: one request per input, so that the executor batches them with everyone else's."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from epara_executors.agent.http_front.errors import BadField
from epara_executors.agent.http_front.fields import Fields, encoded, token_ids
from epara_executors.agent.http_front.prompts import add_texts, add_token_ids, read_deadline
from epara_executors.agent.http_front.shapes import usage_of
from epara_executors.agent.requests import Broken
from epara_executors.contents import unpack_numbers
from epara_executors.rpc import open_inference_pb2 as oip

MAX_INPUTS = 2048  # as OpenAI's API has it


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """What a body of /v1/embeddings asks for."""

    requests: Sequence[oip.ModelInferRequest]  # one per input
    as_base64: bool


def embedding_request(body: Mapping[str, Any], headers: Mapping[str, str]) -> Embedding:
    """The body of /v1/embeddings. Raises BadField."""
    fields = Fields(body)
    base = oip.ModelInferRequest(model_name=fields.text("model"))
    given = fields.take("input")
    encoding = fields.take("encoding_format")
    if encoding not in (None, "float", "base64"):
        fields.refuse("encoding_format", "expected float or base64", encoding)
    read_deadline(fields, headers, base)
    fields.end()
    base.outputs.add(name="embedding")
    requests: list[oip.ModelInferRequest] = []
    for item in _items(given):
        request = oip.ModelInferRequest()
        request.CopyFrom(base)
        if isinstance(item, str):
            add_texts(request, "text", [encoded("input", item)])
        else:
            add_token_ids(request, item)
        requests.append(request)
    return Embedding(requests=requests, as_base64=encoding == "base64")


def _items(given: object) -> list[str | list[int]]:
    """A text, token ids, or a list of either."""
    if isinstance(given, str):
        return [given]
    if not isinstance(given, list) or not given:
        raise BadField("input", "expected text, token ids, or a non-empty list of either")
    listed = cast("list[object]", given)
    if isinstance(listed[0], int):
        return [token_ids("input", listed)]
    if len(listed) > MAX_INPUTS:
        raise BadField("input", f"expected at most {MAX_INPUTS} inputs, got {len(listed)}")
    items: list[str | list[int]] = []
    for i, item in enumerate(listed):
        if isinstance(item, str):
            items.append(item)
        elif isinstance(item, list) and item:
            items.append(token_ids(f"input[{i}]", cast("list[object]", item)))
        else:
            raise BadField(f"input[{i}]", "expected text or token ids")
    return items


async def embed(
    wanted: Embedding, infer: Callable[[oip.ModelInferRequest], Awaitable[oip.ModelInferResponse]]
) -> dict[str, Any]:
    """All inputs side by side; the first refusal is the answer, and the others are withdrawn."""
    tasks = [asyncio.ensure_future(infer(r)) for r in wanted.requests]
    try:
        responses = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    data = [
        {"object": "embedding", "index": i, "embedding": _vector(r, as_base64=wanted.as_base64)}
        for i, r in enumerate(responses)
    ]
    num_tokens = sum(usage_of(r).get("prompt_tokens", 0) for r in responses)
    return {
        "object": "list",
        "data": data,
        "model": wanted.requests[0].model_name,
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
    }


def _vector(response: oip.ModelInferResponse, *, as_base64: bool) -> str | list[float]:
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        if output.name == "embedding" and output.datatype == "FP32":
            return base64.b64encode(raw).decode() if as_base64 else unpack_numbers(raw, "FP32")
    raise Broken(f"{response.model_name}: expected an FP32 output named embedding")
