"""Getting a model's files: from peers, each going on where the last one ended, then from the hub. Calls block.

A peer says what files it has, with sizes and hashes; they come in ranges, go to disk as they come, and count only once
a file's hash is right. What is on disk outlives the peer, this process and the machine's power: the next attempt asks
for the rest. The hashes are the peer's own word: they find what was damaged, cut off or mixed up, not a peer that lies.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence, Set
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from epara_executors.rpc import epara_pb2 as pb
from epara_executors.rpc.epara_pb2_grpc import ExecutorFilesStub
from epara_executors.weights.bucket import TokenBucket
from epara_executors.weights.cache import ModelCache, NoRoom
from epara_executors.weights.files import BadManifest, FileEntry, Manifest, is_model, is_plain, may_travel, sha256_of
from epara_opt.control.ports import HolderSpec

log = logging.getLogger(__name__)

RANGE_BYTES = 64 * 2**20  # asked for at once
STALL_S = 30.0  # without a byte: then whoever should send is taken for gone
HUB_STALL_S = 300.0  # its library has time limits and retries of its own
BUSY_WAIT_S = 1.0  # before peers that were busy are asked again
BUSY_PATIENCE_S = 600.0  # without a byte from any of them: then the next model has its turn
MANIFEST_TIMEOUT_S = 10.0
_CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", 16 * 2**20),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.enable_retries", 0),
    # At most so much is under way: 13 MB/s at a round trip of 20 ms. A window that grows with the link would be faster
    # over long ones, and leaves holes of megabytes in the agent's memory.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 2**18),
)
_READ_BYTES = 2**20


class FetchFailed(Exception):
    """Nobody could give the model; the message says who was asked and what came of it."""


class _PeerFailed(Exception):
    """This one cannot; the next may. is_busy: it could later."""

    def __init__(self, why: str, *, is_busy: bool = False) -> None:
        super().__init__(why)
        self.is_busy = is_busy


class Stopped(Exception):
    """The executor leaves."""


@dataclass(slots=True)
class Fetching:
    """How far one model is. Written by the thread that fetches, read by whoever wants to know."""

    source: str
    state: str = "waiting"  # waiting | hashing (at the peer) | fetching | checking | done | failed
    origin: str = ""  # server, or "hub"
    done_bytes: int = 0
    total_bytes: int = 0
    detail: str = ""
    moved_at: float = 0.0  # by time.monotonic: when a byte came last


class Fetcher:
    """Of one executor. One `fetch` at a time."""

    def __init__(
        self,
        cache: ModelCache,
        *,
        bytes_per_s: float = 0.0,
        allow_hub: bool = False,
        stop: threading.Event | None = None,
        stall_s: float = STALL_S,
    ) -> None:
        """bytes_per_s: 0 means no cap. stop: ends what is under way, with Stopped."""
        self.received_bytes = 0  # from peers and hub, since the process started
        self._cache = cache
        self._bucket = TokenBucket(bytes_per_s, burst_bytes=2**20, clock=time.monotonic)
        self._allow_hub = allow_hub
        self._stop = stop or threading.Event()
        self._stall_s = stall_s

    def fetch(self, holders: Sequence[HolderSpec], told: Fetching, *, kept: Callable[[], Set[str]]) -> Path:
        """The model's folder in the cache, once all of it is there. Raises FetchFailed, or Stopped.

        holders: asked in this order. kept: sources that must stay in the cache, asked whenever room is made.
        """
        source = told.source
        if not is_plain(source):
            raise FetchFailed(f"model {source}: no such folder, and only relative paths without .. can be fetched")
        tried: dict[str, str] = {}
        try:
            is_busy, had, gives_up_at = True, self.received_bytes, time.monotonic() + BUSY_PATIENCE_S
            while is_busy and time.monotonic() < gives_up_at:
                is_busy = False
                for holder in holders:  # all of them again: who had nothing may have it by now
                    self._wait(0.0)
                    try:
                        return self._from_peer(holder, told, kept)
                    except _PeerFailed as e:
                        log.info("model %s from %s: %s", source, holder.server, e)
                        tried[holder.server] = str(e)
                        is_busy = is_busy or e.is_busy
                if is_busy:
                    if self.received_bytes > had:
                        had, gives_up_at = self.received_bytes, time.monotonic() + BUSY_PATIENCE_S
                    told.state = "waiting"
                    self._wait(BUSY_WAIT_S)
            self._wait(0.0)
            if self._allow_hub:
                try:
                    return self._from_hub(told, kept)
                except _PeerFailed as e:
                    tried["hub"] = str(e)
            else:
                tried["hub"] = "not allowed (--allow-remote-hub)"
        except NoRoom as e:
            raise FetchFailed(f"model {source}: no room in {self._cache.folder}: {e}") from e
        except OSError as e:
            raise FetchFailed(f"model {source}: {self._cache.folder}: {e}") from e
        asked = "; ".join(f"{who}: {why}" for who, why in tried.items())
        raise FetchFailed(f"model {source}: not here, and nobody could give it: {asked}")

    # Peers

    def _from_peer(self, holder: HolderSpec, told: Fetching, kept: Callable[[], Set[str]]) -> Path:
        told.origin, told.detail = holder.server, ""
        with closing(grpc.insecure_channel(holder.address, options=_CHANNEL_OPTIONS)) as channel:
            stub: Any = ExecutorFilesStub(channel)
            manifest = self._manifest(stub, told)
            folder = self._cache.partial(told.source, manifest.revision)
            have = sum(_have(folder, f)[1] for f in manifest.files)
            told.state, told.done_bytes, told.total_bytes = "fetching", have, manifest.size_bytes
            self._cache.make_room(manifest.size_bytes - have, source=told.source, kept=kept())
            for entry in manifest.files:
                self._file(stub, entry, manifest.revision, folder, told)
        wanted = {f.name for f in manifest.files}
        for file in [f for f in folder.rglob("*") if f.is_file() and f.relative_to(folder).as_posix() not in wanted]:
            file.unlink()
        return self._cache.adopt(told.source, manifest)

    def _manifest(self, stub: Any, told: Fetching) -> Manifest:
        """What a peer has of a model; waits while the peer hashes it. Raises _PeerFailed."""
        told.state, told.moved_at, hashed = "hashing", time.monotonic(), 0
        while True:
            call = stub.Manifest.future(pb.ManifestRequest(source=told.source), timeout=MANIFEST_TIMEOUT_S)
            try:
                with self._watched(told, call.cancel):
                    said = call.result()
            except grpc.FutureCancelledError:
                self._wait(0.0)
                raise _PeerFailed(f"it has said nothing for {self._stall_s:.0f} s") from None
            except grpc.RpcError as e:  # nobody is too busy for a list: what exhausts a resource is its length
                raise _PeerFailed(str(_meaning(e))) from None
            if said.ready:
                break
            if said.hashed_bytes > hashed:
                hashed, told.moved_at = said.hashed_bytes, time.monotonic()
            told.done_bytes, told.total_bytes = hashed, said.total_bytes
            if time.monotonic() > told.moved_at + self._stall_s:
                raise _PeerFailed(f"it has not gone on hashing for {self._stall_s:.0f} s")
            self._wait(0.0)
        try:
            return Manifest(
                files=tuple(FileEntry(name=f.name, size_bytes=f.size_bytes, sha256=f.sha256) for f in said.files)
            )
        except BadManifest as e:
            raise _PeerFailed(f"it offers what no model has: {e}") from e

    def _file(self, stub: Any, entry: FileEntry, revision: str, folder: Path, told: Fetching) -> None:
        """Have one file whole and right. Raises _PeerFailed, and then keeps what came unless it is wrong."""
        is_whole, had = _have(folder, entry)
        if is_whole:
            return
        part = folder / f"{entry.name}.part"
        part.parent.mkdir(parents=True, exist_ok=True)
        said = self._rest(stub, entry, revision, part, told)
        if said != entry.sha256:
            part.unlink()
            told.done_bytes -= entry.size_bytes
            if had == 0:
                raise _PeerFailed(f"{entry.name}: expected sha256 {entry.sha256}, got {said}: refused")
            # Some of it came earlier, maybe from somebody else: all of it from this one.
            said = self._rest(stub, entry, revision, part, told)
            if said != entry.sha256:
                part.unlink()
                told.done_bytes -= entry.size_bytes
                raise _PeerFailed(f"{entry.name}: expected sha256 {entry.sha256}, got {said}: refused")
        part.replace(folder / entry.name)

    def _rest(self, stub: Any, entry: FileEntry, revision: str, part: Path, told: Fetching) -> str:
        """Append what is missing of a file; the hash of all of it. Raises _PeerFailed."""
        digest = hashlib.sha256()
        with part.open("a+b") as file:
            file.seek(0)
            while data := file.read(_READ_BYTES):
                digest.update(data)
                self._wait(0.0)
            at = file.tell()
            while at < entry.size_bytes:
                wanted = min(RANGE_BYTES, entry.size_bytes - at)
                request = pb.ReadRequest(
                    source=told.source, revision=revision, name=entry.name, offset=at, length=wanted
                )
                for data in self._range(stub, request, told):
                    file.write(data)
                    digest.update(data)
                    told.done_bytes += len(data)
                    at += len(data)
            file.flush()
            os.fsync(file.fileno())
        return digest.hexdigest()

    def _range(self, stub: Any, request: Any, told: Fetching) -> Iterator[bytes]:
        """The bytes asked for, no faster than the cap. Raises _PeerFailed where others come, or fewer."""
        left = request.length
        told.moved_at = time.monotonic()
        call = stub.Read(request)
        try:
            with self._watched(told, call.cancel):
                for chunk in call:
                    data: bytes = chunk.data
                    left -= len(data)
                    if left < 0:
                        raise _PeerFailed(f"{request.name}: more came than was asked for")
                    self.received_bytes += len(data)
                    yield data
                    self._wait(self._bucket.wait_s(len(data)))
                    told.moved_at = time.monotonic()
        except grpc.RpcError as e:
            self._wait(0.0)
            raise _meaning(e) from None
        finally:
            call.cancel()
        if left:
            raise _PeerFailed(f"{request.name}: {left} bytes fewer came than were asked for")

    # The hub

    def _from_hub(self, told: Fetching, kept: Callable[[], Set[str]]) -> Path:
        """By the hub's own library, in a process of its own: it brings as much memory along as the agent has."""
        source, folder = told.source, self._cache.partial(told.source, "hub")
        told.state, told.origin, told.detail, told.done_bytes, told.total_bytes = "fetching", "hub", "", 0, 0
        command = [sys.executable, "-m", "epara_executors.weights.hub", source, str(folder)]
        command.append(str(self._bucket.bytes_per_s))
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        told.moved_at = time.monotonic()
        sizes: dict[str, int] = {}
        error = "its library ended without a word"
        try:
            with child, self._watched(told, child.kill, stall_s=HUB_STALL_S):
                if child.stdin is None or child.stdout is None:
                    raise _PeerFailed("its library could not be started")
                for line in child.stdout:
                    said: dict[str, Any] = json.loads(line)
                    told.moved_at = time.monotonic()
                    if "files" in said:
                        sizes = {str(n): int(s) for n, s in said["files"].items() if may_travel(str(n))}
                        if not is_model(sizes):
                            raise _PeerFailed("it has no weights in safetensors under that name")
                        told.total_bytes = sum(sizes.values())
                        here = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
                        self._cache.make_room(max(0, told.total_bytes - here), source=source, kept=kept())
                        child.stdin.write("go\n")
                        child.stdin.flush()
                    elif "received" in said:
                        self.received_bytes += int(said["received"])
                        told.done_bytes = min(told.total_bytes, told.done_bytes + int(said["received"]))
                    else:
                        error = str(said.get("error", ""))
        except BrokenPipeError:
            pass
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
        self._wait(0.0)
        if error:
            raise _PeerFailed(error)
        return self._adopt_from_hub(told, folder, sizes)

    def _adopt_from_hub(self, told: Fetching, came: Path, sizes: dict[str, int]) -> Path:
        """Move what was asked for, and nothing else, to where models are. Raises _PeerFailed where it is not all."""
        told.state = "checking"
        found = {n: came / n for n in sizes if (came / n).is_file() and not (came / n).is_symlink()}
        wrong = [n for n, size in sizes.items() if n not in found or found[n].stat().st_size != size]
        if wrong:
            raise _PeerFailed(f"{wrong[0]}: expected {sizes[wrong[0]]} bytes, got others")
        listed = [FileEntry(name=n, size_bytes=sizes[n], sha256=sha256_of(f)) for n, f in found.items()]
        manifest = Manifest(files=tuple(listed))
        folder = self._cache.partial(told.source, manifest.revision)
        for name, file in found.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            file.replace(folder / name)
        return self._cache.adopt(told.source, manifest)

    # Waiting

    def _wait(self, seconds: float) -> None:
        """Raises Stopped when the executor leaves."""
        if self._stop.wait(seconds) if seconds > 0 else self._stop.is_set():
            raise Stopped

    @contextmanager
    def _watched(self, told: Fetching, cancel: Callable[[], Any], *, stall_s: float | None = None) -> Generator[None]:
        """Cancel what blocks when nothing moves any more, or when the executor leaves."""
        done = threading.Event()
        patience_s = self._stall_s if stall_s is None else stall_s

        def watch() -> None:
            while not done.is_set():
                if self._stop.is_set() or time.monotonic() > told.moved_at + patience_s:
                    cancel()
                    return
                done.wait(0.2)

        watching = threading.Thread(target=watch, name="watch a fetch", daemon=True)
        watching.start()
        try:
            yield
        finally:
            done.set()
            watching.join()


def _have(folder: Path, entry: FileEntry) -> tuple[bool, int]:
    """Whether a file is whole, and how many bytes of it are there. A part that is too long counts as none."""
    whole, part = folder / entry.name, folder / f"{entry.name}.part"
    if whole.is_file() and whole.stat().st_size == entry.size_bytes:
        return True, entry.size_bytes
    if not part.is_file():
        return False, 0
    size = part.stat().st_size
    if size > entry.size_bytes:
        part.unlink()
        return False, 0
    return False, size


def _meaning(error: Any) -> _PeerFailed:
    status, details = error.code(), str(error.details() or "")
    if status is grpc.StatusCode.UNIMPLEMENTED:
        return _PeerFailed("it gives no files to peers (--serve-models)")
    if status is grpc.StatusCode.CANCELLED:
        return _PeerFailed("no byte came for too long")
    is_busy = status is grpc.StatusCode.RESOURCE_EXHAUSTED
    said = is_busy or status in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION)
    return _PeerFailed(details if said else f"{status.name}: {details}", is_busy=is_busy)
