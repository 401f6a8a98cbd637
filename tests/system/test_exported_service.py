"""A program of torch.export behind a real executor: what clients are told, what they get, what a bad folder says."""

import numpy as np
import pytest
import tritonclient.grpc as triton
from epara_executors.client import GrpcFleet
from epara_executors.local import LocalExecutor

from epara_opt.control.ports import CommitSpec, Fence, GroupSpec, RouteSpec, TenantSpec
from epara_opt.errors import FleetError

pytestmark = pytest.mark.system


def group_of(name, source):
    tenant = TenantSpec(
        service=name,
        source=source,
        replica=f"{name}@{name}",
        task="tensor",
        batch=4,
        frames=1,
        sensitivity="latency",
        deadline_ms=30_000.0,
        fps=0.0,
        response_ms=10.0,
        work_per_s=100.0,
        prompt_tokens=0,
        output_tokens=0,
    )
    return GroupSpec(
        group=name, server="edge", device_type="cpu", device_kind="cpu", devices=(0,), tp=1, pp=1, tenants=(tenant,)
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    from epara_executors.tiny_models import make

    root = tmp_path_factory.mktemp("models")
    make("tiny-mlp", root / "tiny-mlp")
    (root / "empty").mkdir()
    return root


@pytest.fixture(scope="module")
def executor(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("executor")
    with LocalExecutor("edge", state_dir=folder / "state", model_root=models, log_file=folder / "log") as running:
        yield running


def test_it_is_described_and_answers_as_the_direct_call(executor, models):
    import torch

    group = group_of("mlp", "tiny-mlp")
    route = RouteSpec(
        service="mlp", replica="mlp@mlp", server="edge", address=executor.address, rate_per_s=1.0, network_ms=0.0
    )
    with GrpcFleet() as fleet:
        fence = Fence(epoch=1, generation=1)
        fleet.prepare(executor.address, (group,), fence, deadline_s=150)
        spec = CommitSpec(server="edge", groups=(group,), routes=(route,), peers=())
        fleet.commit(executor.address, spec, fence, deadline_s=10)
    x = np.random.default_rng(1).standard_normal((3, 256), dtype=np.float32)
    with triton.InferenceServerClient(executor.address) as client:
        described = client.get_model_metadata("mlp")
        given = triton.InferInput("x", list(x.shape), "FP32")
        given.set_data_from_numpy(x)
        served = client.infer("mlp", [given]).as_numpy("y")
    assert [(t.name, t.datatype, list(t.shape)) for t in described.inputs] == [("x", "FP32", [-1, 256])]
    assert [(t.name, t.datatype, list(t.shape)) for t in described.outputs] == [("y", "FP32", [-1, 256])]
    with torch.inference_mode():
        direct = torch.export.load(models / "tiny-mlp" / "model.pt2").module()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(served, direct, atol=1e-5)


def test_a_bad_folder_is_refused_with_the_runners_words(executor):
    bad, fence = group_of("bad", "empty"), Fence(epoch=2, generation=1)
    with GrpcFleet() as fleet, pytest.raises(FleetError, match=r"tensors\.json: expected the names, datatypes"):
        fleet.prepare(executor.address, (bad,), fence, deadline_s=60)
