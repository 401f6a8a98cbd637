"""Generated servicers without one open accept per method.

Generated code registers every method with the server, and grpc.aio then waits anew, at each request, for all of these
accepts together: with some twenty methods a measurable share of a small request. Handlers are found by name as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio


class ByName:
    """What generated `add_..._to_server` functions take for a server."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        """Not used."""
