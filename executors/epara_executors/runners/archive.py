"""A torch.export archive, read without running what it brings along.

`torch.export.load` trusts its file: it unpickles sample inputs, custom objects and tensors of other classes, runs
`guards_code` as Python, evaluates shape expressions, follows any dotted name below `torch` as an operator, and loads
compiled code. So the archive is opened here as the zip file it is, and torch gets another one made in memory:

- raw weights and constants only; what asks for unpickling is refused, sample inputs are left out;
- of the program every word is checked: operators are ATen's or arithmetic, expressions are sums and products of
  symbols, names are names; guards, which only repeat the shapes, and traces of the exporting machine are left out.

What remains trusted is torch's own operators with arguments of the program's choice.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch.export import ExportedProgram

from epara_executors.runners.contract import LoadError

PROGRAM = "models/model.json"
_WEIGHTS = "data/weights/"
_CONSTANTS = "data/constants/"
_SAMPLES = "data/sample_inputs/model.pt"
_PLAIN = ("archive_format", "archive_version", "byteorder", ".data/version")

_NAME = re.compile(r"[A-Za-z_]\w*")
_WORDS = re.compile(r"[\w.,:+\-> ]*")  # parameter names, dtypes, einsum equations: nothing that could call
_ATEN = re.compile(r"torch\.ops\.aten\.(\w+)\.(\w+)")
_ARITHMETIC = re.compile(
    r"_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|pos|pow|eq|ne|lt|le|gt|ge|and_|or_|not_)"
    r"|math\.(ceil|floor|trunc|sqrt)|torch\.sym_(max|min|int|float|not|ite|sum)"
)
_EXPRESSION = re.compile(r"[\w'.,()=<>+\-*/&|~ ]*")
_FUNCTIONS = (
    ("Symbol", "Integer", "Rational", "Add", "Mul", "Pow", "Max", "Min", "Mod", "PythonMod", "FloorDiv", "CleanDiv"),
    ("CeilDiv", "IntTrueDiv", "ModularIndexing", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "And", "Or", "Not"),
    ("True", "False", "positive", "negative", "nonnegative", "integer", "real", "zero", "finite", "even", "odd"),
)
_EXPRESSION_WORDS = frozenset(word for line in _FUNCTIONS for word in line)
_SYMBOL = re.compile(r"[su]\d+|zuf\d+")
_CONTAINERS = ("builtins.tuple", "builtins.list", "builtins.dict")


def open_program(file: Path) -> ExportedProgram:
    """The program with its weights, on the CPU. Raises LoadError that says what is wrong with the file."""
    archive = checked_archive(file)
    try:
        return torch.export.load(archive)
    except Exception as error:  # torch has no type of its own for any of it
        raise LoadError(f"{file}: torch {torch.__version__} cannot load it: {_first_line(error)}") from error


def checked_archive(file: Path) -> io.BytesIO:
    """An archive of the same program that holds nothing but what was checked. Raises LoadError."""
    if not file.is_file():
        raise LoadError(f"{file}: expected an archive of torch.export.save, found no such file")
    made = io.BytesIO()
    try:
        with zipfile.ZipFile(file) as given, zipfile.ZipFile(made, "w") as taken:
            root = given.namelist()[0].split("/")[0]
            records = {name.removeprefix(f"{root}/") for name in given.namelist()}
            if PROGRAM not in records:
                raise LoadError(f"expected a record {PROGRAM}, as torch.export.save of torch 2.8 or later writes")

            def read(name: str) -> bytes:
                return given.read(f"{root}/{name}")

            def write(name: str, data: bytes) -> None:
                taken.writestr(f"program/{name}", data)

            for name in _PLAIN:
                if name in records:
                    write(name, read(name))
            write(PROGRAM, json.dumps(_clean(json.loads(read(PROGRAM)))).encode())
            write(_SAMPLES, b"")
            for folder, config in (
                (_WEIGHTS, "model_weights_config.json"),
                (_CONSTANTS, "model_constants_config.json"),
            ):
                payload = _clean(json.loads(read(folder + config)))
                write(folder + config, json.dumps(payload).encode())
                for record in sorted(_raw_records(payload)):
                    write(folder + record, read(folder + record))
    except LoadError as error:
        raise LoadError(f"{file}: {error}") from error
    except (zipfile.BadZipFile, OSError, IndexError, KeyError, ValueError, RecursionError) as error:
        raise LoadError(f"{file}: expected an archive of torch.export.save: {_first_line(error)}") from error
    made.seek(0)
    return made


def _raw_records(payload: Mapping[str, Any]) -> set[str]:
    """Names of the records that hold tensors as plain bytes."""
    found: set[str] = set()
    for name, meta in cast("dict[str, dict[str, Any]]", payload["config"]).items():
        record = str(meta["path_name"])
        if meta["use_pickle"] or not re.fullmatch(r"(weight|tensor)_\d+", record):
            raise LoadError(f"{name}: expected a plain tensor, got {record}, which only unpickling could read")
        found.add(record)
    return found


def _clean(value: Any, key: str = "") -> Any:
    """The same JSON with what would be run left out. Raises LoadError for words that could be more than words."""
    if isinstance(value, dict):
        return {
            _allowed("key", name): {} if name == "metadata" else [] if name == "guards_code" else _clean(child, name)
            for name, child in cast("dict[str, Any]", value).items()
        }
    if isinstance(value, list):
        return [_clean(child, key) for child in cast("list[Any]", value)]
    return _allowed(key, value) if isinstance(value, str) else value


def _allowed(key: str, text: str) -> str:
    if not _RULES.get(key, _are_words)(text):
        raise LoadError(f"{key or 'program'}: expected {_WANTED.get(key, 'plain words')}, got {text[:80]!r}")
    return text


def _are_words(text: str) -> bool:
    return _WORDS.fullmatch(text) is not None


def _is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


def _is_operator(text: str) -> bool:
    if _ARITHMETIC.fullmatch(text):
        return True
    found = _ATEN.fullmatch(text)
    operator: Any = found and getattr(getattr(torch.ops.aten, found[1], None), found[2], None)
    schema = getattr(operator, "_schema", None)
    # aten::from_file and aten::save are operators too.
    return schema is not None and not any("file" in argument.name for argument in schema.arguments)


def _is_expression(text: str) -> bool:
    words = re.findall(r"[A-Za-z_]\w*", text)  # those in quotes too: sympy reads strings as expressions again
    known = all(w in _EXPRESSION_WORDS or _SYMBOL.fullmatch(w) for w in words)
    return known and _EXPRESSION.fullmatch(text) is not None


def _is_structure(text: str) -> bool:
    """A serialized pytree of tuples, lists and mappings. Other types may import modules by name."""

    def plain(node: Any) -> bool:
        kind, context = node["type"], json.loads(node["context"] or "null")
        keys = context is None or (isinstance(context, list) and all(isinstance(k, str) for k in context))
        return (kind is None or kind in _CONTAINERS) and keys and all(plain(c) for c in node["children_spec"])

    try:
        _, root = json.loads(text)
        return plain(root)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


_RULES: Mapping[str, Callable[[str], bool]] = {
    "name": _is_name,
    "as_name": _is_name,
    "forward_arg_names": _is_name,
    "target": _is_operator,
    "expr_str": _is_expression,
    "in_spec": _is_structure,
    "out_spec": _is_structure,
}
_WANTED: Mapping[str, str] = {
    "name": "a name",
    "as_name": "a name",
    "forward_arg_names": "a name",
    "target": "an operator of ATen without files, or arithmetic",
    "expr_str": "arithmetic of symbols",
    "in_spec": "tuples, lists and mappings",
    "out_spec": "tuples, lists and mappings",
}


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
