"""The load generator against a small server of the protocol whose answers are scripted."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from epara_executors.load import LoadGenerator, LoadProgress, LoadRun
from epara_executors.load_report import LoadReport
from epara_executors.load_spec import LoadSpec
from epara_executors.rpc import open_inference_pb2 as oip
from epara_executors.rpc.open_inference_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)

from epara_opt.errors import ExecutorUnreachable, InputError


class Scripted(GRPCInferenceServiceServicer):
    """Describes one model; answers, sheds or stalls as told."""

    def __init__(self, answer: Callable[[int, Any], None]) -> None:
        self.requests: list[oip.ModelInferRequest] = []
        self._answer = answer

    def ModelMetadata(self, request: Any, context: Any) -> oip.ModelMetadataResponse:  # noqa: N802
        response = oip.ModelMetadataResponse(name=request.name)
        response.inputs.add(name="image", datatype="FP32", shape=[-1, 3, 8, 8])
        response.inputs.add(name="text", datatype="BYTES", shape=[1])
        return response

    def ModelInfer(self, request: Any, context: Any) -> oip.ModelInferResponse:  # noqa: N802
        self.requests.append(request)
        self._answer(len(self.requests), context)
        return oip.ModelInferResponse(model_name=request.model_name)


class Served:
    def __init__(self, answer: Callable[[int, Any], None] = lambda n, context: None) -> None:
        self.servicer = Scripted(answer)
        self.server = grpc.server(ThreadPoolExecutor(8))
        add_GRPCInferenceServiceServicer_to_server(self.servicer, self.server)
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    started: list[Served] = []

    def start(*args: Any) -> Served:
        started.append(Served(*args))
        return started[-1]

    yield start
    for s in started:
        s.server.stop(0).wait()


def spec(address: str, **changed: Any) -> LoadSpec:
    given: dict[str, Any] = {"service": "m", "origin": "a", "address": address, "deadline_ms": 5_000.0}
    if not {"rate_per_s", "streams", "arrivals_s"} & changed.keys():
        changed["arrivals_s"] = tuple(i / 100 for i in range(20))
    return LoadSpec(**(given | changed))


def run(*specs: LoadSpec, **settings: Any) -> LoadReport:
    return asyncio.run(LoadGenerator(specs, **{"duration_s": 0.3, **settings}).run())


def test_every_scheduled_request_is_sent_and_counted(serve: Callable[..., Served]) -> None:
    report = run(spec(serve().address))
    (summary,) = report.services()
    assert (summary.offered, summary.outcomes["on_time"], summary.slo_attainment) == (20, 20, 1.0)
    assert sum(w.offered for w in report.windows()) == 20


def test_inputs_follow_the_models_description(serve: Callable[..., Served]) -> None:
    served = serve()
    run(spec(served.address, prompt_tokens=5, output_tokens=7))
    request = served.servicer.requests[0]
    assert {i.name: list(i.shape) for i in request.inputs} == {"image": [1, 3, 8, 8], "text": [1]}
    assert len(request.raw_input_contents[1][4:].split()) == 5
    assert request.parameters["max_tokens"].int64_param == 7


def test_outcomes_tell_shed_failed_and_late_apart(serve: Callable[..., Served]) -> None:
    def answer(n: int, context: Any) -> None:
        if n % 2:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        context.abort(grpc.StatusCode.INTERNAL, "broken")

    (summary,) = run(spec(serve(answer).address)).services()
    assert (summary.outcomes["shed"], summary.outcomes["failed"]) == (10, 10)
    (summary,) = run(spec(serve().address, arrivals_s=(0.0,)), timeout_factor=1.0).services()
    assert summary.outcomes["on_time"] == 1


def test_nothing_hangs_beyond_its_client_deadline(serve: Callable[..., Served]) -> None:
    import threading

    release = threading.Event()

    def answer(n: int, context: Any) -> None:
        release.wait(30.0)

    served = serve(answer)
    try:
        report = run(spec(served.address, arrivals_s=(0.0, 0.01), deadline_ms=50.0), timeout_factor=2.0)
    finally:
        release.set()
    assert [r.outcome for r in report.records] == ["timeout", "timeout"]


def test_clients_of_a_dead_server_go_to_the_next(serve: Callable[..., Served]) -> None:
    dead, alive = serve(), serve()
    dead.server.stop(0).wait()
    (summary,) = run(spec(dead.address, failover=(alive.address,))).services()
    assert summary.outcomes["on_time"] == 20
    assert len(alive.servicer.requests) == 20


def test_a_dead_origin_without_failover_is_an_error_at_the_start_and_failures_later(
    serve: Callable[..., Served],
) -> None:
    dead = serve()
    dead.server.stop(0).wait()
    with pytest.raises(ExecutorUnreachable, match="executor of a did not answer"):
        run(spec(dead.address))


def test_streams_send_evenly_with_their_names(serve: Callable[..., Served]) -> None:
    served = serve()
    report = run(spec(served.address, streams=2, fps=20.0), duration_s=0.5)
    assert len(report.records) in (19, 20, 21)
    names = {r.parameters["stream"].string_param for r in served.servicer.requests}
    assert names == {"a/m/0", "a/m/1"}


def test_the_same_seed_gives_the_same_schedule() -> None:
    specs = [spec("x:1", rate_per_s=50.0, burstiness_cv=2.0), spec("x:1", service="n", streams=3, fps=5.0)]
    one, two, other = (LoadGenerator(specs, duration_s=10.0, seed=s).schedule() for s in (1, 1, 2))
    assert one == two != other
    assert len(LoadGenerator(specs, duration_s=10.0, max_requests=7).schedule()) == 7


def test_gamma_arrivals_have_the_wanted_rate() -> None:
    made = spec("x:1", rate_per_s=100.0, burstiness_cv=2.0).schedule(200.0, np.random.default_rng(3))
    assert len(made) == pytest.approx(20_000, rel=0.1)


def test_a_run_on_a_thread_can_be_watched_and_stopped(serve: Callable[..., Served]) -> None:
    import threading

    first = threading.Event()
    seen: list[LoadProgress] = []

    def answer(n: int, context: Any) -> None:
        first.set()

    generator = LoadGenerator([spec(serve(answer).address, rate_per_s=50.0)], duration_s=600.0, on_progress=seen.append)
    load = LoadRun(generator).start()
    assert first.wait(30.0)
    load.stop()
    report = load.result(timeout_s=30.0)
    assert 0 < len(report.records) < 1000
    assert seen[-1].done == len(report.records)


@pytest.mark.parametrize(
    ("changed", "law"),
    [
        ({"rate_per_s": 1.0, "streams": 1, "fps": 1.0}, "expected exactly one of"),
        ({"streams": 1}, r"load\.m@a\.fps: expected > 0 with streams"),
        ({"rate_per_s": -1.0}, r"rate_per_s: expected >= 0, got -1"),
    ],
)
def test_a_spec_names_what_is_wrong(changed: dict[str, Any], law: str) -> None:
    with pytest.raises(InputError, match=law):
        spec("x:1", **changed)
