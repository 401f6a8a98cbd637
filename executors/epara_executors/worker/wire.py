"""Frames over a blocking socket, and frames as one piece of bytes; the worker's side of `frames`."""

from __future__ import annotations

import socket
import threading

from epara_executors.worker.frames import Frame, Tensor, decode_header, encode, header_length


class Closed(Exception):
    """The other side has left."""


class Wire:
    """One connection. `read` belongs to one thread; `write` may be called from any."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def read(self) -> Frame:
        """The next frame. Raises Closed at the end of the stream."""
        name, fields, heads = decode_header(self._exactly(header_length(self._exactly(4))))
        return Frame(name, fields, [Tensor(n, d, s, self._exactly(b)) for n, d, s, b in heads])

    def write(self, frame: Frame) -> None:
        """Send a whole frame. Raises Closed if nobody is there to take it."""
        data = encode(frame)
        try:
            with self._lock:
                self._connection.sendall(data)
        except OSError as error:
            raise Closed(str(error)) from error

    def close(self) -> None:
        self._connection.close()

    def _exactly(self, num_bytes: int) -> bytes:
        data = bytearray(num_bytes)
        view, got = memoryview(data), 0
        while got < num_bytes:
            try:
                n = self._connection.recv_into(view[got:])
            except OSError as error:
                raise Closed(str(error)) from error
            if n == 0:
                raise Closed("end of stream")
            got += n
        return bytes(data)


def pack(frame: Frame) -> bytes:
    return encode(frame)


def unpack(data: bytes) -> Frame:
    """The inverse of `pack`. Raises ValueError for data that is not exactly one frame."""
    at = 4 + header_length(data[:4])
    name, fields, heads = decode_header(data[4:at])
    tensors: list[Tensor] = []
    for n, d, s, b in heads:
        tensors.append(Tensor(n, d, s, data[at : at + b]))
        at += b
    if at != len(data):
        raise ValueError(f"frame: expected {at} bytes, got {len(data)}")
    return Frame(name, fields, tensors)
