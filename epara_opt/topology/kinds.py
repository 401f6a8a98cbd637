"""What a value in a topology file may be: the vocabulary of the key table.

The table (`keys.py`) is written in these words once; the reader checks files by it and the JSON Schema is
printed from it, so the two cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """A decimal number; bounds are laws."""

    integer: bool = False
    above: float | None = None  # exclusive lower bound
    least: float | None = None  # inclusive lower bound
    most: float | None = None  # inclusive upper bound

    @property
    def noun(self) -> str:
        return "a whole number" if self.integer else "a number"

    def law_broken_by(self, value: float) -> str:
        """The law that `value` breaks, or nothing."""
        if self.above is not None and not value > self.above:
            return f"expected > {self.above:g}"
        if self.least is not None and not value >= self.least:
            return f"expected >= {self.least:g}"
        if self.most is not None and not value <= self.most:
            return f"expected <= {self.most:g}"
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """true or false."""

    noun: str = "true or false"


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """Text; with a pattern (matched whole) and its law in words where only some texts will do."""

    pattern: str = r"(.|\n)*\S(.|\n)*"
    law: str = "expected text that is not blank"
    noun: str = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One of a few words."""

    options: tuple[str, ...]
    noun: str = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class ListOf:
    """A list. `named`: its records have a key `name`, unique in the list, which names them in messages."""

    item: Kind
    named: bool = False
    exactly: int | None = None
    noun: str = "a list"


@dataclass(frozen=True, slots=True, kw_only=True)
class OneOrMany:
    """One text, or a list of them."""

    item: Text
    noun: str = "text or a list of texts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A mapping with known keys. `one_of`: exactly one of these groups of keys must be there, and whole."""

    keys: Mapping[str, Key]
    one_of: tuple[tuple[str, ...], ...] = ()
    noun: str = "a mapping"


@dataclass(frozen=True, slots=True, kw_only=True)
class MapOf:
    """A mapping from names, which obey `name`, to records."""

    name: Text
    value: Record
    noun: str = "a mapping"


Kind = Number | Flag | Text | Choice | ListOf | OneOrMany | Record | MapOf


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key of a record: what it holds, and what it means (the description in the JSON Schema)."""

    kind: Kind
    about: str
    required: bool = False
