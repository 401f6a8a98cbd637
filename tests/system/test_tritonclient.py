"""A stock client, unchanged, against a real executor with real torch workers."""

import queue
import subprocess
import venv

import numpy as np
import pytest
import tritonclient.grpc as triton
from epara_executors.client import GrpcFleet
from epara_executors.local import LocalExecutor
from tritonclient.utils import InferenceServerException

from epara_opt.control.ports import CommitSpec, Fence, GroupSpec, RouteSpec, TenantSpec

pytestmark = pytest.mark.system

SEED = 3


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    from epara_executors.tiny_models import make

    root = tmp_path_factory.mktemp("models")
    for kind in ("tiny-vit", "tiny-llama"):
        make(kind, root / kind, SEED)
    return root


@pytest.fixture(scope="module")
def address(models, tmp_path_factory):
    """An executor that serves `vit` and `chat`, time-sharing one CPU slot."""
    folder = tmp_path_factory.mktemp("executor")

    def tenant(service, source, task, batch, **over):
        values = {"deadline_ms": 30_000.0, "response_ms": 200.0, "work_per_s": 10.0, "fps": 0.0, "frames": 1}
        values |= {"prompt_tokens": 0, "output_tokens": 0, "sensitivity": "latency", "replica": f"{service}@g"}
        return TenantSpec(service=service, source=source, task=task, batch=batch, **{**values, **over})

    tenants = (
        tenant("vit", "tiny-vit", "image-classification", 4),
        tenant("chat", "tiny-llama", "text-generation", 2, prompt_tokens=16, output_tokens=8),
    )
    group = GroupSpec(
        group="g", server="edge", device_type="cpu", device_kind="cpu", devices=(0,), tp=1, pp=1, tenants=tenants
    )
    executor = LocalExecutor("edge", state_dir=folder / "state", model_root=models, log_file=folder / "log")
    with executor, GrpcFleet() as fleet:
        fence = Fence(epoch=1, generation=1)
        fleet.prepare(executor.address, (group,), fence, deadline_s=150)
        routes = tuple(
            RouteSpec(
                service=t.service,
                replica=t.replica,
                server="edge",
                address=executor.address,
                rate_per_s=1.0,
                network_ms=0.0,
            )
            for t in tenants
        )
        spec = CommitSpec(server="edge", groups=(group,), routes=routes, peers=())
        fleet.commit(executor.address, spec, fence, deadline_s=10)
        yield executor.address


@pytest.fixture
def client(address):
    with triton.InferenceServerClient(address) as client:
        yield client


@pytest.fixture(scope="module")
def image_shape(address):
    with triton.InferenceServerClient(address) as client:
        (declared,) = client.get_model_metadata("vit").inputs
    return tuple(declared.shape[1:])


def pixels(shape, rows=1):
    return np.random.default_rng(11).standard_normal((rows, *shape), dtype=np.float32)


def tensor(name, array, datatype):
    given = triton.InferInput(name, list(array.shape), datatype)
    given.set_data_from_numpy(array)
    return given


def test_it_is_live_ready_and_lists_its_models(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("vit")
    assert {m.name: m.state for m in client.get_model_repository_index().models} == {"chat": "READY", "vit": "READY"}
    assert client.get_model_metadata("vit").platform == "epara_torch"


def test_outputs_equal_the_direct_torch_call(client, models, image_shape):
    import torch
    from transformers import ViTForImageClassification

    x = pixels(image_shape, rows=2)
    served = client.infer("vit", [tensor("pixel_values", x, "FP32")]).as_numpy("logits")
    model = ViTForImageClassification.from_pretrained(models / "tiny-vit").eval()
    with torch.inference_mode():
        direct = model(pixel_values=torch.from_numpy(x)).logits.numpy()
    np.testing.assert_allclose(served, direct, rtol=1e-4, atol=1e-5)


def test_greedy_tokens_equal_the_direct_generation(client, models):
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    prompt = "the edge of the cloud"
    given = tensor("text", np.array([prompt.encode()], dtype=np.object_), "BYTES")
    served = client.infer("chat", [given], parameters={"max_tokens": 6}).as_numpy("tokens")
    tokenizer = AutoTokenizer.from_pretrained(models / "tiny-llama")
    model = LlamaForCausalLM.from_pretrained(models / "tiny-llama").eval()
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    with torch.inference_mode():
        direct = model.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :].numpy()
    np.testing.assert_array_equal(served, direct)


def test_tokens_stream(client):
    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    given = tensor("text", np.array([b"once"], dtype=np.object_), "BYTES")
    client.async_stream_infer("chat", [given], request_id="s", parameters={"stream": True, "max_tokens": 4})
    seen = []
    while not seen or not seen[-1].parameters["triton_final_response"].bool_param:
        result, error = answers.get(timeout=60)
        assert error is None
        seen.append(result.get_response())
    client.stop_stream()
    assert {r.id for r in seen} == {"s"}
    assert 1 <= len(seen) <= 5


def test_an_unknown_model_is_not_found(client, image_shape):
    with pytest.raises(InferenceServerException) as caught:
        client.infer("nope", [tensor("pixel_values", pixels(image_shape), "FP32")])
    assert "NOT_FOUND" in str(caught.value.status())


def test_a_wrong_shape_is_an_invalid_argument(client):
    with pytest.raises(InferenceServerException) as caught:
        client.infer("vit", [tensor("pixel_values", np.zeros((1, 2, 3, 4), np.float32), "FP32")])
    assert "INVALID_ARGUMENT" in str(caught.value.status())
    assert "expected shape" in caught.value.message()


def test_our_stubs_and_the_clients_live_in_one_process():
    from epara_executors.rpc import open_inference_pb2
    from tritonclient.grpc import service_pb2

    ours = open_inference_pb2.ModelInferRequest(model_name="m", id="7")
    ours.parameters["timeout"].int64_param = 5
    theirs = service_pb2.ModelInferRequest.FromString(ours.SerializeToString())
    assert (theirs.model_name, theirs.id, theirs.parameters["timeout"].int64_param) == ("m", "7", 5)
    assert theirs.SerializeToString() == ours.SerializeToString()


OLDER = "2.41.1"  # with protobuf < 5, which cannot stand beside ours: hence an environment and a process of its own
OLDER_CLIENT = """
import sys
import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

client = triton.InferenceServerClient(sys.argv[1])
assert {m.name for m in client.get_model_repository_index().models} == {"chat", "vit"}
image = client.get_model_metadata("vit").inputs[0]
pixels = np.zeros([1 if n < 0 else n for n in image.shape], np.float32)
tensor = triton.InferInput(image.name, pixels.shape, image.datatype)
tensor.set_data_from_numpy(pixels)
assert client.infer("vit", [tensor]).as_numpy("logits").shape[0] == 1


def status(model, given):
    try:
        client.infer(model, [given])
    except InferenceServerException as e:
        return e.status()


assert status("nobody", tensor) == "StatusCode.NOT_FOUND"
flat = triton.InferInput(image.name, [1, 3], image.datatype)
flat.set_data_from_numpy(np.zeros((1, 3), np.float32))
assert status("vit", flat) == "StatusCode.INVALID_ARGUMENT"
"""


@pytest.fixture(scope="module")
def older_python(tmp_path_factory):
    """An interpreter with an older tritonclient; needs a package index."""
    folder = tmp_path_factory.mktemp("older")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    wanted = [f"tritonclient[grpc]=={OLDER}", "setuptools<81"]
    done = subprocess.run([python, "-m", "pip", "install", "-q", *wanted], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"tritonclient {OLDER} cannot be installed here: {done.stderr.strip()[-200:]}")
    return python


def test_an_older_client_lists_infers_and_gets_the_same_refusals(address, older_python):
    done = subprocess.run(
        [older_python, "-c", OLDER_CLIENT, address], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
