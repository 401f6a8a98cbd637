"""Fetched models on disk, by (source, revision), within a limit.

    models/SOURCE/REVISION/...      a whole model; REVISION.json beside it is its manifest
    models/SOURCE/current           a link to the revision that workers load; replaced at once
    partial/SOURCE/REVISION/...     what has come of one; NAME.part until a file is whole and its hash is right

SOURCE is the model's source in one path component. A folder's time is when its model was last used. Room is made by
removing what was used longest ago; what is named as kept never goes. One executor owns a cache (it locks the folder);
calls may come from several threads.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
from collections.abc import Iterable, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO
from urllib.parse import quote

from epara_executors.weights.files import FileEntry, Manifest, is_plain
from epara_opt.errors import FleetError

FREE_BYTES = 256 * 2**20  # of the disk, left to others
_CURRENT = "current"


class NoRoom(Exception):
    """A model does not fit into the cache, or onto the disk, beside what must stay."""


@dataclass(frozen=True, slots=True)
class _Entry:
    source: str
    folder: Path
    size_bytes: int
    used_at: float


def place_of(source: str) -> str:
    """A source as one path component. Raises ValueError for one that is not plain."""
    if not is_plain(source):
        raise ValueError(f"model {source[:80]!r}: expected a relative path without .. or hidden parts")
    return quote(source, safe="+=@ ")


def fetched_folder(cache: Path, source: str) -> Path | None:
    """Where a fetched model is, for whoever reads the cache without owning it; None if it was not fetched."""
    if not is_plain(source):
        return None
    link = cache / "models" / place_of(source) / _CURRENT
    return link.resolve() if link.is_dir() else None


class ModelCache:
    """Close it, or let the process end, before another may have the folder."""

    def __init__(self, folder: Path, *, max_bytes: int, free_bytes: int = FREE_BYTES) -> None:
        """Raises FleetError where the folder cannot be used."""
        self.folder = folder
        self.max_bytes = max_bytes
        self._free_bytes = free_bytes
        self._models = folder / "models"
        self._partial = folder / "partial"
        self._changing = threading.Lock()
        try:
            for made in (self._models, self._partial):
                made.mkdir(parents=True, exist_ok=True)
            self._lock: IO[str] = (folder / "lock").open("w")
        except OSError as e:
            raise FleetError(f"model cache {folder}: expected a folder that can be written: {e.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise FleetError(f"model cache {folder}: expected no other executor in it, got one") from None

    def close(self) -> None:
        self._lock.close()

    def current(self, source: str) -> Path | None:
        """The folder of a fetched model, or None."""
        return fetched_folder(self.folder, source)

    def manifest(self, source: str) -> Manifest | None:
        """Of a fetched model, as it was when it came."""
        folder = self.current(source)
        if folder is None:
            return None
        try:
            listed = json.loads(folder.with_name(f"{folder.name}.json").read_text())
            return Manifest(files=tuple(FileEntry(**f) for f in listed["files"]))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def used_bytes(self) -> int:
        """Of whole models and of parts."""
        return sum(e.size_bytes for e in self._entries())

    def touch(self, sources: Iterable[str]) -> None:
        """These models are in use now."""
        for source in sources:
            folder = self.current(source)
            if folder is not None:
                os.utime(folder)

    def partial(self, source: str, revision: str) -> Path:
        """The folder for what comes of a model, made if need be."""
        folder = self._partial / place_of(source) / revision
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
        return folder

    def make_room(self, num_bytes: int, *, source: str, kept: Set[str]) -> None:
        """Remove what was used longest ago until `num_bytes` more fit. Raises NoRoom before anything is removed.

        source: the model that comes; what there is of it stays. kept: sources that run, or will.
        """
        with self._changing:
            stays = {place_of(s) for s in (*kept, source) if is_plain(s)}
            entries = self._entries()
            old = sorted((e for e in entries if e.source not in stays), key=lambda e: e.used_at)
            used = sum(e.size_bytes for e in entries)
            free = shutil.disk_usage(self.folder).free - self._free_bytes
            excess = max(used + num_bytes - self.max_bytes, num_bytes - free)
            if excess > sum(e.size_bytes for e in old):
                held = used - sum(e.size_bytes for e in old)
                raise NoRoom(
                    f"it needs {num_bytes} bytes more beside {held} that run or come; "
                    f"the cache may have {self.max_bytes}, the disk has {max(0, free)} to give"
                )
            for entry in old:
                if excess <= 0:
                    break
                self._remove(entry)
                excess -= entry.size_bytes

    def adopt(self, source: str, manifest: Manifest) -> Path:
        """What came is whole and checked: make it the model that workers load. Raises OSError."""
        place = place_of(source)
        came = self._partial / place / manifest.revision
        there = self._models / place / manifest.revision
        with self._changing:
            there.parent.mkdir(parents=True, exist_ok=True)
            listed = there.with_name(f"{there.name}.json")
            listed.write_text(json.dumps({"source": source, "files": [asdict(f) for f in manifest.files]}))
            if there.exists():  # it was here before another revision was
                shutil.rmtree(there)
            came.rename(there)
            os.utime(there)
            link = there.with_name(f"{_CURRENT}.new")
            link.unlink(missing_ok=True)
            link.symlink_to(there.name)
            link.replace(there.with_name(_CURRENT))
            shutil.rmtree(came.parent, ignore_errors=True)  # other revisions that never became whole
        return there

    def forget(self, source: str) -> None:
        """Remove what has come of a model that is not whole."""
        shutil.rmtree(self._partial / place_of(source), ignore_errors=True)

    def _entries(self) -> list[_Entry]:
        found: list[_Entry] = []
        for base in (self._models, self._partial):
            for place in (p for p in base.iterdir() if p.is_dir()):
                for folder in place.iterdir():
                    if folder.is_dir() and not folder.is_symlink():
                        size = sum(f.lstat().st_size for f in folder.rglob("*") if f.is_file())
                        found.append(_Entry(place.name, folder, size, folder.stat().st_mtime))
        return found

    def _remove(self, entry: _Entry) -> None:
        link = entry.folder.with_name(_CURRENT)
        if link.is_symlink() and link.readlink().name == entry.folder.name:
            link.unlink()  # first: nobody may find half a model
        shutil.rmtree(entry.folder, ignore_errors=True)
        entry.folder.with_name(f"{entry.folder.name}.json").unlink(missing_ok=True)
        if not any(entry.folder.parent.iterdir()):
            entry.folder.parent.rmdir()
