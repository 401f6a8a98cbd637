"""Models' files for peers: epara.v1.ExecutorFiles. Disks and hashes are read in threads, at a capped rate."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import grpc

from epara_executors.agent.memory import give_back_soon
from epara_executors.agent.torch_launcher import in_thread
from epara_executors.rpc import epara_pb2 as pb
from epara_executors.rpc.epara_pb2_grpc import ExecutorFilesServicer
from epara_executors.weights.bucket import TokenBucket
from epara_executors.weights.files import Manifest
from epara_executors.weights.offer import NotOffered, Offer

PIECE_BYTES = 2**16  # larger ones are faster and leave larger holes in the memory of both agents
MAX_READS = 4  # at the same time; further ones are told to come back
SLOW_READER_S = 60.0  # without taking a piece: then its place is another's
HASH_WAIT_S = 1.0  # how long a caller is kept while files are hashed, before it is told how far that is

Context = Any


class FilePlane(ExecutorFilesServicer):
    """The servicer of epara.v1.ExecutorFiles. Registered only where files are given to peers."""

    def __init__(self, offer: Offer, bucket: TokenBucket) -> None:
        self.sent_bytes = 0  # since the process started
        self._offer = offer
        self._bucket = bucket
        self._num_reads = 0
        self._leaving = asyncio.Event()
        self._hashing: dict[str, asyncio.Task[Manifest]] = {}

    def leave(self) -> None:
        """End what is being sent: others may have the rest, and this executor's end must not wait for it."""
        self._leaving.set()

    async def Manifest(self, request: pb.ManifestRequest, context: Context) -> pb.ManifestResponse:  # noqa: N802
        source = request.source
        task = self._hashing.get(source)
        if task is None:
            task = asyncio.create_task(in_thread(lambda: self._offer.manifest(source)), name=f"hash {source}")
            self._hashing[source] = task
            task.add_done_callback(lambda _: self._hashing.pop(source, None))
        await asyncio.wait({task}, timeout=HASH_WAIT_S)
        if not task.done():
            hashed, total = self._offer.progress(source)
            return pb.ManifestResponse(ready=False, hashed_bytes=hashed, total_bytes=total)
        try:
            manifest = task.result()
        except NotOffered as e:
            await context.abort(grpc.StatusCode.NOT_FOUND, str(e))
            raise
        return pb.ManifestResponse(
            ready=True,
            files=[pb.FileEntry(name=f.name, size_bytes=f.size_bytes, sha256=f.sha256) for f in manifest.files],
        )

    async def Read(self, request: pb.ReadRequest, context: Context) -> None:  # noqa: N802
        if request.offset < 0 or request.length < 1:
            law = f"expected offset >= 0 and length >= 1, got {request.offset} and {request.length}"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, law)
        if self._num_reads >= MAX_READS:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{MAX_READS} peers read here already: come back")
        self._num_reads += 1
        try:
            await self._send(request, context)
        finally:
            self._num_reads -= 1
            if self._num_reads == 0:
                give_back_soon()

    async def _send(self, request: pb.ReadRequest, context: Context) -> None:
        try:
            file = await asyncio.to_thread(self._offer.open, request.source, request.revision, request.name)
        except NotOffered as e:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(e))
            raise
        with file:
            file.seek(request.offset)
            left = request.length
            while left > 0 and (data := await asyncio.to_thread(file.read, min(PIECE_BYTES, left))):
                left -= len(data)
                await self._pause(self._bucket.wait_s(len(data)))
                if self._leaving.is_set():
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "the executor leaves")
                try:
                    async with asyncio.timeout(SLOW_READER_S):
                        await context.write(pb.FilePiece(data=data))
                except TimeoutError:
                    await context.abort(grpc.StatusCode.ABORTED, f"not a piece was taken for {SLOW_READER_S:.0f} s")
                self.sent_bytes += len(data)

    async def _pause(self, seconds: float) -> None:
        """As long as the cap wants, but no longer than this executor stays."""
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._leaving.wait()
