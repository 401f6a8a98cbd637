"""What an executor remembers across restarts: the committed plan and the highest fence. One JSON file.

Written to a temporary file, flushed to the disk, renamed: a crash leaves the old or the new, never a half.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from google.protobuf import json_format

from epara_executors.rpc import epara_pb2 as pb
from epara_executors.rpc.convert import commit_from_pb, commit_to_pb
from epara_opt.control.ports import CommitSpec, Fence
from epara_opt.errors import FleetError

log = logging.getLogger(__name__)

FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Remembered:
    seen: Fence
    committed: CommitSpec | None
    committed_fence: Fence


NOTHING = Remembered(seen=Fence(epoch=0, generation=0), committed=None, committed_fence=Fence(epoch=0, generation=0))


def require_usable(directory: Path) -> None:
    """Make the state directory if need be. Raises FleetError where nothing could be kept in it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise FleetError(f"state directory {directory}: expected a folder that can be made: {e.strerror}") from None
    if not os.access(directory, os.W_OK | os.X_OK):
        raise FleetError(f"state directory {directory}: expected a writable folder: no permission")


class CommittedStore:
    """One executor's memory in its state directory, which it locks against a second executor."""

    def __init__(self, directory: Path) -> None:
        require_usable(directory)
        self._path = directory / "committed.json"
        self._lock: IO[str] = (directory / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise FleetError(f"state directory {directory}: expected no other executor in it, got one") from None

    def close(self) -> None:
        self._lock.close()

    def load(self) -> Remembered:
        """What was saved last. A file that cannot be read is set aside, said so, and counts as nothing."""
        try:
            raw = json.loads(self._path.read_text())
            if raw["format"] != FORMAT:
                raise ValueError(f"format: expected {FORMAT}, got {raw['format']}")
            seen = Fence(epoch=int(raw["seen"]["epoch"]), generation=int(raw["seen"]["generation"]))
            if raw["commit"] is None:
                return Remembered(seen=seen, committed=None, committed_fence=NOTHING.seen)
            message = json_format.ParseDict(raw["commit"], pb.CommitRequest())
            fence = Fence(epoch=message.fence.epoch, generation=message.fence.generation)
            return Remembered(seen=seen, committed=commit_from_pb(message), committed_fence=fence)
        except FileNotFoundError:
            return NOTHING
        except (OSError, ValueError, KeyError, TypeError, json_format.ParseError) as e:
            aside = self._path.with_suffix(".unreadable")
            log.error("%s: %s; set aside as %s, starting without a plan", self._path, e, aside.name)
            self._path.replace(aside)
            return NOTHING

    def save(self, memory: Remembered) -> None:
        """Durable when this returns. Raises OSError, and then the old memory stands."""
        commit = None
        if memory.committed is not None:
            message = commit_to_pb(memory.committed, memory.committed_fence)
            commit = json_format.MessageToDict(message, preserving_proto_field_name=True)
        seen = {"epoch": memory.seen.epoch, "generation": memory.seen.generation}
        temporary = self._path.with_suffix(".tmp")
        with temporary.open("w") as file:
            json.dump({"format": FORMAT, "seen": seen, "commit": commit}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)
        directory = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
