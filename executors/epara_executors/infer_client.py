"""A small client of the data plane: numpy in, numpy out. Used by `epara infer`, the load generator and tests.

`InferClient` blocks, `AsyncInferClient` awaits; both raise InferError with the gRPC status, so that a shed request
(RESOURCE_EXHAUSTED, retry_after_ms) can be told from a wrong one (INVALID_ARGUMENT).
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import grpc
import grpc.aio

from epara_executors.channel import DEFAULT, ChannelSettings
from epara_executors.rpc import open_inference_pb2 as oip
from epara_executors.rpc.open_inference_pb2_grpc import GRPCInferenceServiceStub
from epara_executors.tensors import AnyArray, from_array, to_array
from epara_executors.worker.frames import Tensor
from epara_opt.errors import FleetError

Scalar = str | int | float | bool
STATUS_PARAMETER = "epara_status"
RETRY_PARAMETER = "epara_retry_after_ms"
RETRY_AFTER_KEY = "retry-after-ms"
DEFAULT_TIMEOUT_S = 60.0


class InferError(FleetError):
    """A request that was not answered."""

    def __init__(self, status: grpc.StatusCode, message: str, *, retry_after_ms: int = 0, id: str = "") -> None:
        self.id = id  # of the request, where several share a call
        self.status = status
        self.message = message
        self.retry_after_ms = retry_after_ms
        super().__init__(f"{status.name}: {message}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    name: str
    datatype: str
    shape: tuple[int, ...]  # -1: variable


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """What a model takes and gives."""

    name: str
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class InferAnswer:
    """Outputs by name; BYTES are object arrays of bytes."""

    outputs: Mapping[str, AnyArray]
    parameters: Mapping[str, Scalar]
    id: str = ""

    @property
    def is_final(self) -> bool:
        """Whether a stream sends nothing more for this request."""
        return bool(self.parameters.get("triton_final_response", True))


def request_of(
    model: str, inputs: Mapping[str, AnyArray], *, params: Mapping[str, Scalar] | None = None, request_id: str = ""
) -> oip.ModelInferRequest:
    """The message for inputs and parameters."""
    request = oip.ModelInferRequest(model_name=model, id=request_id)
    for name, array in inputs.items():
        tensor = from_array(name, array)
        request.inputs.add(name=name, datatype=tensor.datatype, shape=tensor.shape)
        request.raw_input_contents.append(tensor.data)
    for key, value in (params or {}).items():
        if isinstance(value, bool):
            request.parameters[key].bool_param = value
        elif isinstance(value, int):
            request.parameters[key].int64_param = value
        elif isinstance(value, float):
            request.parameters[key].double_param = value
        else:
            request.parameters[key].string_param = value
    return request


def answer_of(response: oip.ModelInferResponse) -> InferAnswer:
    """Arrays and parameters of a response."""
    raw = zip(response.outputs, response.raw_output_contents, strict=True)
    outputs = {o.name: to_array(Tensor(o.name, o.datatype, tuple(o.shape), data)) for o, data in raw}
    return InferAnswer(outputs=outputs, parameters=_plain(response.parameters), id=response.id)


def _plain(parameters: Mapping[str, oip.InferParameter]) -> dict[str, Scalar]:
    return {k: getattr(v, which) for k, v in parameters.items() if (which := v.WhichOneof("parameter_choice"))}


def _error_of(error: Any) -> InferError:
    trailing = {str(k): v for k, v in error.trailing_metadata() or ()}
    return InferError(error.code(), str(error.details() or ""), retry_after_ms=int(trailing.get(RETRY_AFTER_KEY, 0)))


def _streamed(response: oip.ModelStreamInferResponse) -> InferAnswer:
    made = _answer_or_error(response)
    if isinstance(made, InferError):
        raise made
    return made


def _answer_or_error(response: oip.ModelStreamInferResponse) -> InferAnswer | InferError:
    if not response.error_message:
        return answer_of(response.infer_response)
    params = _plain(response.infer_response.parameters)
    status = grpc.StatusCode.__members__.get(str(params.get(STATUS_PARAMETER)), grpc.StatusCode.UNKNOWN)
    message = response.error_message.removeprefix(f"[{status.name}] ")
    retry_after_ms = int(params.get(RETRY_PARAMETER, 0))
    return InferError(status, message, retry_after_ms=retry_after_ms, id=response.infer_response.id)


def _frame(
    model: str, inputs: Mapping[str, AnyArray], index: int, stream: str, params: Mapping[str, Scalar] | None
) -> oip.ModelInferRequest:
    named = {"stream": stream} if stream else {}
    return request_of(model, inputs, params={**(params or {}), **named, "frame": index}, request_id=str(index))


def _framed(
    model: str, frames: Iterable[Mapping[str, AnyArray]], stream: str, params: Mapping[str, Scalar] | None
) -> Iterator[oip.ModelInferRequest]:
    for index, inputs in enumerate(frames):
        yield _frame(model, inputs, index, stream, params)


def _spec_of(response: oip.ModelMetadataResponse) -> ModelSpec:
    def specs(tensors: Sequence[oip.ModelMetadataResponse.TensorMetadata]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name=t.name, datatype=t.datatype, shape=tuple(t.shape)) for t in tensors)

    return ModelSpec(
        name=response.name, platform=response.platform, inputs=specs(response.inputs), outputs=specs(response.outputs)
    )


class InferClient:
    """Blocking. One executor. Close it, or use it as a context."""

    def __init__(self, address: str, *, settings: ChannelSettings = DEFAULT) -> None:
        self._channel = grpc.insecure_channel(address, options=settings.options, compression=settings.algorithm)
        self._stub: Any = GRPCInferenceServiceStub(self._channel)

    def __enter__(self) -> InferClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    def is_ready(self, *, timeout_s: float = 5.0) -> bool:
        """Whether the executor serves; False also where nobody answers."""
        try:
            return bool(self._stub.ServerReady(oip.ServerReadyRequest(), timeout=timeout_s).ready)
        except grpc.RpcError:
            return False

    def models(self, *, timeout_s: float = 5.0) -> dict[str, str]:
        """Known services and their state."""
        try:
            index = self._stub.RepositoryIndex(oip.RepositoryIndexRequest(), timeout=timeout_s)
        except grpc.RpcError as e:
            raise _error_of(e) from None
        return {m.name: m.state for m in index.models}

    def metadata(self, model: str, *, timeout_s: float = 5.0) -> ModelSpec:
        try:
            return _spec_of(self._stub.ModelMetadata(oip.ModelMetadataRequest(name=model), timeout=timeout_s))
        except grpc.RpcError as e:
            raise _error_of(e) from None

    def infer(
        self,
        model: str,
        inputs: Mapping[str, AnyArray],
        *,
        params: Mapping[str, Scalar] | None = None,
        request_id: str = "",
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> InferAnswer:
        """One request, one answer. timeout_s is how long the call may take, not the service's objective."""
        request = request_of(model, inputs, params=params, request_id=request_id)
        try:
            return answer_of(self._stub.ModelInfer(request, timeout=timeout_s))
        except grpc.RpcError as e:
            raise _error_of(e) from None

    def frames(
        self,
        model: str,
        frames: Iterable[Mapping[str, AnyArray]],
        *,
        stream: str = "",
        params: Mapping[str, Scalar] | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Iterator[InferAnswer | InferError]:
        """A stream of frames over one call: what comes back stands in their order, a refusal in its frame's place.

        Frames are sent as `frames` gives them, while answers come. `id` of an answer is the frame's index. Of a
        service without frames per second, order is kept only where `stream` names one. Leaving the loop ends the
        stream. timeout_s is of the whole call. Raises InferError where the call itself ends badly.
        """
        call = self._stub.ModelStreamInfer(_framed(model, frames, stream, params), timeout=timeout_s)
        try:
            for response in call:
                yield _answer_or_error(response)
        except grpc.RpcError as e:
            raise _error_of(e) from None
        finally:
            call.cancel()

    def stream(
        self,
        model: str,
        inputs: Mapping[str, AnyArray],
        *,
        params: Mapping[str, Scalar] | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Iterator[InferAnswer]:
        """One generation, token by token. Leaving the loop cancels it."""
        request = request_of(model, inputs, params={"stream": True, **(params or {})})
        call = self._stub.ModelStreamInfer(iter([request]), timeout=timeout_s)
        try:
            for response in call:
                yield _streamed(response)
        except grpc.RpcError as e:
            raise _error_of(e) from None
        finally:
            call.cancel()


class AsyncInferClient:
    """Awaiting. One executor; any number of requests at a time."""

    def __init__(self, address: str, *, settings: ChannelSettings = DEFAULT) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=settings.options, compression=settings.algorithm)
        self._stub: Any = GRPCInferenceServiceStub(self._channel)

    async def __aenter__(self) -> AsyncInferClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._channel.close()

    async def metadata(self, model: str, *, timeout_s: float = 5.0) -> ModelSpec:
        try:
            return _spec_of(await self._stub.ModelMetadata(oip.ModelMetadataRequest(name=model), timeout=timeout_s))
        except grpc.aio.AioRpcError as e:
            raise _error_of(e) from None

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, AnyArray],
        *,
        params: Mapping[str, Scalar] | None = None,
        request_id: str = "",
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> InferAnswer:
        """One request, one answer."""
        return await self.send(request_of(model, inputs, params=params, request_id=request_id), timeout_s=timeout_s)

    async def send(self, request: oip.ModelInferRequest, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> InferAnswer:
        """A request made before with `request_of`: a load generator encodes its inputs once."""
        try:
            return answer_of(await self._stub.ModelInfer(request, timeout=timeout_s))
        except grpc.aio.AioRpcError as e:
            raise _error_of(e) from None

    async def frames(
        self,
        model: str,
        frames: AsyncIterable[Mapping[str, AnyArray]],
        *,
        stream: str = "",
        params: Mapping[str, Scalar] | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> AsyncIterator[InferAnswer | InferError]:
        """As InferClient.frames."""

        async def requests() -> AsyncIterator[oip.ModelInferRequest]:
            index = 0
            async for inputs in frames:
                yield _frame(model, inputs, index, stream, params)
                index += 1

        call = self._stub.ModelStreamInfer(requests(), timeout=timeout_s)
        try:
            async for response in call:
                yield _answer_or_error(response)
        except grpc.aio.AioRpcError as e:
            raise _error_of(e) from None
        finally:
            call.cancel()

    async def stream(
        self,
        model: str,
        inputs: Mapping[str, AnyArray],
        *,
        params: Mapping[str, Scalar] | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> AsyncIterator[InferAnswer]:
        """One generation, token by token. Leaving the loop cancels it."""
        request = request_of(model, inputs, params={"stream": True, **(params or {})})

        async def one() -> AsyncIterator[oip.ModelInferRequest]:
            yield request

        call = self._stub.ModelStreamInfer(one(), timeout=timeout_s)
        try:
            async for response in call:
                yield _streamed(response)
        except grpc.aio.AioRpcError as e:
            raise _error_of(e) from None
        finally:
            call.cancel()
