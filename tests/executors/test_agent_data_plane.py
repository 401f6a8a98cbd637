"""What clients of one executor see."""

import contextlib
import threading

import grpc
import numpy as np
import pytest
from epara_executors.infer_client import InferError, request_of
from epara_executors.rpc import open_inference_pb2 as oip
from epara_executors.rpc.open_inference_pb2_grpc import GRPCInferenceServiceStub


@pytest.fixture(scope="module")
def one_executor(shared_edge):
    """A batch service `echo` that refuses elements above 100, and a generation service `chat` of two slots."""
    shared_edge.start("a")
    echo = shared_edge.group("a", shared_edge.tenant(source="echo?latency_ms=1&refuse_above=100"))
    chat = shared_edge.tenant(
        service="chat",
        group="g1",
        source="echo?latency_ms=5",
        task="text-generation",
        batch=2,
        output_tokens=8,
        deadline_ms=9000.0,
    )
    shared_edge.apply("a", echo, shared_edge.group("a", chat, name="g1", device=1))
    return shared_edge


@pytest.fixture
def stub(one_executor):
    with grpc.insecure_channel(one_executor.address("a")) as channel:
        yield GRPCInferenceServiceStub(channel)


def refused(call):
    with pytest.raises(InferError) as caught:
        call()
    return caught.value


def test_an_answer_equals_the_models_output(one_executor):
    x = np.random.default_rng(7).normal(size=(3, 4)).astype(np.float32)
    answer = one_executor.client("a").infer("echo", {"x": x}, request_id="r1")
    np.testing.assert_array_equal(answer.outputs["y"], x)
    assert answer.id == "r1"


def test_typed_contents_are_as_good_as_raw_ones(stub):
    request = oip.ModelInferRequest(model_name="echo")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4]).contents.fp32_contents.extend([1, 2, 3, 4])
    response = stub.ModelInfer(request, timeout=10)
    assert np.frombuffer(response.raw_output_contents[0], np.float32).tolist() == [1, 2, 3, 4]


def test_metadata_comes_from_the_loaded_model(one_executor):
    spec = one_executor.client("a").metadata("echo")
    assert (spec.platform, spec.inputs[0].name, spec.inputs[0].shape) == ("epara_torch", "x", (-1, 4))


def test_the_index_lists_the_plans_services_with_their_state(one_executor):
    assert one_executor.client("a").models() == {"chat": "READY", "echo": "READY"}


def test_an_unknown_model_is_not_found_and_the_known_ones_are_named(one_executor, ones):
    error = refused(lambda: one_executor.client("a").infer("nope", {"x": ones}))
    assert error.status is grpc.StatusCode.NOT_FOUND
    assert "echo" in error.message


@pytest.mark.parametrize(
    ("inputs", "params", "words"),
    [
        ({"x": np.ones((1, 5), np.float32)}, {}, "expected shape [-1, 4], got [1, 5]"),
        ({"x": np.ones(4, np.float32)}, {}, "expected shape [-1, 4], got [4]"),
        ({"x": np.ones((1, 4), np.float64)}, {}, "expected datatype FP32, got FP64"),
        ({"z": np.ones((1, 4), np.float32)}, {}, "expected of x FP32 [-1, 4]; got z"),
        ({"x": np.ones((1, 4), np.float32), "z": np.ones(1, np.float32)}, {}, "got z"),
        ({"x": np.ones((5, 4), np.float32)}, {}, "expected a leading dimension <= 4"),
        ({}, {}, "expected of x FP32 [-1, 4]; got none"),
        ({"x": np.ones((1, 4), np.float32)}, {"shape": 1}, "parameter 'shape' is not known"),
        ({"x": np.ones((1, 4), np.float32)}, {"max_tokens": 1}, "parameter 'max_tokens' is not known"),
        ({"x": np.ones((1, 4), np.float32)}, {"timeout": -1}, "expected an integer >= 0, got -1"),
        ({"x": np.full((1, 4), 101, np.float32)}, {}, "expected elements <= 100"),
    ],
)
def test_a_wrong_request_is_an_invalid_argument_that_says_what_was_expected(one_executor, inputs, params, words):
    error = refused(lambda: one_executor.client("a").infer("echo", inputs, params=params))
    assert error.status is grpc.StatusCode.INVALID_ARGUMENT
    assert words in error.message


@pytest.mark.parametrize("letter", ["x", "%", "\u7b54"])
def test_words_too_long_for_a_status_are_cut_and_the_status_stays(one_executor, ones, letter):
    error = refused(lambda: one_executor.client("a").infer("echo", {"x": ones}, params={letter * 20_000: 1}))
    assert error.status is grpc.StatusCode.INVALID_ARGUMENT
    assert error.message.startswith(f"echo: parameter '{letter}")


def test_raw_contents_of_another_size_are_refused(stub):
    request = request_of("echo", {"x": np.ones((1, 4), np.float32)})
    request.raw_input_contents[0] = b"123"
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request, timeout=10)
    assert "expected 16 bytes for FP32 [1, 4], got 3" in caught.value.details()


def test_one_wrong_request_of_a_batch_does_not_spoil_the_others(one_executor):
    client = one_executor.client("a")
    results = {}

    def send(value):
        try:
            results[value] = client.infer("echo", {"x": np.full((1, 4), value, np.float32)}).outputs["y"][0, 0]
        except InferError as e:
            results[value] = e.status

    threads = [threading.Thread(target=send, args=(v,)) for v in (1, 2, 101, 3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert results == {1: 1, 2: 2, 3: 3, 101: grpc.StatusCode.INVALID_ARGUMENT}


def test_loading_by_hand_is_unimplemented_because_the_planner_places(stub):
    with pytest.raises(grpc.RpcError) as caught:
        stub.RepositoryModelLoad(oip.RepositoryModelLoadRequest(model_name="echo"), timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "planner" in caught.value.details()


def test_what_cannot_be_on_time_is_shed_at_once_and_told_when_to_retry(echo_edge, ones):
    echo_edge.start("a")
    echo_edge.apply("a", echo_edge.group("a", echo_edge.tenant(source="echo?latency_ms=1", deadline_ms=100.0)))
    client = echo_edge.client("a")
    client.infer("echo", {"x": ones})
    error = refused(lambda: client.infer("echo", {"x": ones}, params={"timeout": 1}))
    assert error.status is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.retry_after_ms >= 1
    service = echo_edge.state("a").services[0]
    assert (service.arrived, service.on_time, service.shed) == (2, 1, 1)


def test_a_request_goes_to_a_replica_whose_batches_hold_it(echo_edge):
    echo_edge.start("a")
    small, large = echo_edge.tenant(group="g0", batch=1), echo_edge.tenant(group="g1", batch=4)
    echo_edge.apply("a", echo_edge.group("a", small), echo_edge.group("a", large, name="g1", device=1))
    four = np.ones((4, 4), np.float32)
    for _ in range(6):
        assert echo_edge.client("a").infer("echo", {"x": four}).outputs["y"].shape == (4, 4)
    served = {r.replica: r.served for r in echo_edge.state("a").replicas}
    assert served == {"echo@g0": 0, "echo@g1": 6}


def test_a_slow_patch_does_not_have_a_service_refused_for_ever(echo_edge, ones):
    echo_edge.start("a")
    spec = echo_edge.tenant(source="echo?per_row_ms=100", deadline_ms=350.0, response_ms=100.0)
    echo_edge.apply("a", echo_edge.group("a", spec))
    client = echo_edge.client("a")
    client.infer("echo", {"x": np.ones((4, 4), np.float32)}, params={"timeout": 5_000_000})  # takes longer than 350 ms
    error = refused(lambda: client.infer("echo", {"x": ones}))
    assert error.status is grpc.StatusCode.RESOURCE_EXHAUSTED

    def served():
        with contextlib.suppress(InferError):
            return bool(client.infer("echo", {"x": ones}).outputs)
        return False

    echo_edge.until(served, deadline_s=10.0)


def test_a_hung_worker_costs_its_clients_no_more_than_their_deadline(echo_edge, ones):
    echo_edge.start("a")
    echo_edge.apply("a", echo_edge.group("a", echo_edge.tenant(source="echo?hang_above=10", deadline_ms=300.0)))
    error = refused(lambda: echo_edge.client("a").infer("echo", {"x": ones * 11}, params={"timeout": 300_000}))
    assert error.status is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "not answered by its deadline" in error.message


def test_requests_pipelined_on_one_stream_are_matched_by_id(stub):
    requests = [request_of("echo", {"x": np.full((1, 4), i, np.float32)}, request_id=str(i)) for i in range(20)]
    requests.append(request_of("nope", {"x": np.ones((1, 4), np.float32)}, request_id="bad"))
    seen = {}
    for response in stub.ModelStreamInfer(iter(requests), timeout=20):
        answer = response.infer_response
        value = np.frombuffer(answer.raw_output_contents[0], np.float32)[0] if answer.raw_output_contents else None
        seen[answer.id] = response.error_message or value
    assert {seen[str(i)] for i in range(20)} == set(range(20))
    assert seen["bad"].startswith("[NOT_FOUND]")


PROMPT = np.array([b"to be or not"], dtype=np.object_)


def test_a_client_that_does_not_read_is_not_answered_without_end(echo_edge):
    number, width = 400, 16384  # 64 KiB each way
    echo_edge.start("a")
    spec = echo_edge.tenant(source=f"echo?width={width}", deadline_ms=60_000.0)
    echo_edge.apply("a", echo_edge.group("a", spec))
    client, x = echo_edge.client("a"), np.ones((1, width), np.float32)
    with grpc.insecure_channel(echo_edge.address("a")) as channel:
        requests = iter([request_of("echo", {"x": x})] * number)
        call = GRPCInferenceServiceStub(channel).ModelStreamInfer(requests, timeout=60)
        asked, taken, steady = 0, 0, 0
        while steady < 20 or taken < 64:  # until others come and go, and nothing more of the stream is taken
            client.infer("echo", {"x": x})
            asked += 1
            now = echo_edge.state("a").services[0].arrived - asked
            steady, taken = (steady + 1 if now == taken else 0), now
        assert taken < number
        assert sum(not response.error_message for response in call) == number


def test_a_generation_answers_whole(one_executor):
    answer = one_executor.client("a").infer("chat", {"text": PROMPT}, params={"max_tokens": 6})
    assert answer.outputs["text"][0] == b"to be or not to be"
    assert answer.outputs["tokens"].tolist() == [0, 1, 2, 3, 0, 1]


def test_a_generation_streams_token_by_token_and_marks_the_last(one_executor):
    answers = list(one_executor.client("a").stream("chat", {"text": PROMPT}, params={"max_tokens": 5}))
    assert [a.outputs["text"][0] for a in answers] == [b"to ", b"be ", b"or ", b"not ", b"to "]
    assert [a.is_final for a in answers] == [False] * 4 + [True]
    assert answers[-1].parameters["finish_reason"] == "length"


def test_leaving_a_stream_frees_its_slot_at_once(one_executor):
    client = one_executor.client("a")
    for _ in range(4):  # twice as many as there are slots
        stream = client.stream("chat", {"text": PROMPT}, params={"max_tokens": 100_000})
        next(stream)
        stream.close()
    one_executor.until(lambda: sum(r.queued for r in one_executor.state("a").replicas) == 0)
    assert client.infer("chat", {"text": PROMPT}, params={"max_tokens": 1}).outputs["text"][0] == b"to"


def test_a_text_parameter_that_no_frame_should_carry_is_refused_and_costs_no_worker(one_executor):
    before = one_executor.state("a").replicas
    error = refused(
        lambda: one_executor.client("a").infer("chat", {"text": PROMPT}, params={"max_tokens": 1, "stop": "x" * 2**17})
    )
    law = "chat: parameter 'stop': expected at most 65536 characters, got 131072"
    assert (error.status, error.message) == (grpc.StatusCode.INVALID_ARGUMENT, law)
    assert [r.restarts for r in one_executor.state("a").replicas] == [r.restarts for r in before]


def test_a_token_stream_needs_a_streaming_call(one_executor):
    error = refused(lambda: one_executor.client("a").infer("chat", {"text": PROMPT}, params={"stream": True}))
    assert error.status is grpc.StatusCode.INVALID_ARGUMENT
    assert "ModelStreamInfer" in error.message
