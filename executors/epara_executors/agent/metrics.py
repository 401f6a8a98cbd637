"""An executor's state as Prometheus metrics over HTTP.

A scrape is answered in a thread of its own. It asks the event loop for one frozen ExecutorState (a walk over the
replicas) and turns that into text outside the loop: requests pay for counting, never for being looked at.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from epara_executors.agent.state import StateReader
from epara_opt.control.ports import ExecutorState, Histogram, ReplicaHistograms, ReplicaObservation
from epara_opt.errors import FleetError

ANSWER_WITHIN_S = 5.0  # of the event loop; a scrape that waits longer fails
REPLICA_LABELS = ("service", "replica", "group")

Labelled = tuple[Sequence[str], float]


class StateCollector(Collector):
    """Metrics of one state, asked for at every scrape."""

    def __init__(self, ask: Callable[[], ExecutorState], *, version: str) -> None:
        """ask: called from the scrape's thread."""
        self._ask = ask
        self._version = version

    def collect(self) -> Iterable[Metric]:
        state = self._ask()
        yield from self._executor(state)
        yield from _services(state)
        yield from _replicas(state.replicas)
        yield from _devices(state)

    def _executor(self, state: ExecutorState) -> Iterable[Metric]:
        about = {"server": state.server, "incarnation": state.incarnation, "version": self._version}
        yield InfoMetricFamily("epara_executor", "Which executor this is.", about)
        yield _gauge("epara_executor_draining", "1 while it takes no new work.", (), [((), state.draining)])
        yield _gauge("epara_plan_generation", "Of the plan in force; 0: none.", (), [((), state.generation)])
        for name, meaning, num_bytes in (
            ("epara_model_bytes_received_total", "Of models' files, from peers and hub.", state.model_bytes_received),
            ("epara_model_bytes_sent_total", "Of models' files, to peers.", state.model_bytes_sent),
        ):
            yield _counter(name, meaning, (), [((), num_bytes)])


def _services(state: ExecutorState) -> Iterable[Metric]:
    by_service = ("service",)
    services = state.services
    yield _counter(
        "epara_arrivals_total",
        "Requests that entered the edge here.",
        by_service,
        [((s.service,), s.arrived) for s in services],
    )
    outcomes = [
        ((s.service, outcome), count)
        for s in services
        for outcome, count in (("on_time", s.on_time), ("late", s.late), ("shed", s.shed), ("failed", s.failed))
    ]
    yield _counter(
        "epara_requests_total", "Requests that entered here and have ended.", ("service", "outcome"), outcomes
    )
    forwarded = [((s.service,), s.forwarded) for s in services]
    yield _counter("epara_forwarded_total", "Of those that entered here, answered by a peer.", by_service, forwarded)
    served = [((s.service,), s.served) for s in services]
    yield _counter("epara_served_total", "Answered by replicas here, whoever asked.", by_service, served)
    streams = [((s.service,), s.streams) for s in services]
    yield _gauge("epara_streams", "Distinct streams seen in the last seconds.", by_service, streams)
    yield _histogram(
        "epara_edge_latency_seconds",
        "From entry here to the answer, wherever it was made.",
        by_service,
        [((s.service,), s.e2e_s) for s in services if s.e2e_s is not None and s.e2e_s.count],
    )


def _replicas(replicas: Sequence[ReplicaObservation]) -> Iterable[Metric]:
    def each(value: Callable[[ReplicaObservation], float]) -> list[Labelled]:
        return [((r.service, r.replica, r.group), value(r)) for r in replicas]

    def buckets(pick: Callable[[ReplicaHistograms], Histogram], *, always: bool = True) -> list[_Buckets]:
        found = [((r.service, r.replica, r.group), pick(r.histograms)) for r in replicas if r.histograms is not None]
        return [(labels, h) for labels, h in found if always or h.count]

    for name, meaning, value in (
        ("epara_replica_ready", "1 while it can be given work.", lambda r: r.state in ("ready", "live")),
        ("epara_queue_length", "Requests that wait for the worker.", lambda r: r.waiting),
        ("epara_in_flight_requests", "Requests at the worker.", lambda r: r.queued - r.waiting),
        ("epara_replica_memory_bytes", "Per device, as its worker measured.", lambda r: r.memory_bytes),
    ):
        yield _gauge(name, meaning, REPLICA_LABELS, each(value))
    for name, meaning, value in (
        ("epara_replica_arrivals_total", "Requests given to this replica.", lambda r: r.arrived),
        ("epara_replica_served_total", "Requests that its worker answered.", lambda r: r.served),
        ("epara_replica_busy_seconds_total", "Time that its devices worked for it.", lambda r: r.busy_s),
    ):
        yield _counter(name, meaning, REPLICA_LABELS, each(value))
    for name, meaning, found in (
        (
            "epara_request_latency_seconds",
            "From this executor's door to the answer of a replica here.",
            buckets(lambda h: h.e2e_s),
        ),
        ("epara_request_queue_seconds", "In the replica's queue.", buckets(lambda h: h.queue_s)),
        ("epara_request_service_seconds", "At the worker.", buckets(lambda h: h.service_s)),
        ("epara_batch_rows", "Rows of a batch; generations side by side.", buckets(lambda h: h.batch_rows)),
        (
            "epara_time_to_first_token_seconds",
            "From the replica's queue to the first token of a generation that streams.",
            buckets(lambda h: h.first_token_s, always=False),
        ),
        (
            "epara_time_per_output_token_seconds",
            "Mean over a streaming generation's tokens after the first.",
            buckets(lambda h: h.per_token_s, always=False),
        ),
    ):
        yield _histogram(name, meaning, REPLICA_LABELS, found)
    restarts = {r.group: r.restarts for r in replicas}
    yield _counter(
        "epara_group_restarts_total",
        "Workers started again after their end.",
        ("group",),
        [((g,), n) for g, n in restarts.items()],
    )


def _devices(state: ExecutorState) -> Iterable[Metric]:
    yield _counter(
        "epara_device_energy_joules_total",
        "Since the device's driver was loaded; absent where nothing measures it.",
        ("kind", "index", "name"),
        [((d.kind, str(d.index), d.name), d.energy_j) for d in state.devices],
    )


_Buckets = tuple[Sequence[str], Histogram]


def _gauge(name: str, meaning: str, labels: Sequence[str], samples: Iterable[Labelled]) -> Metric:
    family = GaugeMetricFamily(name, meaning, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


def _counter(name: str, meaning: str, labels: Sequence[str], samples: Iterable[Labelled]) -> Metric:
    family = CounterMetricFamily(name, meaning, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


def _histogram(name: str, meaning: str, labels: Sequence[str], samples: Iterable[_Buckets]) -> Metric:
    family = HistogramMetricFamily(name, meaning, labels=labels)
    for values, histogram in samples:
        family.add_metric(values, _cumulative(histogram), histogram.sum)
    return family


def _cumulative(histogram: Histogram) -> list[tuple[str, float]]:
    """Prometheus buckets hold everything up to their bound."""
    found: list[tuple[str, float]] = []
    total = 0
    for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        total += count
        found.append((floatToGoString(bound), float(total)))
    return found


@dataclass(frozen=True, slots=True)
class MetricsServer:
    """Answers scrapes until closed."""

    address: str  # HOST:PORT where it listens
    _server: WSGIServer
    _thread: threading.Thread

    @staticmethod
    def open(listen: str, reader: StateReader, loop: asyncio.AbstractEventLoop, *, version: str) -> MetricsServer:
        """listen: HOST:PORT; port 0: the system chooses. Raises FleetError. May look up names: call it in a thread."""
        host, _, port = listen.rpartition(":")
        registry = CollectorRegistry()
        registry.register(StateCollector(lambda: _asked(reader, loop), version=version))
        ProcessCollector(registry=registry)
        try:
            server, thread = start_http_server(int(port), host.strip("[]"), registry)
        except OSError as e:
            law = "the address is in use or not ours"
            raise FleetError(f"cannot listen on {listen} for metrics: {law}: {e.strerror}") from e
        return MetricsServer(f"{host}:{server.server_port}", server, thread)

    def close(self) -> None:
        """Blocks for up to half a second."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _asked(reader: StateReader, loop: asyncio.AbstractEventLoop) -> ExecutorState:
    """The state, from another thread than the loop's."""
    answer: concurrent.futures.Future[ExecutorState] = concurrent.futures.Future()

    def tell() -> None:
        try:
            answer.set_result(reader.state(now=loop.time(), with_histograms=True, with_recent=False))
        except Exception as e:
            answer.set_exception(e)

    loop.call_soon_threadsafe(tell)
    return answer.result(ANSWER_WITHIN_S)
