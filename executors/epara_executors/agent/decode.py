"""From Open Inference Protocol messages to tensors and parameters, checked; and back.

Everything a client can get wrong ends in BadRequest with the model, the tensor, the law and the value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from epara_executors.agent.requests import BadRequest, Scalar
from epara_executors.agent.worker_link import TensorDecl
from epara_executors.contents import ITEM_BYTES, join_bytes, num_elements, pack_numbers, split_bytes
from epara_executors.rpc import open_inference_pb2 as oip
from epara_executors.worker.frames import Tensor

GENERAL_PARAMETERS = frozenset(
    {"timeout", "priority", "stream", "frame", "sequence_id", "sequence_start", "sequence_end"}
)
PENALTIES = ("frequency_penalty", "presence_penalty", "repetition_penalty")
GENERATION_PARAMETERS = frozenset(
    {"max_tokens", "stream", "temperature", "top_k", "top_p", "seed", "stop", "stops", *PENALTIES}
)
MAX_TEXT_CHARACTERS = 2**16  # of one parameter: they travel in a frame's header, whose length is limited, and come back
_CONTENTS_OF = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def parameters_of(request: oip.ModelInferRequest, *, generates: bool) -> dict[str, Scalar]:
    """The request's parameters as plain values; unknown ones are refused by name."""
    if not request.parameters:
        return {}
    known = GENERAL_PARAMETERS | (GENERATION_PARAMETERS if generates else frozenset())
    found: dict[str, Scalar] = {}
    for key, value in request.parameters.items():
        if key not in known:
            raise BadRequest(
                f"{request.model_name}: parameter {key!r} is not known; expected one of {', '.join(sorted(known))}"
            )
        which = value.WhichOneof("parameter_choice")
        if which is None:
            raise BadRequest(f"{request.model_name}: parameter {key!r} has no value")
        found[key] = getattr(value, which)
        if which == "string_param" and len(value.string_param) > MAX_TEXT_CHARACTERS:
            law = f"expected at most {MAX_TEXT_CHARACTERS} characters"
            raise BadRequest(f"{request.model_name}: parameter {key!r}: {law}, got {len(value.string_param)}")
    return found


def integer(params: Mapping[str, Scalar], key: str, *, default: int, model: str) -> int:
    """An integer parameter >= 0."""
    value = params.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise BadRequest(f"{model}: parameter {key!r}: expected an integer >= 0, got {value!r}")
    return value


def stream_of(params: Mapping[str, Scalar], *, model: str) -> tuple[str, bool]:
    """(the stream that a frame belongs to, empty if none; whether it is the stream's last), under either of its names.

    `sequence_id` is Triton's: a text or an integer, of which 0 and "" mean none; `sequence_start` says nothing here.
    """
    for key in ("sequence_start", "sequence_end"):
        if not isinstance(params.get(key, False), bool):
            raise BadRequest(f"{model}: parameter {key!r}: expected true or false, got {params[key]!r}")
    stream, sequence = params.get("stream", ""), params.get("sequence_id", "")
    if isinstance(sequence, (bool, float)):
        raise BadRequest(f"{model}: parameter 'sequence_id': expected a text or an integer, got {sequence!r}")
    if not isinstance(stream, str):
        stream = ""
    if sequence and stream:
        raise BadRequest(f"{model}: expected one of the parameters 'stream' and 'sequence_id', got both")
    return stream or (str(sequence) if sequence else ""), params.get("sequence_end") is True


def inputs_of(request: oip.ModelInferRequest, declared: Sequence[TensorDecl]) -> list[Tensor]:
    """The request's inputs in declared order, each checked against its declaration.

    A model may take its input in several forms (text, or token ids); which together make one, its runner knows.
    """
    model = request.model_name
    inputs = request.inputs
    given = {t.name: i for i, t in enumerate(inputs)}
    if len(given) != len(inputs):
        raise BadRequest(f"{model}: inputs: expected distinct names")
    if not given or not given.keys() <= {name for name, _, _ in declared}:
        extra = sorted(given.keys() - {name for name, _, _ in declared})
        expected = ", ".join(f"{n} {d} {list(s)}" for n, d, s in declared)
        raise BadRequest(f"{model}: inputs: expected of {expected}; got {', '.join(extra) or 'none'}")
    raw = request.raw_input_contents
    if raw and len(raw) != len(inputs):
        raise BadRequest(f"{model}: raw_input_contents: expected {len(inputs)} (one per input), got {len(raw)}")
    tensors: list[Tensor] = []
    for name, datatype, shape in declared:
        if name not in given:
            continue
        at = given[name]
        tensor = inputs[at]
        if tensor.datatype != datatype:
            raise BadRequest(f"{model}: input {name}: expected datatype {datatype}, got {tensor.datatype or 'none'}")
        got = tuple(tensor.shape)
        if len(got) != len(shape) or any(g < 1 or (s >= 0 and g != s) for g, s in zip(got, shape, strict=False)):
            raise BadRequest(f"{model}: input {name}: expected shape {list(shape)}, got {list(got)}")
        if any(key.startswith("shared_memory") for key in tensor.parameters):
            raise BadRequest(f"{model}: input {name}: shared memory is not offered; send the contents")
        if raw and tensor.HasField("contents"):
            raise BadRequest(f"{model}: input {name}: expected raw or typed contents, got both")
        data = raw[at] if raw else _typed(model, tensor)
        tensors.append(Tensor(name, datatype, got, _checked(model, name, datatype, got, data)))
    return tensors


def _checked(model: str, name: str, datatype: str, shape: tuple[int, ...], data: bytes) -> bytes:
    elements = num_elements(shape)
    if datatype == "BYTES":
        try:
            num_items = len(split_bytes(data))
        except ValueError as e:
            raise BadRequest(f"{model}: input {name}: {e}") from None
        if num_items != elements:
            raise BadRequest(f"{model}: input {name}: expected {elements} BYTES elements, got {num_items}")
    elif len(data) != elements * ITEM_BYTES[datatype]:
        raise BadRequest(
            f"{model}: input {name}: expected {elements * ITEM_BYTES[datatype]} bytes for {datatype} {list(shape)}, "
            f"got {len(data)}"
        )
    return data


def _typed(model: str, tensor: oip.ModelInferRequest.InferInputTensor) -> bytes:
    field = _CONTENTS_OF.get(tensor.datatype)
    if field is None:
        raise BadRequest(f"{model}: input {tensor.name}: {tensor.datatype} travels only in raw_input_contents")
    values: Any = getattr(tensor.contents, field)
    if tensor.datatype == "BYTES":
        return join_bytes(values)
    try:
        return pack_numbers(values, tensor.datatype)
    except OverflowError as e:
        raise BadRequest(f"{model}: input {tensor.name}: {e}") from None


def rows_of(model: str, tensors: Sequence[Tensor], declared: Sequence[TensorDecl], *, max_rows: int) -> int:
    """Rows that a request adds to a batch: the leading dimension where that is variable, else 1."""
    batched = [name for name, _, shape in declared if shape and shape[0] == -1]
    leading = {t.name: t.shape[0] for t in tensors if t.name in batched}
    if len(leading) > 1 and len(set(leading.values())) > 1:
        raise BadRequest(f"{model}: expected one leading dimension for all inputs, got {leading}")
    rows = next(iter(leading.values()), 1)
    if rows > max_rows:
        raise BadRequest(f"{model}: expected a leading dimension <= {max_rows} (the plan's batch), got {rows}")
    return rows


def outputs_of(request: oip.ModelInferRequest, declared: Sequence[TensorDecl]) -> tuple[str, ...]:
    """Names of the outputs that the request wants; empty: all."""
    if not request.outputs:
        return ()
    known = [name for name, _, _ in declared]
    for wanted in request.outputs:
        if wanted.name not in known:
            law = f"{request.model_name}: outputs: expected among {', '.join(known)}, got {wanted.name}"
            raise BadRequest(law)
        if wanted.parameters:
            raise BadRequest(f"{request.model_name}: output {wanted.name}: parameters are not offered")
    return tuple(o.name for o in request.outputs)


def response_of(
    request: oip.ModelInferRequest, tensors: Sequence[Tensor], params: Mapping[str, Scalar] | None = None
) -> oip.ModelInferResponse:
    """Output tensors as raw contents: all, or those the request names."""
    if request.outputs:
        by_name = {t.name: t for t in tensors}
        tensors = [by_name[o.name] for o in request.outputs if o.name in by_name] or tensors
    response = oip.ModelInferResponse(
        model_name=request.model_name,
        model_version="1",
        id=request.id,
        raw_output_contents=[t.data for t in tensors],
    )
    for tensor in tensors:
        response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    for key, value in (params or {}).items():
        set_parameter(response.parameters[key], value)
    return response


def set_parameter(parameter: oip.InferParameter, value: Scalar) -> None:
    if isinstance(value, bool):
        parameter.bool_param = value
    elif isinstance(value, int):
        parameter.int64_param = value
    elif isinstance(value, float):
        parameter.double_param = value
    else:
        parameter.string_param = value
