"""JSON Schema (draft 2020-12) of plan.json, derived from the Plan dataclasses themselves: no list to keep in step."""

from __future__ import annotations

import inspect
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from typing import Any, Union, get_args, get_origin, get_type_hints

from epara_opt.plan import FORMAT, Plan

DRAFT = "https://json-schema.org/draft/2020-12/schema"
_SCALARS: Mapping[object, str] = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def plan_schema() -> dict[str, Any]:
    """The schema of the whole file: the fields of Plan, and the format's number."""
    definitions: dict[str, Any] = {}
    root = _record(Plan, definitions)
    root["properties"] = {"format": {"const": FORMAT}, **root["properties"]}
    root["required"] = ["format", *root["required"]]
    return {"$schema": DRAFT, "title": "epara-opt plan", **root, "$defs": definitions}


def _record(kind: type, definitions: dict[str, Any]) -> dict[str, Any]:
    """An object with the dataclass's fields; those with a default may be absent, as readers fill them in."""
    hints = get_type_hints(kind)
    needed = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    return {
        "type": "object",
        "description": inspect.getdoc(kind)
        if kind.__doc__ and not kind.__doc__.startswith(f"{kind.__name__}(")
        else "",
        "properties": {f.name: _schema(hints[f.name], definitions) for f in fields(kind)},
        "required": needed,
        "additionalProperties": False,
    }


def _schema(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    if hint is Any:
        return {}
    if hint in _SCALARS:
        return {"type": _SCALARS[hint]}
    if isinstance(hint, type) and issubclass(hint, Enum):
        return {"enum": [member.value for member in hint]}
    if isinstance(hint, type) and is_dataclass(hint):
        if hint.__name__ not in definitions:
            definitions[hint.__name__] = {}  # before its fields, so that a type may contain itself
            definitions[hint.__name__] = _record(hint, definitions)
        return {"$ref": f"#/$defs/{hint.__name__}"}
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(arg, definitions) for arg in args]}
    if origin in (tuple, list):
        return {"type": "array", "items": _schema(args[0], definitions)}
    if origin in (dict, Mapping):
        return {"type": "object", "additionalProperties": _schema(args[1], definitions)}
    raise TypeError(f"plan_schema knows no JSON form of {hint!r}: add one beside the field's type")
