"""A program of torch.export behind a real executor: what clients are told, what they get, what a bad folder says."""

import numpy as np
import pytest
import tritonclient.grpc as triton
from epara_executors.client import GrpcFleet
from epara_executors.infer_client import InferClient
from epara_executors.local import LocalExecutor

from epara_opt.control.ports import CommitSpec, Fence, GroupSpec, RouteSpec, TenantSpec
from epara_opt.errors import FleetError

pytestmark = pytest.mark.system


def group_of(name, source, *, group="", batch=4, frames=1, fps=0.0):
    group = group or name
    tenant = TenantSpec(
        service=name,
        source=source,
        replica=f"{name}@{group}",
        task="tensor",
        batch=batch,
        frames=frames,
        sensitivity="frequency" if fps else "latency",
        deadline_ms=30_000.0,
        fps=fps,
        response_ms=10.0,
        work_per_s=100.0,
        prompt_tokens=0,
        output_tokens=0,
    )
    return GroupSpec(
        group=group, server="edge", device_type="cpu", device_kind="cpu", devices=(0,), tp=1, pp=1, tenants=(tenant,)
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


def test_frames_over_two_replicas_come_back_in_order_and_equal_to_one_by_one(executor, models):
    import torch

    replicas = [group_of("frames", "tiny-mlp", group=f"frames-{i}", frames=3, batch=1, fps=60.0) for i in range(2)]
    routes = tuple(
        RouteSpec(
            service="frames",
            replica=g.tenants[0].replica,
            server="edge",
            address=executor.address,
            rate_per_s=30.0,
            network_ms=0.0,
            frames=3,
        )
        for g in replicas
    )
    with GrpcFleet() as fleet:
        fence = Fence(epoch=1, generation=2)
        fleet.prepare(executor.address, replicas, fence, deadline_s=150)
        fleet.commit(
            executor.address,
            CommitSpec(server="edge", groups=tuple(replicas), routes=routes, peers=()),
            fence,
            deadline_s=10,
        )
        rng = np.random.default_rng(2)
        x = [rng.standard_normal((1, 256), dtype=np.float32) for _ in range(24)]
        with InferClient(executor.address) as client:
            made = [a.outputs["y"] for a in client.frames("frames", ({"x": each} for each in x), timeout_s=60)]
        state = fleet.observe({"edge": executor.address}).executors["edge"]
    with torch.inference_mode():
        model = torch.export.load(models / "tiny-mlp" / "model.pt2").module()
        one_by_one = [model(torch.from_numpy(each)).numpy() for each in x]
    np.testing.assert_allclose(np.stack(made), np.stack(one_by_one), atol=1e-5)
    served = [(r.served, r.mean_batch > 1) for r in state.replicas if r.service == "frames"]
    assert served == [(12, True), (12, True)]


def test_a_bad_folder_is_refused_with_the_runners_words(executor):
    bad, fence = group_of("bad", "empty"), Fence(epoch=2, generation=1)
    with GrpcFleet() as fleet, pytest.raises(FleetError, match=r"tensors\.json: expected the names, datatypes"):
        fleet.prepare(executor.address, (bad,), fence, deadline_s=60)
