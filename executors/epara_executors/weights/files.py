"""Which files make a model, by name, size and SHA-256.

What may travel is a list of what may, never of what may not: safetensors, JSON, the files of tokenizers and chat
templates, and `model.pt2` beside `tensors.json` (which `runners/archive.py` reads without unpickling anything). Names
are plain: no absolute ones, no `..`, nothing hidden, at most MAX_DEPTH folders.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

MAX_FILES = 1024
MAX_DEPTH = 3
CONFIG = "config.json"
TENSORS = "tensors.json"
PROGRAM = "model.pt2"
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=@ -]*")
_SUFFIXES = (".safetensors", ".json", ".jinja")
_NAMES = frozenset(
    (PROGRAM, "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.model")
)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_READ_BYTES = 2**20


class BadManifest(ValueError):
    """A list of files that no model has: a name that may not travel, a size or hash that cannot be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file of a model. Checked at birth: raises BadManifest."""

    name: str  # relative to the model's folder, with /
    size_bytes: int
    sha256: str  # hexadecimal

    def __post_init__(self) -> None:
        if not may_travel(self.name):
            raise BadManifest(f"file {self.name[:80]!r}: expected a plain name of a kind that may travel")
        if self.size_bytes < 0:
            raise BadManifest(f"file {self.name}: expected a size >= 0, got {self.size_bytes}")
        if not _SHA256.fullmatch(self.sha256):
            raise BadManifest(f"file {self.name}: expected a SHA-256 in hexadecimal, got {self.sha256[:80]!r}")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All files of a model. Checked at birth: raises BadManifest."""

    files: tuple[FileEntry, ...]

    def __post_init__(self) -> None:
        names = {f.name for f in self.files}
        if not is_model(names):
            raise BadManifest(
                f"expected {CONFIG} and weights in safetensors, or {TENSORS} and {PROGRAM}, got {sorted(names)[:8]}"
            )
        if len(names) != len(self.files) or len(names) > MAX_FILES:
            raise BadManifest(f"expected at most {MAX_FILES} files of different names, got {len(self.files)}")

    @cached_property
    def revision(self) -> str:
        """What these contents are called: a hash of names, sizes and hashes, whatever the order."""
        lines = sorted(f"{f.sha256} {f.size_bytes} {f.name}\n" for f in self.files)
        return hashlib.sha256("".join(lines).encode()).hexdigest()[:32]

    @property
    def size_bytes(self) -> int:
        return sum(f.size_bytes for f in self.files)


def may_travel(name: str) -> bool:
    """Whether a file of this name, relative to its model's folder, is one that executors give each other."""
    parts = name.split("/")
    if len(parts) > MAX_DEPTH or not all(_PART.fullmatch(p) for p in parts):
        return False
    return parts[-1].endswith(_SUFFIXES) or name in _NAMES


def is_plain(source: str) -> bool:
    """Whether a source is a relative path without `..` or hidden parts: only such ones are fetched or given."""
    parts = source.split("/")
    return len(source) <= 200 and len(parts) <= 8 and all(_PART.fullmatch(p) for p in parts)


def is_model(names: Iterable[str]) -> bool:
    """Whether files of these names are something that an executor can load."""
    known = set(names)
    if TENSORS in known and PROGRAM in known:
        return True
    return CONFIG in known and any(n.endswith(".safetensors") for n in known)


def local_folder(source: str, model_root: Path) -> Path | None:
    """The folder of a local source: under `model_root`, absolute, or as the process sees it."""
    for folder in (model_root / source, Path(source)):
        if (folder / CONFIG).is_file() or (folder / TENSORS).is_file():
            return folder
    return None


def hub_folder(source: str) -> Path | None:
    """Where the hub's own library keeps a source that it has downloaded before, for the branch `main`."""
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    model = Path(cache or Path(home) / "hub") / f"models--{source.replace('/', '--')}"
    try:
        folder = model / "snapshots" / (model / "refs" / "main").read_text().strip()
        return folder if (folder / CONFIG).is_file() else None
    except (OSError, ValueError):
        return None


def travelling(folder: Path, roots: Sequence[Path]) -> list[tuple[str, Path]]:
    """Files of a model's folder that may travel, by name, sorted. A link that leads out of the folder and `roots`
    is left out."""
    inside = [folder.resolve(), *(r.resolve() for r in roots)]
    found: list[tuple[str, Path]] = []
    for place, folders, names in os.walk(folder):
        below = Path(place).relative_to(folder)
        folders[:] = [f for f in folders if _PART.fullmatch(f)] if len(below.parts) + 1 < MAX_DEPTH else []
        for name in names:
            relative = (below / name).as_posix()
            file = Path(place) / name
            if may_travel(relative) and file.is_file() and any(file.resolve().is_relative_to(r) for r in inside):
                found.append((relative, file))
    return sorted(found)


def sha256_of(file: Path, *, on_bytes: Callable[[int], None] | None = None) -> str:
    """In hexadecimal. on_bytes: told how many more have been read. Raises OSError."""
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while data := opened.read(_READ_BYTES):
            digest.update(data)
            if on_bytes is not None:
                on_bytes(len(data))
    return digest.hexdigest()
