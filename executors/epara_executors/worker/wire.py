"""Frames over a blocking socket, and frames as one piece of bytes; the worker's side of `frames`."""

from __future__ import annotations

import socket
import threading
from collections import deque

from epara_executors.worker.frames import Frame, Splitter, encode

_READ_BYTES = 2**16
_MOST_AT_ONCE = 2**20


class Closed(Exception):
    """The other side has left."""


class Wire:
    """One connection. Reading belongs to one thread; `write` may be called from any."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._splitter = Splitter()
        self._read: deque[Frame] = deque()

    def fileno(self) -> int:
        """For select and poll."""
        return self._connection.fileno()

    @property
    def is_amid(self) -> bool:
        """Whether a part of a frame has been received, and the rest not."""
        return not self._splitter.is_between

    def read(self) -> Frame:
        """The next frame. Raises Closed at the end of the stream."""
        while not self._read:
            self._read.extend(self.receive())
        return self._read.popleft()

    def receive(self) -> list[Frame]:
        """One read of the socket, which blocks where nothing has come, and the frames that it completed."""
        size = max(_READ_BYTES, min(self._splitter.missing, _MOST_AT_ONCE))
        try:
            data = self._connection.recv(size)
        except OSError as error:
            raise Closed(str(error)) from error
        if not data:
            raise Closed("end of stream")
        return self._splitter.feed(data)

    def write(self, *frames: Frame) -> None:
        """Send whole frames, at once. Raises Closed if nobody is there to take them."""
        data = b"".join(map(encode, frames))
        try:
            with self._lock:
                self._connection.sendall(data)
        except OSError as error:
            raise Closed(str(error)) from error

    def close(self) -> None:
        self._connection.close()


def pack(frame: Frame) -> bytes:
    return encode(frame)


def unpack(data: bytes) -> Frame:
    """The inverse of `pack`. Raises ValueError for data that is not exactly one frame."""
    splitter = Splitter()
    frames = splitter.feed(data)
    if len(frames) != 1 or not splitter.is_between:
        raise ValueError(f"frame: expected one in {len(data)} bytes, got {len(frames)} and {splitter.missing} missing")
    return frames[0]
