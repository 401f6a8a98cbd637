"""A replica is warm before the agent hears that it is loaded, wherever its model came from, and before any switch."""

import shutil

import numpy as np
import pytest
import torch
from epara_executors.runners.batches import OnePassRunner
from epara_executors.runners.contract import LoadError
from epara_executors.runners.generation import GenerationRunner
from epara_executors.weights.cache import ModelCache
from epara_executors.weights.files import FileEntry, Manifest, sha256_of, travelling
from epara_executors.worker.hosting import Host, Tenant
from epara_executors.worker.ranks import alone

from epara_opt.control.ports import CommitSpec, Fence
from epara_opt.errors import ExecutorRefused


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """The hub's own retries would take long where it is out of reach."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def host(tiny_root):
    return Host(tiny_root, torch.device("cpu"), alone())


def test_a_full_batch_has_run_before_a_model_counts_as_loaded(host, monkeypatch):
    rows = []
    run = OnePassRunner.run_joined

    def counted(self, joined):
        rows.append(len(next(iter(joined.values()))))
        return run(self, joined)

    monkeypatch.setattr(OnePassRunner, "run_joined", counted)
    hosted = host.host(Tenant(replica="r", source="tiny-vit", task="image-classification", batch=3, frames=2))
    assert 6 in rows
    assert hosted.loaded().fields["load_s"] > 0.0


def test_a_generation_has_read_a_prompt_and_stepped_with_every_slot(host, monkeypatch):
    steps = []
    launch = GenerationRunner.launch

    def counted(self, step):
        steps.append(np.asarray(step.tokens).shape)
        return launch(self, step)

    monkeypatch.setattr(GenerationRunner, "launch", counted)
    host.host(
        Tenant(replica="r", source="tiny-llama", task="text-generation", batch=4, prompt_tokens=8, output_tokens=4)
    )
    assert (1, 8) in steps
    assert (4, 1) in steps


def test_a_model_that_cannot_answer_its_first_batch_is_not_loaded(host, monkeypatch):
    def broken(self, joined):
        raise RuntimeError("no such kernel on this device")

    monkeypatch.setattr(OnePassRunner, "run_joined", broken)
    with pytest.raises(LoadError, match=r"warm-up failed: .*no such kernel"):
        host.host(Tenant(replica="r", source="tiny-vit", task="image-classification", batch=1))


@pytest.mark.parametrize(("source", "task"), [("tiny-mlp", "tensor"), ("tiny-llama", "text-generation")])
def test_fetched_models_are_found_where_no_local_folder_is(tiny_root, tmp_path, source, task):
    cache = ModelCache(tmp_path / "cache", max_bytes=2**30)
    files = travelling(tiny_root / source, [])
    listed = [FileEntry(name=n, size_bytes=f.stat().st_size, sha256=sha256_of(f)) for n, f in files]
    manifest = Manifest(files=tuple(listed))
    for name, file in files:
        shutil.copy(file, cache.partial(f"org/{source}", manifest.revision) / name)
    cache.adopt(f"org/{source}", manifest)
    tenant = Tenant(replica="r", source=f"org/{source}", task=task, batch=2, prompt_tokens=4, output_tokens=2)
    with pytest.raises(LoadError):
        Host(tmp_path, torch.device("cpu"), alone()).host(tenant)
    hosted = Host(tmp_path, torch.device("cpu"), alone(), cache.folder).host(tenant)
    assert hosted.memory_bytes > 0
    cache.close()


def test_a_replica_that_still_loads_is_not_switched_to(echo_edge):
    echo_edge.start("a")
    group = echo_edge.group("a", echo_edge.tenant(source="echo?load_ms=60000"))
    fence = Fence(epoch=1, generation=1)
    with pytest.raises(Exception, match="DEADLINE_EXCEEDED"):
        echo_edge.fleet.prepare(echo_edge.address("a"), (group,), fence, deadline_s=0.5)
    spec = CommitSpec(server="a", groups=(group,), routes=(), peers=(), plan_json="{}")
    with pytest.raises(ExecutorRefused, match="expected prepared and ready, got"):
        echo_edge.fleet.commit(echo_edge.address("a"), spec, fence, deadline_s=10)
