"""gRPC reflection over two descriptor pools: ours, and the default one that health and reflection are in."""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pool
from grpc_reflection.v1alpha import reflection

from .pool import POOL

SERVICES = (
    "inference.GRPCInferenceService",
    "epara.v1.ExecutorControl",
    "epara.v1.ExecutorPeer",
)
FILES = "epara.v1.ExecutorFiles"


class _BothPools:
    """Our pool first: where tritonclient is imported too, the default one holds its `inference`."""

    def __getattr__(self, name: str) -> Any:
        def ask(*args: Any, **kwargs: Any) -> Any:
            try:
                return getattr(POOL, name)(*args, **kwargs)
            except KeyError:
                return getattr(descriptor_pool.Default(), name)(*args, **kwargs)

        return ask


def add_reflection(server: Any, *, gives_files: bool = False) -> None:
    """Let clients such as grpcurl list and call what this server speaks."""
    names = (*SERVICES, *((FILES,) if gives_files else ()), "grpc.health.v1.Health", reflection.SERVICE_NAME)
    pool: Any = _BothPools()
    reflection.enable_server_reflection(names, server, pool=pool)
