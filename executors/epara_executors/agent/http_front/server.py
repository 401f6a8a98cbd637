"""The socket and the life of uvicorn inside the agent's event loop. Signals stay the agent's."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Generator

import uvicorn
from starlette.types import ASGIApp

from epara_opt.errors import FleetError

KEEP_ALIVE_S = 65  # longer than clients and proxies keep idle connections, so that they close first
BACKLOG = 1024


class _Uvicorn(uvicorn.Server):
    """Uvicorn without hands on signals, and with a word when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()


class HttpServer:
    """Start it once, stop it once."""

    def __init__(self, listen: str, app: ASGIApp, *, drain_grace_s: float) -> None:
        """listen: HOST:PORT, port 0 lets the system choose. Raises FleetError where that cannot be."""
        self._socket = _bound(listen)
        self.address = f"{listen.rpartition(':')[0]}:{self._socket.getsockname()[1]}"
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        self._server = _Uvicorn(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=max(1, round(drain_grace_s)),
            )
        )
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns once clients may connect."""
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._socket]), name="http front")
        listening = asyncio.create_task(self._server.listening.wait())
        await asyncio.wait({self._serving, listening}, return_when=asyncio.FIRST_COMPLETED)
        listening.cancel()
        if self._serving.done():
            self._serving.result()

    async def stop(self, grace_s: float | None = None) -> None:
        """Take no more connections, let what is in flight end within the grace, or what is left of it. Idempotent."""
        if grace_s is not None:
            self._server.config.timeout_graceful_shutdown = max(1, round(grace_s))
        self._server.should_exit = True
        if self._serving is not None:
            await self._serving
        self._socket.close()


def _bound(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a restart need not wait for TIME_WAIT
            bound.bind(address)
        except OSError:
            bound.close()
            raise
    except OSError as e:
        raise FleetError(f"cannot listen on {listen} for HTTP: {e.strerror}") from e
    return bound
