"""Streams of frames over one call: order over replicas of different speed, batches of frames, refusals in place."""

import itertools
from contextlib import closing

import grpc
import numpy as np
import pytest
from epara_executors.infer_client import InferError, request_of
from epara_executors.rpc.open_inference_pb2_grpc import GRPCInferenceServiceStub

GENERATIONS = itertools.count(1)


@pytest.fixture(scope="module")
def edge(shared_edge):
    for server in ("a", "b"):
        shared_edge.start(server)
    return shared_edge


def stream_tenant(edge, service, group, source="echo?latency_ms=1", **over):
    values = {"sensitivity": "frequency", "fps": 30.0, "batch": 1, "deadline_ms": 8000.0, "work_per_s": 50.0, **over}
    return edge.tenant(service=service, group=group, source=source, **values)


def host(edge, tenants, *, rate=10.0):
    """Bring a plan into force that hosts these at their servers, all of them reached from a."""
    generation = next(GENERATIONS)
    groups = {"a": [], "b": []}
    routes = []
    for index, (server, tenant) in enumerate(tenants):
        name = tenant.replica.partition("@")[2]
        groups[server].append(edge.group(server, tenant, name=name, device=index))
        routes.append(edge.route(tenant, server, rate=rate))
    edge.apply("b", *groups["b"], routes=(), generation=generation)
    edge.apply("a", *groups["a"], routes=tuple(routes), generation=generation)


def rows(values):
    return [{"x": np.full((1, 4), v, np.float32)} for v in values]


def said(answer):
    """The value of an answer, or the status of a refusal."""
    return answer.status.name if isinstance(answer, InferError) else float(answer.outputs["y"][0, 0])


def test_frames_go_round_over_replicas_of_different_speed_and_come_back_in_order(edge):
    speeds = {"fast": ("a", 1), "slow": ("a", 40), "far": ("b", 10)}
    tenants = [
        (server, stream_tenant(edge, "dp", f"dp-{name}", f"echo?latency_ms={ms}"))
        for name, (server, ms) in speeds.items()
    ]
    host(edge, tenants)
    answers = list(edge.client("a").frames("dp", rows(range(45)), timeout_s=30))
    assert [said(a) for a in answers] == list(range(45))
    assert [a.id for a in answers] == [str(i) for i in range(45)]
    served = {r.replica: r.served for s in "ab" for r in edge.state(s).replicas if r.service == "dp"}
    assert served == {"dp@dp-fast": 15, "dp@dp-slow": 15, "dp@dp-far": 15}
    assert next(s.streams for s in edge.state("a").services if s.service == "dp") == 0  # over with its call


def test_consecutive_frames_share_a_batch_at_each_of_a_streams_replicas(edge):
    tenants = [("a", stream_tenant(edge, "mf", f"mf-{i}", "echo?latency_ms=2", frames=4)) for i in range(2)]
    host(edge, tenants, rate=15.0)
    answers = list(edge.client("a").frames("mf", rows(range(32)), stream="cam", timeout_s=30))
    assert [said(a) for a in answers] == list(range(32))
    found = [(r.served, r.mean_batch) for r in edge.state("a").replicas if r.service == "mf"]
    assert found == [(16, 4.0), (16, 4.0)]


def test_a_refused_frame_is_answered_in_its_place(edge):
    tenants = [("a", stream_tenant(edge, "bad", f"bad-{i}", "echo?latency_ms=5&refuse_above=100")) for i in range(2)]
    host(edge, tenants, rate=15.0)
    values = [1, 200, 2, 300, 3, 4]
    answers = list(edge.client("a").frames("bad", rows(values), timeout_s=30))
    assert [said(a) for a in answers] == [1, "INVALID_ARGUMENT", 2, "INVALID_ARGUMENT", 3, 4]
    assert [a.id for a in answers] == [str(i) for i in range(6)]
    assert "expected elements <= 100, got 200" in answers[1].message


def test_a_lost_frame_holds_up_the_others_until_its_deadline_only(edge):
    quick = stream_tenant(edge, "lost", "lost-0", "echo?latency_ms=1", deadline_ms=400.0)
    stuck = stream_tenant(
        edge, "lost", "lost-1", "echo?latency_ms=1200", deadline_ms=400.0
    )  # within a late frame's grace
    host(edge, [("a", quick), ("a", stuck)], rate=15.0)
    answers = list(edge.client("a").frames("lost", rows(range(8)), timeout_s=30))
    assert [a.id for a in answers] == [str(i) for i in range(8)]
    assert [said(a) for a in answers[::2]] == [0, 2, 4, 6]
    assert [said(a) for a in answers[1::2]] == ["DEADLINE_EXCEEDED"] * 4
    assert "later frames of its stream are" in answers[1].message
    counted = next(s for s in edge.state("a").services if s.service == "lost")
    assert (counted.on_time, counted.late, counted.failed) == (4, 4, 0)


def test_leaving_in_mid_stream_frees_everything(edge):
    tenants = [("a", stream_tenant(edge, "left", f"left-{i}", "echo?latency_ms=20")) for i in range(2)]
    host(edge, tenants, rate=15.0)
    client = edge.client("a")
    for _ in range(3):
        with closing(client.frames("left", rows([1] * 200), timeout_s=30)) as answers:
            next(answers)

    def all_free():
        state = edge.state("a")
        replicas = [r for r in state.replicas if r.service == "left"]
        streams = [s.streams for s in state.services if s.service == "left"]
        return [r.queued for r in replicas] == [0, 0] and streams == [0]

    edge.until(all_free)
    assert [said(a) for a in client.frames("left", rows([7, 8]), timeout_s=30)] == [7, 8]


def sequence(stub, service, *params):
    requests = [
        request_of(service, {"x": np.full((1, 4), i, np.float32)}, params=p, request_id=str(i))
        for i, p in enumerate(params)
    ]
    return [
        r.error_message or np.frombuffer(r.infer_response.raw_output_contents[0], np.float32)[0]
        for r in stub.ModelStreamInfer(iter(requests), timeout=30)
    ]


def test_tritons_sequences_are_streams_too_and_their_end_is_heard(edge):
    tenants = [("a", stream_tenant(edge, "seq", f"seq-{i}", f"echo?latency_ms={ms}")) for i, ms in enumerate((30, 1))]
    host(edge, tenants, rate=15.0)
    with grpc.insecure_channel(edge.address("a")) as channel:
        stub = GRPCInferenceServiceStub(channel)
        first, last = {"sequence_id": 7, "sequence_start": True}, {"sequence_id": 7, "sequence_end": True}
        assert sequence(stub, "seq", first, *[{"sequence_id": 7}] * 6) == list(range(7))
        assert next(s.streams for s in edge.state("a").services if s.service == "seq") == 1
        assert sequence(stub, "seq", last) == [0]
        assert next(s.streams for s in edge.state("a").services if s.service == "seq") == 0
        both = sequence(stub, "seq", {"sequence_id": "x", "stream": "y"})
        assert "seq: expected one of the parameters 'stream' and 'sequence_id', got both" in both[0]
        wrong = sequence(stub, "seq", {"sequence_id": True}, {"sequence_id": 1, "sequence_end": 1})
        assert "'sequence_id': expected a text or an integer, got True" in wrong[0]
        assert "'sequence_end': expected true or false, got 1" in wrong[1]
