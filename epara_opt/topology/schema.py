"""JSON Schema (draft 2020-12) of topology files, made from the key table, for editors that complete and check."""

from __future__ import annotations

from typing import Any

from epara_opt.topology.keys import TOPOLOGY
from epara_opt.topology.kinds import Choice, Flag, Kind, ListOf, MapOf, Number, OneOrMany, Record, Text

DRAFT = "https://json-schema.org/draft/2020-12/schema"


def topology_schema() -> dict[str, Any]:
    """The schema of one whole topology file (a file made for `include` may leave out what others give)."""
    return {"$schema": DRAFT, "title": "epara-opt topology", **_schema(TOPOLOGY)}


def _schema(kind: Kind) -> dict[str, Any]:
    match kind:
        case Number():
            bounds = {"exclusiveMinimum": kind.above, "minimum": kind.least, "maximum": kind.most}
            known = {k: v for k, v in bounds.items() if v is not None}
            return {"type": "integer" if kind.integer else "number", **known}
        case Flag():
            return {"type": "boolean"}
        case Text():
            return {"type": "string", "pattern": f"^({kind.pattern})$"}
        case Choice():
            return {"type": "string", "enum": list(kind.options)}
        case ListOf():
            exact = {} if kind.exactly is None else {"minItems": kind.exactly, "maxItems": kind.exactly}
            return {"type": "array", "items": _schema(kind.item), **exact}
        case OneOrMany():
            one = _schema(kind.item)
            return {"anyOf": [one, {"type": "array", "items": one}]}
        case MapOf():
            return {"type": "object", "propertyNames": _schema(kind.name), "additionalProperties": _schema(kind.value)}
        case Record():
            return _record(kind)


def _record(kind: Record) -> dict[str, Any]:
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: {**_schema(key.kind), "description": key.about} for name, key in kind.keys.items()},
        "required": [name for name, key in kind.keys.items() if key.required],
        "additionalProperties": False,
    }
    if kind.one_of:
        schema["oneOf"] = [
            {
                "required": list(group),
                "not": {"anyOf": [{"required": [k]} for other in kind.one_of if other != group for k in other]},
            }
            for group in kind.one_of
        ]
    return schema
