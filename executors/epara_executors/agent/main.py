"""The agent process: put the parts together, say where it listens, serve, leave without losing what is in flight.

    python -m epara_executors.agent --server NAME --listen HOST:PORT --state-dir DIR --model-root DIR

Prints one JSON line {"listening": "HOST:PORT", "pid": N} on stdout once clients may connect (port 0 lets the
system choose); with --http HOST:PORT it also has "http", where the OpenAI-compatible front listens, with --metrics
HOST:PORT "metrics", where Prometheus may scrape. Health is NOT_SERVING until a plan kept from before has loaded.
SIGTERM and SIGINT drain: no new work, what is in flight ends, workers leave, exit 0. Exit 2: bad arguments, a model
root that is no folder. Exit 5: an address or the state directory is in use, or the state directory cannot be written.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import importlib.util
import json
import logging
import math
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from epara_executors.channel import COMPRESSIONS, ChannelSettings
from epara_opt.errors import EparaError, FleetError, InputError, Violation

if TYPE_CHECKING:
    from epara_executors.agent.executor import Executor
    from epara_executors.agent.handler import RequestHandler
    from epara_executors.agent.http_front.server import HttpServer
    from epara_executors.agent.metrics import MetricsServer
    from epara_executors.agent.peers import Peers
    from epara_executors.agent.state import StateReader
    from epara_executors.agent.worker_link import WorkerLauncher

log = logging.getLogger(__name__)

DRAIN_GRACE_S = 30.0
DEFAULT_CACHE_GIB = 50.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentOptions:
    """How one executor runs."""

    server: str  # its name in the topology
    listen: str  # HOST:PORT; port 0: the system chooses
    http: str = ""  # the same for the OpenAI-compatible front; empty: none
    state_dir: Path  # the committed plan is kept here
    model_root: Path  # local model sources are relative to it
    devices: str = ""  # "cpu:2,gpu:1"; empty: what is found, CPU slots unlimited
    allow_remote_hub: bool = False  # whether workers may download models
    threads_per_device: int = 1  # torch threads of a worker on CPU
    worker: str = "torch"  # torch | echo (no model: for tests and for measuring the agent itself)
    drain_grace_s: float = DRAIN_GRACE_S
    max_message_mib: int = 256  # of requests and answers, both ways
    compression: str = "none"  # of what is sent: none | deflate | gzip
    pin_cpus: bool = False  # each CPU device's worker to cores of its own
    metrics: str = ""  # HOST:PORT to be scraped at; port 0: the system chooses; empty: nowhere
    model_cache: Path | None = None  # fetched models are kept here; None: in the state directory
    model_cache_gib: float = DEFAULT_CACHE_GIB  # at most
    model_bandwidth_mbps: float = 0.0  # for fetching models, and again for giving them; 0: no cap
    serve_models: bool = False  # whether peers may read models' files

    def __post_init__(self) -> None:
        _check_address("listen", self.listen)
        for path, given in (("http", self.http), ("metrics", self.metrics)):
            if given:
                _check_address(path, given)
        if not self.server:
            raise InputError(Violation(path="server", law="expected a name", value="nothing"))
        if self.worker not in ("torch", "echo"):
            raise InputError(Violation(path="worker", law="expected torch or echo", value=self.worker))
        if self.threads_per_device < 1:
            raise InputError(
                Violation(path="threads_per_device", law="expected >= 1", value=str(self.threads_per_device))
            )
        if not 0 < self.model_cache_gib < math.inf:
            law = "expected a finite number > 0"
            raise InputError(Violation(path="model_cache_gib", law=law, value=str(self.model_cache_gib)))
        if self.model_bandwidth_mbps != 0 and not 1 <= self.model_bandwidth_mbps < math.inf:
            law = "expected 0 (no cap), or a finite number >= 1"
            raise InputError(Violation(path="model_bandwidth_mbps", law=law, value=str(self.model_bandwidth_mbps)))
        _ = self.channel  # its own laws

    @property
    def cache_folder(self) -> Path:
        return self.model_cache or self.state_dir / "models"

    @property
    def channel(self) -> ChannelSettings:
        return ChannelSettings(max_message_mib=self.max_message_mib, compression=self.compression)


def _check_address(path: str, address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise InputError(Violation(path=path, law="expected HOST:PORT", value=address))


def run(options: AgentOptions) -> int:
    """Serve until told to leave. Returns the exit code; raises EparaError for what we foresaw."""
    if not options.model_root.is_dir():
        law = "expected a folder, local model sources are relative to it"
        raise InputError(Violation(path="model_root", law=law, value=str(options.model_root)))
    if options.http and not all(importlib.util.find_spec(m) for m in ("starlette", "uvicorn")):
        law = "expected the HTTP front's libraries; install them: pip install 'epara-opt[http]'"
        raise InputError(Violation(path="http", law=law, value=options.http))
    from epara_executors.agent.persistence import require_usable

    require_usable(options.state_dir)
    for address in filter(None, (options.listen, options.http)):
        _require_free(address)
    # The fork server inherits this: without leave, no library may ask a hub for anything.
    if not options.allow_remote_hub:
        os.environ["HF_HUB_OFFLINE"] = "1"
    return asyncio.run(_serve(options))


def _require_free(listen: str) -> None:
    """Say that an address is in use before seconds go into loading torch; who takes it later meets grpc's refusal."""
    host, _, port = listen.rpartition(":")
    with contextlib.suppress(socket.gaierror):
        for family, kind, protocol, _, address in socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM
        ):
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a restart need not wait for TIME_WAIT
                try:
                    probe.bind(address)
                except OSError as e:
                    raise FleetError(
                        f"cannot listen on {listen}: the address is in use or not ours: {e.strerror}"
                    ) from e


def launcher_of(options: AgentOptions) -> WorkerLauncher:
    """The launcher of the kind of worker asked for. Imports nothing of torch into this process."""
    if options.worker == "echo":
        from epara_executors.agent.echo_launcher import EchoLauncher

        return EchoLauncher()
    from epara_executors.agent.torch_launcher import TorchLauncher

    return TorchLauncher(
        options.model_root,
        threads_per_device=options.threads_per_device,
        model_cache=options.cache_folder,
        pin_cpus=options.pin_cpus,
    )


async def _serve(options: AgentOptions) -> int:
    leave = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, leave.set)
    launcher = launcher_of(options)
    await launcher.start()  # before grpc: it may fork
    try:
        return await _serve_with(options, launcher, leave)
    finally:
        await launcher.stop()


async def _serve_with(options: AgentOptions, launcher: WorkerLauncher, leave: asyncio.Event) -> int:
    import grpc.aio
    from grpc_health.v1 import health as grpc_health
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from epara_executors.agent.control_plane import ControlPlane, PeerPlane
    from epara_executors.agent.data_plane import DataPlane
    from epara_executors.agent.devices import find_devices, limits, parse_devices
    from epara_executors.agent.energy import find_energy_reader
    from epara_executors.agent.executor import Executor
    from epara_executors.agent.file_plane import FilePlane
    from epara_executors.agent.handler import RequestHandler
    from epara_executors.agent.logistics import Logistics
    from epara_executors.agent.peers import Peers
    from epara_executors.agent.persistence import CommittedStore
    from epara_executors.agent.state import StateReader
    from epara_executors.rpc import epara_pb2_grpc, open_inference_pb2_grpc
    from epara_executors.rpc.by_name import ByName
    from epara_executors.rpc.reflect import add_reflection
    from epara_executors.weights.bucket import TokenBucket
    from epara_executors.weights.cache import ModelCache
    from epara_executors.weights.fetch import Fetcher
    from epara_executors.weights.offer import Offer

    devices = parse_devices(options.devices) if options.devices else find_devices()
    max_devices = limits(devices)
    if not options.devices:
        del max_devices["cpu"]  # slots are the topology's notion
    store = CommittedStore(options.state_dir)
    cache = ModelCache(options.cache_folder, max_bytes=int(options.model_cache_gib * 2**30))
    sockets = Path(tempfile.mkdtemp(prefix="epara-"))  # short: a Unix socket's path has at most 107 bytes
    executor = Executor(options.server, launcher=launcher, store=store, socket_dir=sockets, max_devices=max_devices)
    peers = Peers(executor, settings=options.channel)
    bytes_per_s = options.model_bandwidth_mbps * 1e6 / 8
    stop = threading.Event()
    logistics = Logistics(
        options.server,
        model_root=options.model_root,
        cache=cache,
        fetcher=Fetcher(cache, bytes_per_s=bytes_per_s, allow_hub=options.allow_remote_hub, stop=stop),
        stop=stop,
        running=executor.sources,
        needs_files=lambda source: options.worker == "torch" or not source.startswith("echo"),
    )
    files: FilePlane | None = None
    if options.serve_models:
        bucket = TokenBucket(bytes_per_s, burst_bytes=2**20, clock=time.monotonic)
        files = FilePlane(Offer(options.model_root, cache), bucket)
    reader = StateReader(executor, energy=find_energy_reader(), logistics=logistics, files=files)
    handler = RequestHandler(executor, peers, rng=random.Random())
    settings = [*options.channel.options, ("grpc.so_reuseport", 0)]  # so that an address in use is an error
    server = grpc.aio.server(options=settings, compression=options.channel.algorithm)
    health_aio: Any = grpc_health.aio  # pyright: ignore[reportAttributeAccessIssue]  imported only beside grpc.aio
    health = health_aio.HealthServicer()
    named: Any = ByName(server)
    health_pb2_grpc.add_HealthServicer_to_server(health, named)
    await health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    control = ControlPlane(executor, peers, reader, logistics, devices=devices, leave=leave.set)
    add: Any = open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server
    add(DataPlane(executor, handler, peers), named)
    add = epara_pb2_grpc.add_ExecutorControlServicer_to_server
    add(control, named)
    add = epara_pb2_grpc.add_ExecutorPeerServicer_to_server
    add(PeerPlane(executor, peers), named)
    if files is not None:
        add = epara_pb2_grpc.add_ExecutorFilesServicer_to_server
        add(files, named)
    add_reflection(server, gives_files=files is not None)
    background: list[asyncio.Task[Any]] = []
    http: HttpServer | None = None
    metrics: MetricsServer | None = None
    try:
        if options.http:
            http = _http_server(options, executor, handler, peers)
        try:
            port = server.add_insecure_port(options.listen)
        except RuntimeError as e:
            raise FleetError(f"cannot listen on {options.listen}: the address is in use or not ours") from e
        said: dict[str, Any] = {"listening": f"{options.listen.rpartition(':')[0]}:{port}", "pid": os.getpid()}
        if options.metrics:
            metrics = await _open_metrics(options.metrics, reader)
            said["metrics"] = metrics.address
        await server.start()
        if http is not None:
            await http.start()
            said["http"] = http.address
        print(json.dumps(said), flush=True)

        async def restore() -> None:
            await executor.restore()
            peers.refresh()
            await health.set("", health_pb2.HealthCheckResponse.SERVING)

        background = [asyncio.create_task(c) for c in (restore(), peers.run(), reader.run())]
        for task in background:
            task.add_done_callback(_report)
        gc.collect()
        gc.freeze()  # what lives as long as the process is not looked through again at every full collection
        await leave.wait()
        cut_at = asyncio.get_running_loop().time() + options.drain_grace_s
        executor.leave()
        logistics.leave()
        if files is not None:
            files.leave()
        await health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        # grpc cancels calls that it has read and not handed over when it stops. Until what is in flight has ended they
        # are handed over, and told that this executor is draining.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(executor.quiet(), options.drain_grace_s)
        left_s = max(0.0, cut_at - asyncio.get_running_loop().time())
        await asyncio.gather(server.stop(left_s), *([http.stop(left_s)] if http is not None else []))
    finally:
        await server.stop(0)
        if http is not None:
            await http.stop()
        for task in background:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await logistics.close()
        await executor.stop()
        await peers.close()
        if metrics is not None:
            await asyncio.to_thread(metrics.close)
        store.close()
        shutil.rmtree(sockets, ignore_errors=True)
    return 0


def _http_server(options: AgentOptions, executor: Executor, handler: RequestHandler, peers: Peers) -> HttpServer:
    """The OpenAI-compatible front; its libraries are imported only for it."""
    from epara_executors.agent.http_front.app import Front
    from epara_executors.agent.http_front.server import HttpServer

    front = Front(executor, handler, peers, rng=random.Random())
    return HttpServer(options.http, front.app(), drain_grace_s=options.drain_grace_s)


async def _open_metrics(listen: str, reader: StateReader) -> MetricsServer:
    """Imported only where asked for: an executor that nobody scrapes need not carry it."""
    try:
        from epara_executors.agent.metrics import MetricsServer
    except ImportError as e:
        law = "expected prometheus-client, which comes with epara-opt[executor]"
        raise InputError(Violation(path="metrics", law=law, value=str(e))) from e
    loop = asyncio.get_running_loop()
    return await asyncio.to_thread(MetricsServer.open, listen, reader, loop, version=version("epara-opt"))


def _report(task: asyncio.Task[Any]) -> None:
    """A background task must not end by itself; say so at once if it does."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("background task ended: %r", error, exc_info=error)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m epara_executors.agent", description="One executor's agent.")
    parser.add_argument("--server", required=True, help="this server's name in the topology")
    parser.add_argument("--listen", required=True, metavar="HOST:PORT", help="port 0: the system chooses")
    parser.add_argument("--http", default="", metavar="HOST:PORT", help="serve OpenAI's API here too; port 0 as above")
    parser.add_argument("--state-dir", required=True, type=Path)
    parser.add_argument("--model-root", required=True, type=Path)
    parser.add_argument("--devices", default="", metavar="KIND:COUNT,...", help="default: what is found")
    parser.add_argument("--threads-per-device", type=int, default=1)
    parser.add_argument("--allow-remote-hub", action="store_true", help="workers may download models")
    parser.add_argument("--worker", default="torch", choices=("torch", "echo"))
    parser.add_argument("--drain-grace", type=float, default=DRAIN_GRACE_S, metavar="SECONDS")
    parser.add_argument("--max-message-mib", type=int, default=256, help="largest request or answer")
    parser.add_argument("--compression", default="none", choices=COMPRESSIONS, help="of what is sent")
    parser.add_argument("--pin-cpus", action="store_true", help="each CPU device's worker to cores of its own")
    parser.add_argument("--metrics", default="", metavar="HOST:PORT", help="be scraped there; default: nowhere")
    parser.add_argument("--model-cache", type=Path, metavar="DIR", help="default: in the state directory")
    parser.add_argument("--model-cache-gib", type=float, default=DEFAULT_CACHE_GIB, metavar="GIB")
    parser.add_argument("--model-bandwidth-mbps", type=float, default=0.0, metavar="MBIT/S", help="0: no cap")
    parser.add_argument("--serve-models", action="store_true", help="let peers read models' files")
    given = parser.parse_args(argv)
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format=f"%(asctime)s {given.server} %(levelname)s %(message)s"
    )
    try:
        return run(
            AgentOptions(
                server=given.server,
                listen=given.listen,
                http=given.http,
                state_dir=given.state_dir,
                model_root=given.model_root,
                devices=given.devices,
                allow_remote_hub=given.allow_remote_hub,
                threads_per_device=given.threads_per_device,
                worker=given.worker,
                drain_grace_s=given.drain_grace,
                metrics=given.metrics,
                model_cache=given.model_cache,
                model_cache_gib=given.model_cache_gib,
                model_bandwidth_mbps=given.model_bandwidth_mbps,
                serve_models=given.serve_models,
                max_message_mib=given.max_message_mib,
                compression=given.compression,
                pin_cpus=given.pin_cpus,
            )
        )
    except EparaError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.exit_code
