"""What this executor gives its peers: models below the model root, and fetched ones. Calls block; use threads.

A folder's files are hashed when a peer first asks, and again only if a size or time of theirs has changed. Nothing is
opened that is not in such a list, so a name in a request is only ever looked up.
"""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import IO

from epara_executors.weights.cache import ModelCache
from epara_executors.weights.files import (
    BadManifest,
    FileEntry,
    Manifest,
    is_model,
    is_plain,
    sha256_of,
    travelling,
)

log = logging.getLogger(__name__)

_Mark = tuple[int, int, int]  # size, time of the last change, inode


class NotOffered(Exception):
    """There is no such model, revision or file to be had here; the message says which."""


class Offer:
    """Of one executor. Safe to use from several threads."""

    def __init__(self, model_root: Path, cache: ModelCache) -> None:
        self._model_root = model_root
        self._cache = cache
        self._memory = cache.folder / "hashes.json"
        self._hashed: dict[str, tuple[_Mark, str]] = self._remembered()  # by path
        self._hashing = threading.Lock()  # one folder at a time: disks are slow enough
        self._progress: dict[str, list[int]] = {}  # by source: bytes hashed, bytes in all

    def progress(self, source: str) -> tuple[int, int]:
        """Bytes hashed and bytes in all of a model that `manifest` is busy with; (0, 0) otherwise."""
        done, total = self._progress.get(source, (0, 0))
        return done, total

    def manifest(self, source: str) -> Manifest:
        """What there is of a model here. Reads all of it the first time. Raises NotOffered."""
        return self._manifest(source, self._files(source), may_hash=True)

    def open(self, source: str, revision: str, name: str) -> IO[bytes]:
        """A file of a model whose manifest was asked for before. Raises NotOffered."""
        files = self._files(source)
        have = self._manifest(source, files, may_hash=False)
        if have.revision != revision:
            raise NotOffered(f"model {source}: expected revision {have.revision}, got {revision[:80]}")
        if name not in {f.name for f in have.files}:
            raise NotOffered(f"model {source}: no file {name[:80]!r} that may travel")
        try:
            return dict(files)[name].open("rb")
        except OSError as e:
            raise NotOffered(f"model {source}: {name}: {e.strerror}") from e

    def _files(self, source: str) -> list[tuple[str, Path]]:
        if not is_plain(source):
            raise NotOffered(f"model {source[:80]!r}: expected a relative path without .. or hidden parts")
        for folder in (self._model_root / source, self._cache.current(source)):
            files = travelling(folder, [self._model_root]) if folder is not None else []
            if is_model(name for name, _ in files):
                return files
        raise NotOffered(f"model {source}: not here")

    def _manifest(self, source: str, files: list[tuple[str, Path]], *, may_hash: bool) -> Manifest:
        try:
            marks = [(name, file, _mark(file)) for name, file in files]
            missing = [file for _, file, mark in marks if self._hashed.get(str(file), (None, ""))[0] != mark]
            if missing and not may_hash:
                raise NotOffered(f"model {source}: its files have changed, or were never listed: ask for them first")
            if missing:
                with self._hashing:
                    self._hash(source, missing)
            listed = [FileEntry(name=n, size_bytes=m[0], sha256=self._hashed[str(f)][1]) for n, f, m in marks]
            return Manifest(files=tuple(listed))
        except (OSError, KeyError, BadManifest) as e:
            raise NotOffered(f"model {source}: its files cannot be read, or change: {e}") from e

    def _hash(self, source: str, files: list[Path]) -> None:
        known = [0, sum(f.stat().st_size for f in files)]
        self._progress[source] = known

        def more(num_bytes: int) -> None:
            known[0] += num_bytes

        try:
            for file in files:
                mark = _mark(file)
                if self._hashed.get(str(file), (None, ""))[0] == mark:  # somebody else did meanwhile
                    more(mark[0])
                    continue
                digest = sha256_of(file, on_bytes=more)
                if _mark(file) == mark:
                    self._hashed[str(file)] = (mark, digest)
            self._remember()
        finally:
            del self._progress[source]

    def _remembered(self) -> dict[str, tuple[_Mark, str]]:
        """What was hashed before. A memory that cannot be read is none."""
        try:
            raw = json.loads(self._memory.read_text())
            return {str(p): ((int(m[0]), int(m[1]), int(m[2])), str(h)) for p, (m, h) in raw.items()}
        except (OSError, ValueError, TypeError, AttributeError, IndexError, KeyError):
            return {}

    def _remember(self) -> None:
        kept = {p: h for p, h in self._hashed.items() if Path(p).is_file()}
        temporary = self._memory.with_suffix(".tmp")
        try:
            temporary.write_text(json.dumps(kept))
            temporary.replace(self._memory)
        except OSError as e:
            log.warning("%s: %s; files will be hashed again after a restart", self._memory, e)


def _mark(file: Path) -> _Mark:
    found = file.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino
