"""What a runner takes and gives, and the check of one request against it. Knows no torch.

A task may accept several forms of input (text, or token ids); a request must fit one of them whole. A request that
does not is refused alone: the others of its batch run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from epara_executors.runners.arrays import Array, datatype_of


class RequestError(Exception):
    """This request cannot be served as it is; the client must change it."""


class LoadError(Exception):
    """The model cannot be served in this shape, from this source; the message says what was tried."""


class UnsupportedShape(LoadError):
    """No runner serves this task and model over so many devices; asking again changes nothing."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, datatype and shape of a tensor; -1 is variable, a leading -1 counts the request's rows."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False

    def listed(self) -> list[Any]:
        """As `loaded` frames carry it."""
        return [self.name, self.datatype, list(self.shape)]


Form = tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class Request:
    """One request: its input arrays by name, and which outputs it wants (empty: all)."""

    id: str
    inputs: Mapping[str, Array]
    params: Mapping[str, Any] = field(default_factory=dict[str, Any])
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one request: output arrays, or a code and a message."""

    id: str
    outputs: Mapping[str, Array] = field(default_factory=dict[str, Array])
    usage: Mapping[str, int] = field(default_factory=dict[str, int])  # of tokens; empty: none were read or written
    code: str = ""  # "" | INVALID_ARGUMENT | INTERNAL
    message: str = ""


class Runner(Protocol):
    """A loaded model of one task."""

    @property
    def forms(self) -> tuple[Form, ...]: ...

    @property
    def outputs(self) -> Form: ...

    @property
    def parameter_bytes(self) -> int:
        """Weights and buffers held by this rank."""
        ...


class BatchRunner(Runner, Protocol):
    """A model that answers a batch in one pass."""

    def run(self, requests: Sequence[Request]) -> list[Answer]:
        """One answer per request, in order. A request's error is its own; rows of a request stay together."""
        ...

    def example(self, rows: int) -> Request:
        """A request of typical size with this many rows, for warming up and measuring."""
        ...


def check(request: Request, forms: Sequence[Form]) -> int:
    """Number of rows of a request that fits one of the forms.

    Raises
    ------
    RequestError
        Naming the tensor, what was expected and what came.
    """
    names = set(request.inputs)
    for form in forms:
        allowed = {s.name for s in form}
        if names <= allowed and {s.name for s in form if not s.optional} <= names:
            return _rows(request, form)
    wanted = " or ".join(" + ".join(f"[{s.name}]" if s.optional else s.name for s in form) for form in forms)
    raise RequestError(f"inputs: expected {wanted}, got {', '.join(sorted(names)) or 'none'}")


def _rows(request: Request, form: Form) -> int:
    rows: int | None = None
    for spec in form:
        array = request.inputs.get(spec.name)
        if array is None:
            continue
        datatype = datatype_of(array)
        if datatype != spec.datatype:
            raise RequestError(f"{spec.name}: expected datatype {spec.datatype}, got {datatype}")
        fits = len(array.shape) == len(spec.shape) and all(
            want in (-1, got) for want, got in zip(spec.shape, array.shape, strict=True)
        )
        if not fits:
            raise RequestError(f"{spec.name}: expected shape {list(spec.shape)}, got {list(array.shape)}")
        if any(n == 0 for n in array.shape):
            raise RequestError(f"{spec.name}: expected no empty dimension, got {list(array.shape)}")
        if spec.shape[0] == -1:
            if rows is not None and array.shape[0] != rows:
                raise RequestError(
                    f"{spec.name}: expected {rows} rows like the tensors before it, got {array.shape[0]}"
                )
            rows = int(array.shape[0])
    return rows or 1
