"""What a failed call means to the planner, and what a client makes of messages."""

import grpc
import numpy as np
import pytest
from epara_executors.client import GrpcFleet
from epara_executors.contents import split_bytes
from epara_executors.infer_client import InferClient, InferError, answer_of, request_of
from epara_executors.rpc import open_inference_pb2 as oip
from epara_executors.tensors import from_array, to_array
from epara_executors.worker.frames import Tensor

from epara_opt.control.ports import Fence
from epara_opt.errors import ExecutorUnreachable


def test_a_deadline_that_passes_is_unreachable_and_what_was_loading_is_dropped(echo_edge):
    executor = echo_edge.start("a")
    slow = echo_edge.group("a", echo_edge.tenant(source="echo?load_ms=60000"))
    with pytest.raises(ExecutorUnreachable, match="DEADLINE_EXCEEDED"):
        echo_edge.fleet.prepare(executor.address, (slow,), Fence(epoch=1, generation=1), deadline_s=0.5)
    echo_edge.until(lambda: echo_edge.state("a").replicas == ())


def test_nobody_listening_is_unreachable():
    with GrpcFleet() as fleet, pytest.raises(ExecutorUnreachable, match="UNAVAILABLE"):
        fleet.retire("127.0.0.1:1", ("g",), Fence(epoch=1, generation=1), deadline_s=2)


def test_who_does_not_answer_a_drain_is_named_not_where_it_was_sought():
    with GrpcFleet() as fleet, pytest.raises(ExecutorUnreachable, match="executor of shop-a did not answer"):
        fleet.drain("127.0.0.1:1", exit_process=False, deadline_s=2, server="shop-a")


def test_a_server_once_named_at_an_address_is_named_in_every_later_error():
    with GrpcFleet() as fleet:
        assert "executor of shop-a did not answer" in fleet.observe({"shop-a": "127.0.0.1:1"}).down["shop-a"]
        with pytest.raises(ExecutorUnreachable, match="executor of shop-a did not answer"):
            fleet.retire("127.0.0.1:1", ("g",), Fence(epoch=1, generation=1), deadline_s=2)


def test_an_empty_fleet_is_observed_at_once():
    with GrpcFleet() as fleet:
        assert fleet.observe({}).executors == {}


def test_infer_client_says_unavailable_where_nobody_listens():
    with InferClient("127.0.0.1:1") as client:
        assert not client.is_ready(timeout_s=1)
        with pytest.raises(InferError) as caught:
            client.infer("m", {"x": np.ones(1, np.float32)}, timeout_s=2)
    assert caught.value.status is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("dtype", ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"])
def test_every_datatype_survives_the_way_there_and_back(dtype):
    array = np.arange(6).reshape(2, 3).astype(dtype)
    np.testing.assert_array_equal(to_array(from_array("t", array)), array)


def test_big_endian_arrays_are_turned_around():
    array = np.arange(3, dtype=">i4")
    np.testing.assert_array_equal(to_array(from_array("t", array)), array)


def test_texts_become_bytes():
    tensor = from_array("t", np.array(["ä", "bc"]))
    assert (tensor.datatype, to_array(tensor).tolist()) == ("BYTES", ["ä".encode(), b"bc"])


@pytest.mark.parametrize("data", [b"\x01", b"\x05\x00\x00\x00ab"])
def test_bytes_that_point_past_their_end_are_refused(data):
    with pytest.raises(ValueError, match="BYTES"):
        split_bytes(data)


def test_a_complex_array_is_no_tensor():
    with pytest.raises(ValueError, match="got complex128"):
        from_array("t", np.ones(1, np.complex128))


def test_a_tensor_without_a_numpy_type_is_refused():
    with pytest.raises(ValueError, match="BF16 has no numpy type"):
        to_array(Tensor("t", "BF16", (1,), b"12"))


def test_parameters_keep_their_types():
    request = request_of("m", {}, params={"a": True, "b": 1, "c": 0.5, "d": "x"})
    assert {k: v.WhichOneof("parameter_choice") for k, v in request.parameters.items()} == {
        "a": "bool_param",
        "b": "int64_param",
        "c": "double_param",
        "d": "string_param",
    }


def test_an_answer_without_a_mark_is_final():
    assert answer_of(oip.ModelInferResponse(id="1")).is_final
