"""Several executors: forwarding, taking over, never in circles, never beyond the deadline."""

import threading
import time
from collections import Counter

import grpc
import numpy as np
import pytest
from epara_executors.infer_client import InferError


def ask_many(client, x, num, *, params=None, pace_s=0.0):
    """Statuses ("OK" where answered) and the longest wait."""
    statuses, longest = Counter(), []

    def ask():
        started_at = time.monotonic()
        try:
            client.infer("echo", {"x": x}, params=params)
            statuses["OK"] += 1
        except InferError as e:
            statuses[e.status.name] += 1
        longest.append(time.monotonic() - started_at)

    threads = []
    for _ in range(num):
        threads.append(threading.Thread(target=ask))
        threads[-1].start()
        time.sleep(pace_s)
    for t in threads:
        t.join()
    return statuses, max(longest)


def counters(edge, server):
    return {s.service: s for s in edge.state(server).services}["echo"]


def test_work_follows_the_plans_route_to_another_executor(echo_edge, ones):
    echo_edge.start("a")
    echo_edge.start("b")
    tenant = echo_edge.tenant()
    echo_edge.apply("b", echo_edge.group("b", tenant), routes=())
    echo_edge.apply("a", routes=(echo_edge.route(tenant, "b"),))
    client = echo_edge.client("a")
    answer = client.infer("echo", {"x": ones})
    np.testing.assert_array_equal(answer.outputs["y"], ones)
    assert client.models() == {"echo": "READY"}
    assert client.metadata("echo").inputs[0].shape == (-1, 4)
    here, there = counters(echo_edge, "a"), counters(echo_edge, "b")
    assert (here.arrived, here.forwarded, here.served, here.on_time) == (1, 1, 0, 1)
    assert (there.arrived, there.served) == (0, 1)


def test_routes_share_work_in_proportion_to_their_rates(echo_edge, ones):
    echo_edge.start("a")
    echo_edge.start("b")
    here, there = echo_edge.tenant(group="g0"), echo_edge.tenant(group="g1")
    echo_edge.apply("b", echo_edge.group("b", there, name="g1"), routes=())
    routes = (echo_edge.route(here, "a", rate=30.0), echo_edge.route(there, "b", rate=10.0))
    echo_edge.apply("a", echo_edge.group("a", here), routes=routes)
    client = echo_edge.client("a")
    for _ in range(40):
        client.infer("echo", {"x": ones})
    assert (counters(echo_edge, "a").served, counters(echo_edge, "b").served) == (30, 10)


def test_the_peers_errors_come_back_as_they_are(echo_edge):
    echo_edge.start("a")
    echo_edge.start("b")
    tenant = echo_edge.tenant()
    echo_edge.apply("b", echo_edge.group("b", tenant), routes=())
    echo_edge.apply("a", routes=(echo_edge.route(tenant, "b"),))
    with pytest.raises(InferError) as caught:
        echo_edge.client("a").infer("echo", {"x": np.ones((1, 5), np.float32)})
    assert caught.value.status is grpc.StatusCode.INVALID_ARGUMENT


def test_a_token_stream_passes_through_another_executor(echo_edge):
    echo_edge.start("a")
    echo_edge.start("b")
    tenant = echo_edge.tenant(service="chat", source="echo?latency_ms=2", task="text-generation", output_tokens=4)
    echo_edge.apply("b", echo_edge.group("b", tenant), routes=())
    echo_edge.apply("a", routes=(echo_edge.route(tenant, "b"),))
    text = np.array([b"one two"], dtype=np.object_)
    answers = list(echo_edge.client("a").stream("chat", {"text": text}, params={"max_tokens": 4}))
    assert b"".join(a.outputs["text"][0] for a in answers) == b"one two one two "


def test_what_is_late_here_is_offloaded_to_an_idle_peer(echo_edge, ones):
    echo_edge.start("a")
    echo_edge.start("b")
    slow = {"source": "echo?latency_ms=150", "batch": 1, "deadline_ms": 400.0, "response_ms": 300.0, "work_per_s": 6.0}
    here, there = echo_edge.tenant(group="g0", **slow), echo_edge.tenant(group="g1", **slow)
    echo_edge.apply("b", echo_edge.group("b", there, name="g1"), routes=())
    echo_edge.apply("a", echo_edge.group("a", here), peers=(echo_edge.peer("echo", "b"),))
    client = echo_edge.client("a")

    def forwards_some_of_four():
        ask_many(client, ones, 4)
        return counters(echo_edge, "a").forwarded >= 1

    echo_edge.until(forwards_some_of_four)  # at the latest once b has told its state
    assert counters(echo_edge, "b").served >= 1


def test_overload_of_three_executors_sheds_the_rest_without_loops_or_hangs(echo_edge, ones):
    names = ("a", "b", "c")
    for n in names:
        echo_edge.start(n)
    slow = {"source": "echo?latency_ms=100", "batch": 1, "deadline_ms": 350.0, "response_ms": 200.0, "work_per_s": 9.0}
    for i, n in enumerate(names):
        tenant = echo_edge.tenant(group=f"g{i}", **slow)
        peers = tuple(echo_edge.peer("echo", p) for p in names if p != n)
        echo_edge.apply(n, echo_edge.group(n, tenant, name=f"g{i}"), peers=peers)
    statuses, longest_s = ask_many(echo_edge.client("a"), ones, 40)
    assert statuses["OK"] >= 3
    assert set(statuses) <= {"OK", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}
    assert longest_s < 0.35 + 1.0 + 2.0  # objective, grace, and a slow machine
    seen = counters(echo_edge, "a")
    assert seen.arrived == seen.on_time + seen.late + seen.shed + seen.failed == 40
    assert counters(echo_edge, "b").arrived == counters(echo_edge, "c").arrived == 0


def test_a_request_that_has_hopped_enough_is_shed_rather_than_forwarded(echo_edge, ones):
    from epara_executors.infer_client import request_of
    from epara_executors.rpc.open_inference_pb2_grpc import GRPCInferenceServiceStub

    echo_edge.start("a")
    echo_edge.start("b")
    tenant = echo_edge.tenant()
    echo_edge.apply("b", echo_edge.group("b", tenant), routes=())
    echo_edge.apply("a", routes=(echo_edge.route(tenant, "b"),))
    with grpc.insecure_channel(echo_edge.address("a")) as channel:
        stub = GRPCInferenceServiceStub(channel)
        for metadata in (
            (("epara-hops", "2"), ("epara-visited", "x,y"), ("epara-deadline-ms", "500")),
            (("epara-hops", "1"), ("epara-visited", "b"), ("epara-deadline-ms", "500")),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                stub.ModelInfer(request_of("echo", {"x": ones}), metadata=metadata, timeout=10)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_killing_a_peer_under_load_leaves_nothing_hanging_and_the_others_take_over(echo_edge, ones):
    for n in ("a", "b", "c"):
        echo_edge.start(n)
    tenants = {n: echo_edge.tenant(group=f"g-{n}", source="echo?latency_ms=20") for n in ("b", "c")}
    for n, tenant in tenants.items():
        echo_edge.apply(n, echo_edge.group(n, tenant, name=f"g-{n}"), routes=())
    echo_edge.apply("a", routes=tuple(echo_edge.route(t, n) for n, t in tenants.items()))
    client = echo_edge.client("a")
    killer = threading.Timer(0.3, echo_edge.executors["b"].kill)
    killer.start()
    statuses, longest_s = ask_many(client, ones, 60, pace_s=0.01)
    killer.join()
    assert statuses == {"OK": 60}
    assert longest_s < 5.0
    assert ask_many(client, ones, 10)[0] == {"OK": 10}


def test_a_peer_that_comes_back_is_used_again(echo_edge, ones):
    echo_edge.start("a")
    first = echo_edge.start("b")
    tenant = echo_edge.tenant()
    echo_edge.apply("b", echo_edge.group("b", tenant), routes=())
    echo_edge.apply("a", routes=(echo_edge.route(tenant, "b"),))
    client = echo_edge.client("a")
    client.infer("echo", {"x": ones})
    first.kill()
    with pytest.raises(InferError) as caught:
        client.infer("echo", {"x": ones}, params={"timeout": 1_000_000})
    assert caught.value.status in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
    echo_edge.start("b", first.address)

    def answered():
        try:
            client.infer("echo", {"x": ones})
        except InferError:
            return False
        return True

    echo_edge.until(answered)


def test_a_streams_consecutive_frames_share_batches_at_one_replica(echo_edge):
    echo_edge.start("a")
    stream = {"sensitivity": "frequency", "fps": 20.0, "frames": 4, "batch": 1, "deadline_ms": 1500.0}
    tenants = [echo_edge.tenant(group=f"g{i}", source="echo?latency_ms=5", **stream) for i in range(2)]
    groups = [echo_edge.group("a", t, name=f"g{i}", device=i) for i, t in enumerate(tenants)]
    echo_edge.apply("a", *groups, routes=tuple(echo_edge.route(t, "a", rate=30.0) for t in tenants))
    client = echo_edge.client("a")
    statuses = []

    def frame(index):
        params = {"stream": "cam-1", "frame": index}
        statuses.append(client.infer("echo", {"x": np.full((1, 4), index, np.float32)}, params=params))

    threads = [threading.Thread(target=frame, args=(i,)) for i in range(16)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    state = echo_edge.state("a")
    assert sorted(r.served for r in state.replicas) == [0, 16]
    assert state.services[0].streams == 1
    assert max(r.mean_batch for r in state.replicas) > 1


def test_work_goes_where_a_new_plan_routes_it_before_the_peer_has_spoken_of_it(echo_edge, ones):
    echo_edge.start("a")
    echo_edge.start("b")
    hosted, routes = (), ()
    for generation in range(1, 7):  # b gains a service per plan, and is asked for it in the moment of the switch
        service, name = f"echo-{generation}", f"g{generation}"
        tenant = echo_edge.tenant(service=service, group=name)
        hosted += (echo_edge.group("b", tenant, name=name, device=generation),)
        routes += (echo_edge.route(tenant, "b"),)
        echo_edge.apply("b", *hosted, routes=(), generation=generation)
        echo_edge.apply("a", routes=routes, generation=generation)
        answer = echo_edge.client("a").infer(service, {"x": ones})
        np.testing.assert_array_equal(answer.outputs["y"], ones)


def test_a_peer_that_serves_it_no_more_is_passed_over_for_one_that_does(echo_edge, ones):
    for n in ("a", "b", "c"):
        echo_edge.start(n)
    tenants = {n: echo_edge.tenant(group=f"g-{n}") for n in ("b", "c")}
    other = echo_edge.tenant(service="other", group="g-other")
    echo_edge.apply("b", echo_edge.group("b", other, name="g-other"), routes=())
    echo_edge.apply("c", echo_edge.group("c", tenants["c"], name="g-c"), routes=())
    echo_edge.apply("a", routes=(echo_edge.route(tenants["b"], "b", rate=1e6), echo_edge.route(tenants["c"], "c")))
    for _ in range(5):  # b, where nearly all is routed, says NOT_FOUND
        answer = echo_edge.client("a").infer("echo", {"x": ones})
        np.testing.assert_array_equal(answer.outputs["y"], ones)


def test_rows_beyond_one_peers_batch_go_to_a_peer_whose_batches_hold_them(echo_edge):
    for server in "abc":
        echo_edge.start(server)
    small, large = echo_edge.tenant(group="b0", batch=1), echo_edge.tenant(group="c0", batch=4)
    echo_edge.apply("b", echo_edge.group("b", small, name="b0"), routes=())
    echo_edge.apply("c", echo_edge.group("c", large, name="c0"), routes=())
    peers = (echo_edge.peer("echo", "b"), echo_edge.peer("echo", "c"))
    echo_edge.apply("a", routes=(echo_edge.route(small, "b"), echo_edge.route(large, "c")), peers=peers)
    client = echo_edge.client("a")
    assert ask_many(client, np.ones((4, 4), np.float32), 6)[0] == {"OK": 6}
    with pytest.raises(InferError, match="expected a leading dimension") as wrong:
        client.infer("echo", {"x": np.ones((9, 4), np.float32)})
    assert wrong.value.status is grpc.StatusCode.INVALID_ARGUMENT
