"""Check a tree of YAML nodes by the key table and turn it into plain values. Collects every violation.

YAML 1.1 traps are met by looking at what was typed: `1e9` and `12:30` are not the numbers they seem, `no` and
`on` are not words, 010 is eight. Each message says how to write what was probably meant.
"""

from __future__ import annotations

import difflib
import math
import re
from typing import Any, Final, cast

import yaml

from epara_opt.errors import Violation
from epara_opt.topology.kinds import Choice, Flag, Kind, ListOf, MapOf, Number, OneOrMany, Record, Text
from epara_opt.topology.nodes import pairs_of, place, violation

BROKEN: Final = object()  # stands where something could not be read; its violation is in the list

_DECIMAL = re.compile(r"[-+]?(0|[1-9]\d*)(\.\d*)?|[-+]?\.\d+|[-+]?(0|[1-9]\d*)?\.\d*[eE][-+]?\d+")
_BARE_EXPONENT = re.compile(r"([-+]?\d+)[eE]([-+]?)(\d+)")
_WITH_UNIT = re.compile(r"([-+]?\d+(?:\.\d+)?)\s*([A-Za-z%/]+)")
_UNITS = ("gib", "ms", "mbps", "kb", "per_s", "s", "cv", "tokens")


class Reader:
    """Reads nodes by kind. `violations` says what was wrong, `places` where every path was written."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []
        self.places: dict[str, tuple[str, int]] = {}
        self.declared: dict[str, set[str]] = {}  # names given in a list or mapping of records, read well or not

    def read(self, kind: Kind, node: yaml.Node, path: str) -> Any:
        """The plain value, or BROKEN."""
        self.places.setdefault(path, place(node))
        match kind:
            case Number():
                return self._number(kind, node, path)
            case Flag():
                return self._flag(node, path)
            case Text() | Choice():
                return self._text(kind, node, path)
            case ListOf():
                return self._list(kind, node, path)
            case OneOrMany():
                many = isinstance(node, yaml.SequenceNode)
                return self._list(ListOf(item=kind.item), node, path) if many else [self.read(kind.item, node, path)]
            case Record():
                if not isinstance(node, yaml.MappingNode):
                    return self._fail(node, path, f"expected {kind.noun}", _typed(node))
                before = len(self.violations)
                values = self.record(kind, pairs_of(node), path, place(node))
                return values if len(self.violations) == before else BROKEN
            case MapOf():
                return self._map(kind, node, path)

    def record(
        self, kind: Record, pairs: list[tuple[yaml.Node, yaml.Node]], path: str, start: tuple[str, int]
    ) -> dict[str, Any]:
        """Every key that could be read; those that could not are BROKEN."""
        values: dict[str, Any] = {}
        first: dict[str, yaml.Node] = {}
        meant: set[str] = set()  # keys that a misspelt one stands for: not also reported as missing
        for key, value in pairs:
            name = str(key.value)
            where = f"{path}.{name}" if path else name
            if name in first:
                file, line = place(first[name])
                self._fail(key, where, f"expected each key once, first at {file}:{line}")
                continue
            first[name] = key
            if name not in kind.keys or not isinstance(key, yaml.ScalarNode):
                law, closest = _unknown(name, kind)
                meant.add(closest)
                self._fail(key, where, law)
                continue
            self.places[where] = place(key)
            values[name] = self.read(kind.keys[name].kind, value, where)
        file, line = start
        for name, key in kind.keys.items():
            if key.required and name not in first and name not in meant:
                where = f"{path}.{name}" if path else name
                self.violations.append(
                    Violation(path=where, law=f"expected {key.kind.noun}", value="nothing", file=file, line=line)
                )
        if kind.one_of and not meant:
            self._one_of(kind, set(values), path, start)
        return values

    def _one_of(self, kind: Record, given: set[str], path: str, start: tuple[str, int]) -> None:
        touched = [group for group in kind.one_of if given.intersection(group)]
        if len(touched) == 1 and given.issuperset(touched[0]):
            return
        forms = ", ".join(" with ".join(group) for group in kind.one_of)
        found = [key for group in kind.one_of for key in group if key in given]
        self.violations.append(
            Violation(
                path=path,
                law=f"expected exactly one of {forms}",
                value=" and ".join(found) or "none",
                file=start[0],
                line=start[1],
            )
        )

    def _list(self, kind: ListOf, node: yaml.Node, path: str) -> Any:
        if not isinstance(node, yaml.SequenceNode):
            if _is_null(node) and kind.exactly is None:
                return []
            return self._fail(node, path, f"expected {kind.noun}", _typed(node))
        items = cast("list[yaml.Node]", node.value)
        if kind.exactly is not None and len(items) != kind.exactly:
            return self._fail(node, path, f"expected exactly {kind.exactly}", str(len(items)))
        values: list[Any] = []
        first: dict[str, yaml.Node] = {}
        for i, item in enumerate(items):
            name = _name_of(item) if kind.named else ""
            if name in first and name:
                file, line = place(first[name])
                values.append(self._fail(item, f"{path}.{name}", f"expected each name once, first at {file}:{line}"))
                continue
            first[name] = item
            self.declared.setdefault(path, set()).add(name)
            values.append(self.read(kind.item, item, f"{path}.{name}" if name else f"{path}[{i}]"))
        return values

    def _map(self, kind: MapOf, node: yaml.Node, path: str) -> Any:
        if not isinstance(node, yaml.MappingNode):
            return self._fail(node, path, f"expected {kind.noun}", _typed(node))
        values: dict[str, Any] = {}
        first: dict[str, yaml.Node] = {}
        for key, value in pairs_of(node):
            name = str(key.value)
            where = f"{path}.{name}"
            self.declared.setdefault(path, set()).add(name)
            if name in first:
                file, line = place(first[name])
                self._fail(key, where, f"expected each key once, first at {file}:{line}")
                continue
            first[name] = key
            self.places[where] = place(key)
            if self._text(kind.name, key, where) is not BROKEN:
                values[name] = self.read(kind.value, value, where)
        return values

    def _number(self, kind: Number, node: yaml.Node, path: str) -> Any:
        typed = _typed(node)
        if not isinstance(node, yaml.ScalarNode):
            return self._fail(node, path, f"expected {kind.noun}", typed)
        text = str(node.value)
        if node.style:
            hint = " without quotes" if _DECIMAL.fullmatch(text) else ""
            return self._fail(node, path, f"expected {kind.noun}{hint}", typed)
        if text.lower().strip("+-") in (".inf", ".nan", "inf", "nan"):
            return self._fail(node, path, f"expected {kind.noun} that is finite", typed)
        if not _DECIMAL.fullmatch(text):
            return self._fail(node, path, f"expected {kind.noun}{_number_hint(text, path)}", typed)
        value = float(text)
        if not math.isfinite(value):
            return self._fail(node, path, f"expected {kind.noun} that is finite", typed)
        if kind.integer and value != int(value):
            return self._fail(node, path, f"expected {kind.noun}", typed)
        law = kind.law_broken_by(value)
        if law:
            return self._fail(node, path, law, typed)
        return int(value) if kind.integer else value

    def _flag(self, node: yaml.Node, path: str) -> Any:
        typed = _typed(node)
        if typed not in ("true", "false"):
            return self._fail(node, path, "expected true or false", typed)
        return typed == "true"

    def _text(self, kind: Text | Choice, node: yaml.Node, path: str) -> Any:
        if not isinstance(node, yaml.ScalarNode) or _is_null(node):
            return self._fail(node, path, "expected text", _typed(node))
        text = str(node.value)
        if not node.style and not str(node.tag).endswith(":str"):
            return self._fail(node, path, f'expected text; quote it: "{text}"', _yaml_reads(node))
        if isinstance(kind, Choice):
            if text in kind.options:
                return text
            close = difflib.get_close_matches(text, kind.options, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            return self._fail(node, path, f"expected one of {', '.join(kind.options)}{hint}", _typed(node))
        if not re.fullmatch(kind.pattern, text):
            return self._fail(node, path, kind.law, _typed(node))
        return text

    def _fail(self, node: yaml.Node, path: str, law: str, value: str = "") -> object:
        self.violations.append(violation(node, path, law, value))
        return BROKEN


def _typed(node: yaml.Node) -> str:
    """What the operator typed, briefly."""
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    if _is_null(node):
        return "nothing"
    return f'"{node.value}"' if isinstance(node, yaml.ScalarNode) and node.style in ("'", '"') else str(node.value)


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and str(node.tag).endswith(":null")


def _yaml_reads(node: yaml.ScalarNode) -> str:
    kind = str(node.tag).rsplit(":", 1)[-1]
    word = {"bool": "a truth value", "int": "a number", "float": "a number", "timestamp": "a date"}.get(kind, kind)
    return f"{node.value} (YAML reads {word})"


def _number_hint(text: str, path: str) -> str:
    """How to write what was probably meant."""
    if exponent := _BARE_EXPONENT.fullmatch(text):
        return f"; write {exponent[1]}.0e{exponent[2] or '+'}{exponent[3]}"
    if unit := _WITH_UNIT.fullmatch(text):
        return f"; write {unit[1]}, the unit is in the key {path.rsplit('.', 1)[-1]}"
    if re.fullmatch(r"\d+,\d+", text):
        return f" with a decimal point; write {text.replace(',', '.')} or {text.replace(',', '')}"
    if re.fullmatch(r"[-+]?\d[\d_]*(:[0-5]?\d)+(\.\d*)?", text):
        return " (YAML reads base 60)"
    if re.fullmatch(r"[-+]?0[xXbo]?[0-9A-Fa-f_]+", text):
        return " in decimal (YAML reads base 16, 8 or 2)"
    if re.fullmatch(r"[-+]?\d[\d_]*(\.\d*)?", text):
        return f" without _; write {text.replace('_', '')}"
    return ""


def _unknown(name: str, kind: Record) -> tuple[str, str]:
    """The law for an unknown key, and the known key that was probably meant (or nothing)."""
    for known in kind.keys:
        if known.startswith(f"{name}_") and known[len(name) + 1 :] in _UNITS:
            return f"unknown key, its unit is missing; did you mean {known}?", known
    close = difflib.get_close_matches(name, kind.keys, n=1)
    if close:
        return f"unknown key; did you mean {close[0]}?", close[0]
    return f"unknown key; known are {', '.join(kind.keys)}", ""


def _name_of(node: yaml.Node) -> str:
    """The value of the key `name`, where it can be used in a path."""
    if isinstance(node, yaml.MappingNode):
        for key, value in pairs_of(node):
            if key.value == "name" and isinstance(value, yaml.ScalarNode) and not _is_null(value):
                return str(value.value)
    return ""
