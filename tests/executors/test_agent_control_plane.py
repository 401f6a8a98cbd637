"""What a planner may and may not do to an executor."""

import threading

import grpc
import pytest

from epara_opt.control.ports import CommitSpec, Fence
from epara_opt.errors import ExecutorRefused, ExecutorUnreachable, StaleFence


@pytest.fixture(scope="module")
def executor(shared_edge):
    """Bare. Every test below uses epochs of its own, each higher than those before."""
    shared_edge.start("a", "127.0.0.1:0", "--devices", "cpu:2")
    return shared_edge


@pytest.fixture(scope="module")
def epochs():
    return iter(range(1, 1000))


@pytest.fixture
def fence(epochs):
    return Fence(epoch=next(epochs), generation=1)


def groups_of(edge):
    return {r.group: r.state for r in edge.state("a").replicas}


def commit(edge, fence, *groups):
    routes = tuple(edge.route(t, "a") for g in groups for t in g.tenants)
    spec = CommitSpec(server="a", groups=groups, routes=routes, peers=(), plan_json=f"plan {fence.epoch}")
    edge.fleet.commit(edge.address("a"), spec, fence, deadline_s=10)


def prepare(edge, fence, *groups):
    edge.fleet.prepare(edge.address("a"), groups, fence, deadline_s=20)


def retire(edge, fence, *names):
    edge.fleet.retire(edge.address("a"), names, fence, deadline_s=20)


def test_describe_names_server_and_devices(executor):
    said = executor.fleet.describe(executor.address("a"))
    assert said.server == "a"
    assert [(d.kind, d.index) for d in said.devices] == [("cpu", 0), ("cpu", 1)]


def test_prepare_loads_beside_commit_switches_retire_unloads(executor, fence, ones):
    old, new = (executor.group("a", executor.tenant(group=n), name=n) for n in ("old", "new"))
    prepare(executor, fence, old)
    assert groups_of(executor)["old"] == "ready"
    commit(executor, fence, old)
    assert groups_of(executor)["old"] == "live"
    later = Fence(epoch=fence.epoch, generation=2)
    prepare(executor, later, new)
    commit(executor, later, new)
    assert groups_of(executor) == {"new": "live", "old": "ready"}
    retire(executor, later, "old")
    assert groups_of(executor) == {"new": "live"}
    assert executor.state("a").generation == 2
    assert executor.state("a").plan_json == f"plan {fence.epoch}"
    executor.client("a").infer("echo", {"x": ones})
    commit(executor, later)
    retire(executor, later, "new", "never was")


def test_every_call_may_be_repeated_and_prepares_may_overlap(executor, fence):
    group = executor.group("a", executor.tenant(source="echo?load_ms=200"))
    errors = []

    def attempt():
        try:
            prepare(executor, fence, group)
        except Exception as e:
            errors.append(e)

    threads = [threading.Thread(target=attempt) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert errors == []
    assert groups_of(executor) == {"g0": "ready"}
    for _ in range(2):
        commit(executor, fence, group)
    for _ in range(2):
        commit(executor, Fence(epoch=fence.epoch, generation=2))
        retire(executor, Fence(epoch=fence.epoch, generation=2), "g0")
    assert groups_of(executor) == {}


def test_an_older_fence_is_refused_by_every_call_with_both_fences_named(executor, fence):
    prepare(executor, Fence(epoch=fence.epoch, generation=9))
    stale = Fence(epoch=fence.epoch, generation=8)
    for call in (lambda: prepare(executor, stale), lambda: commit(executor, stale), lambda: retire(executor, stale)):
        with pytest.raises(StaleFence) as caught:
            call()
        assert f"({fence.epoch}, 9), got ({fence.epoch}, 8)" in str(caught.value)


def test_a_new_epoch_outranks_any_generation_of_an_old_one(executor, fence, epochs):
    prepare(executor, Fence(epoch=fence.epoch, generation=1000))
    newer = Fence(epoch=next(epochs), generation=1)
    prepare(executor, newer)
    with pytest.raises(StaleFence):
        prepare(executor, Fence(epoch=fence.epoch, generation=1001))


def test_a_group_that_fails_to_load_takes_its_prepare_with_it_in_the_workers_words(executor, fence):
    good = executor.group("a", executor.tenant(group="good"), name="good")
    bad = executor.group("a", executor.tenant(group="bad", source="echo?fail_load=no+such+weights"), name="bad")
    with pytest.raises(ExecutorRefused, match="no such weights"):
        prepare(executor, fence, good, bad)
    assert groups_of(executor) == {}


def test_commit_needs_every_group_prepared_and_changes_nothing_otherwise(executor, fence):
    with pytest.raises(ExecutorRefused, match="expected prepared and ready, got not prepared"):
        commit(executor, fence, executor.group("a", executor.tenant(), name="absent"))


def test_retire_refuses_what_the_committed_plan_uses(executor, fence):
    group = executor.group("a", executor.tenant())
    prepare(executor, fence, group)
    commit(executor, fence, group)
    with pytest.raises(ExecutorRefused, match="g0: in use by generation 1"):
        retire(executor, fence, "g0")
    commit(executor, fence)
    retire(executor, fence, "g0")


def test_a_changed_batch_is_applied_to_the_running_worker(executor, fence):
    small = executor.group("a", executor.tenant(batch=1))
    prepare(executor, fence, small)
    commit(executor, fence, small)
    import numpy as np
    from epara_executors.infer_client import InferError

    with pytest.raises(InferError) as caught:
        executor.client("a").infer("echo", {"x": np.ones((3, 4), np.float32)})
    assert caught.value.status is grpc.StatusCode.INVALID_ARGUMENT
    large = executor.group("a", executor.tenant(batch=8))
    later = Fence(epoch=fence.epoch, generation=2)
    prepare(executor, later, large)
    commit(executor, later, large)
    executor.client("a").infer("echo", {"x": np.ones((3, 4), np.float32)})
    commit(executor, later)
    retire(executor, later, "g0")


@pytest.mark.parametrize(
    ("server", "device", "words"),
    [("b", 0, "server: expected a, got b"), ("a", 2, "expected cpu indexes < 2, got 2")],
)
def test_a_group_that_cannot_be_here_is_refused(executor, fence, server, device, words):
    with pytest.raises(ExecutorRefused, match=words):
        prepare(executor, fence, executor.group(server, executor.tenant(), device=device))


def test_an_executor_that_is_not_there_is_unreachable_within_the_deadline(executor, fence):
    gone = executor.start("gone")
    address = gone.address
    gone.kill()
    with pytest.raises(ExecutorUnreachable):
        executor.fleet.prepare(address, (), fence, deadline_s=2)
    found = executor.fleet.observe({"a": executor.address("a"), "gone": address})
    assert set(found.executors) == {"a"}
    assert "did not answer" in found.down["gone"]


def test_an_executor_under_another_name_counts_as_down(executor):
    found = executor.fleet.observe({"b": executor.address("a")})
    assert "expected the executor of b, got that of a" in found.down["b"]
