"""Refusals as HTTP: a status, OpenAI's error object, and when to come again."""

from __future__ import annotations

import math
from typing import Any

import grpc
from starlette.responses import JSONResponse

from epara_executors.agent.requests import BadRequest, Refusal

# By gRPC status: HTTP status, OpenAI's error type, code.
HTTP_OF: dict[grpc.StatusCode, tuple[int, str, str]] = {
    grpc.StatusCode.NOT_FOUND: (404, "invalid_request_error", "model_not_found"),
    grpc.StatusCode.INVALID_ARGUMENT: (400, "invalid_request_error", "invalid_value"),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (429, "rate_limit_error", "overloaded"),
    grpc.StatusCode.DEADLINE_EXCEEDED: (504, "timeout_error", "deadline_exceeded"),
    grpc.StatusCode.UNAVAILABLE: (503, "server_error", "unavailable"),
    grpc.StatusCode.UNIMPLEMENTED: (501, "invalid_request_error", "not_offered"),
    grpc.StatusCode.INTERNAL: (500, "server_error", "internal_error"),
}


class BadField(BadRequest):
    """A field of the body that the client must change."""

    def __init__(self, field: str, law: str) -> None:
        super().__init__(f"{field}: {law}")
        self.field = field


def error_object(message: str, *, type_: str, code: str, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": type_, "param": param, "code": code}}


def body_of(refusal: Refusal) -> dict[str, Any]:
    """The error object of a refusal."""
    _, type_, code = HTTP_OF[refusal.status]
    param = refusal.field if isinstance(refusal, BadField) else None
    return error_object(refusal.message, type_=type_, code=code, param=param)


def response_of(refusal: Refusal) -> JSONResponse:
    """A refusal as a response; retry-after in whole seconds, as HTTP wants it, and retry-after-ms as it was meant."""
    headers: dict[str, str] = {}
    if refusal.retry_after_ms:
        headers["retry-after"] = str(math.ceil(refusal.retry_after_ms / 1000.0))
        headers["retry-after-ms"] = str(refusal.retry_after_ms)
    status, _, _ = HTTP_OF[refusal.status]
    return JSONResponse(body_of(refusal), status, headers)
