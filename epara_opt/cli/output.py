"""How commands speak: people read rich on a terminal, programs read JSON on stdout, errors go to stderr."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, RenderableType

from epara_opt.errors import InputError, Violation

out = Console()
err = Console(stderr=True)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout, nothing else.")]
MaxMessage = Annotated[int, typer.Option(min=1, max=2047, help="Largest gRPC message, each way, in MiB.")]
Compression = Annotated[str, typer.Option(help="Of gRPC messages that are sent: none, deflate or gzip.")]
TopologyArgument = Annotated[Path, typer.Argument(metavar="TOPOLOGY", help="Topology YAML.", show_default=False)]


def emit(data: object, *renderables: RenderableType, as_json: bool) -> None:
    """Print `data` as JSON, or the renderables for people."""
    if as_json:
        print(json.dumps(data, indent=1, default=str))
        return
    for item in renderables:
        out.print(item)


@contextmanager
def working(what: str, *, quiet: bool = False) -> Generator[None]:
    """A spinner on stderr while something takes over a second; silent off a terminal."""
    if quiet or not err.is_terminal:
        yield
        return
    with err.status(what):
        yield


_DURATION = re.compile(r"(?P<number>\d+(?:\.\d+)?)(?P<unit>ms|s|m|h)?")
_SECONDS = {"ms": 0.001, "s": 1.0, None: 1.0, "m": 60.0, "h": 3600.0}


def seconds(text: str) -> float:
    """A duration as an operator types it: 30s, 2m, 500ms, 1h; a bare number is seconds."""
    match = _DURATION.fullmatch(text.strip())
    if match is None or float(match["number"]) <= 0:
        raise InputError(Violation(path="duration", law="expected a positive one such as 30s, 2m or 500ms", value=text))
    return float(match["number"]) * _SECONDS[match["unit"]]


def read_text(path: Path, what: str) -> str:
    """A file's text, or an InputError that names it."""
    try:
        return path.read_text()
    except OSError as e:
        raise InputError(Violation(path=what, law=f"expected a readable file: {e.strerror}", value=str(path))) from None


def require_writable(path: Path | None) -> None:
    """Refuse a file that could not be written, before the work whose result it would hold is done."""
    if path is None:
        return
    law = ""
    if path.is_dir():
        law = "expected a file, this is a folder"
    else:
        nearest = next(p for p in path.absolute().parents if p.exists())
        if not nearest.is_dir():
            law = f"expected a folder at {nearest}, this is a file"
        elif not os.access(nearest, os.W_OK | os.X_OK):
            law = f"expected a writable file: no permission in {nearest}"
    if law:
        raise InputError(Violation(path="out", law=law, value=str(path)))


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    require_writable(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(path.name + ".new")
        beside.write_text(text)
        beside.replace(path)
    except OSError as e:
        raise InputError(
            Violation(path="out", law=f"expected a writable file: {e.strerror}", value=str(path))
        ) from None
