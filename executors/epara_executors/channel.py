"""What both ends of a gRPC connection may be told: how large a message may be, and whether messages are compressed.

Imports no gRPC by itself: an agent reads its arguments before it forks, and gRPC may only come after that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from epara_opt.errors import InputError, Violation

COMPRESSIONS = ("none", "deflate", "gzip")
MAX_MIB = 2047  # gRPC counts bytes in an int32


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelSettings:
    """Of one server, or of one client's channel. Each end's limits hold for what it sends and what it takes."""

    max_message_mib: int = 256
    compression: str = "none"  # of what this end sends; any end reads all of them

    def __post_init__(self) -> None:
        if not 1 <= self.max_message_mib <= MAX_MIB:
            law = f"expected 1 .. {MAX_MIB}"
            raise InputError(Violation(path="max_message_mib", law=law, value=str(self.max_message_mib)))
        if self.compression not in COMPRESSIONS:
            law = f"expected one of {', '.join(COMPRESSIONS)}"
            raise InputError(Violation(path="compression", law=law, value=self.compression))

    @property
    def options(self) -> tuple[tuple[str, Any], ...]:
        """As gRPC's channels and servers take them."""
        limit = self.max_message_mib * 2**20
        return (("grpc.max_receive_message_length", limit), ("grpc.max_send_message_length", limit))

    @property
    def algorithm(self) -> Any:
        """A grpc.Compression; None where nothing is compressed."""
        import grpc

        known = {"deflate": grpc.Compression.Deflate, "gzip": grpc.Compression.Gzip}
        return known.get(self.compression)


DEFAULT = ChannelSettings()
