"""Tenants that come to and leave a group while it serves."""

import os
import signal
import threading
from dataclasses import replace

import numpy as np
import psutil
import pytest
from epara_executors.infer_client import InferError
from epara_executors.local import LocalExecutor

from epara_opt.control.ports import CommitSpec, Fence
from epara_opt.errors import ExecutorRefused, ExecutorUnreachable, StaleFence


class Load:
    """Somebody who asks for one service again and again, from when it is entered until it is left."""

    def __init__(self, client, service, inputs):
        self.client, self.service, self.inputs = client, service, inputs
        self.errors = []
        self.answers = 0
        self._leave = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def _ask(self):
        while not self._leave.is_set():
            try:
                self.client.infer(self.service, self.inputs)
                self.answers += 1
            except InferError as e:
                self.errors.append(e)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._leave.set()
        self._thread.join()


def tenant_states(edge):
    return {r.service: r.state for r in edge.state("a").replicas}


def worker_of(executor):
    (worker,) = psutil.Process(executor.pid).children(recursive=True)
    return worker.pid


def fence(generation):
    return Fence(epoch=1, generation=generation)


def prepare(edge, group, generation=2, deadline_s=20.0):
    edge.fleet.prepare(edge.address("a"), (group,), fence(generation), deadline_s=deadline_s)


def commit(edge, group, generation=2):
    routes = tuple(edge.route(t, "a") for t in group.tenants)
    spec = CommitSpec(server="a", groups=(group,), routes=routes, peers=(), plan_json="{}")
    edge.fleet.commit(edge.address("a"), spec, fence(generation), deadline_s=10)


@pytest.fixture
def executor(echo_edge):
    """Serves `one` in group g0."""
    executor = echo_edge.start("a")
    echo_edge.apply("a", alone(echo_edge))
    return executor


def alone(edge):
    return edge.group("a", edge.tenant("one"))


def both(edge, source="echo?load_ms=200"):
    return edge.group("a", edge.tenant("one"), edge.tenant("two", source=source))


def test_a_tenant_joins_under_load_and_no_request_is_lost(echo_edge, executor, ones):
    pid = worker_of(executor)
    with Load(echo_edge.client("a"), "one", {"x": ones}) as load:
        prepare(echo_edge, both(echo_edge))
        assert tenant_states(echo_edge) == {"one": "live", "two": "ready"}
        commit(echo_edge, both(echo_edge))
        echo_edge.client("a").infer("two", {"x": ones})
    assert load.answers > 10
    assert load.errors == []
    assert tenant_states(echo_edge) == {"one": "live", "two": "live"}
    assert worker_of(executor) == pid


def test_a_tenant_that_leaves_answers_what_it_has_first(echo_edge, executor, ones):
    pair = both(echo_edge, source="echo?latency_ms=500")
    prepare(echo_edge, pair)
    commit(echo_edge, pair)
    answers = []
    asking = threading.Thread(target=lambda: answers.append(echo_edge.client("a").infer("two", {"x": ones})))
    asking.start()
    echo_edge.until(lambda: any(r.queued for r in echo_edge.state("a").replicas if r.service == "two"))
    with Load(echo_edge.client("a"), "one", {"x": ones}) as load:
        commit(echo_edge, alone(echo_edge), generation=3)
        assert tenant_states(echo_edge)["two"] == "draining"
        asking.join()
        echo_edge.until(lambda: tenant_states(echo_edge) == {"one": "live"})
    assert load.errors == []
    np.testing.assert_array_equal(answers[0].outputs["y"], ones)


def test_who_leaves_and_who_comes_may_change_places_in_one_step(echo_edge, executor, ones):
    pid = worker_of(executor)
    other = echo_edge.group("a", echo_edge.tenant("two"))
    prepare(echo_edge, other)
    assert tenant_states(echo_edge) == {"one": "live", "two": "ready"}
    commit(echo_edge, other)
    echo_edge.until(lambda: tenant_states(echo_edge) == {"two": "live"})
    echo_edge.client("a").infer("two", {"x": ones})
    assert worker_of(executor) == pid


def test_an_addition_that_fails_says_why_and_costs_the_others_nothing(echo_edge, executor, ones):
    pid = worker_of(executor)
    with Load(echo_edge.client("a"), "one", {"x": ones}) as load:
        with pytest.raises(ExecutorRefused, match="two@g0: no room left"):
            prepare(echo_edge, both(echo_edge, source="echo?load_ms=100&fail_load=no+room+left"))
        assert tenant_states(echo_edge) == {"one": "live"}
        with pytest.raises(ExecutorRefused, match="two@g0: expected prepared and ready, got not prepared"):
            commit(echo_edge, both(echo_edge))
        prepare(echo_edge, both(echo_edge))
        commit(echo_edge, both(echo_edge))
    assert load.errors == []
    assert worker_of(executor) == pid


def test_a_prepare_that_fails_elsewhere_takes_its_additions_back(echo_edge, executor):
    bad = echo_edge.group("a", echo_edge.tenant(group="bad", source="echo?load_ms=300&fail_load=no"), name="bad")
    with pytest.raises(ExecutorRefused):
        echo_edge.fleet.prepare(
            echo_edge.address("a"), (both(echo_edge, source="echo"), bad), fence(2), deadline_s=20.0
        )
    echo_edge.until(lambda: tenant_states(echo_edge) == {"one": "live"})


def test_a_commit_of_the_old_plan_takes_an_addition_back(echo_edge, executor, ones):
    with Load(echo_edge.client("a"), "one", {"x": ones}) as load:
        prepare(echo_edge, both(echo_edge))
        commit(echo_edge, alone(echo_edge))
        echo_edge.until(lambda: tenant_states(echo_edge) == {"one": "live"})
    assert load.errors == []


def test_a_later_prepare_replaces_what_an_earlier_one_had_added(echo_edge, executor):
    prepare(echo_edge, both(echo_edge))
    prepare(echo_edge, echo_edge.group("a", echo_edge.tenant("one"), echo_edge.tenant("three")))
    assert tenant_states(echo_edge) == {"one": "live", "three": "ready"}


def test_prepares_of_the_same_tenants_may_overlap_and_be_repeated(echo_edge, executor):
    errors = []

    def attempt():
        try:
            prepare(echo_edge, both(echo_edge))
        except Exception as e:
            errors.append(e)

    threads = [threading.Thread(target=attempt) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    prepare(echo_edge, both(echo_edge))
    for _ in range(2):
        commit(echo_edge, both(echo_edge))
    assert errors == []
    assert tenant_states(echo_edge) == {"one": "live", "two": "live"}
    with pytest.raises(StaleFence):
        prepare(echo_edge, alone(echo_edge), generation=1)


def test_a_prepare_out_of_time_takes_its_addition_back(echo_edge, executor, ones):
    with pytest.raises(ExecutorUnreachable):
        prepare(echo_edge, both(echo_edge, source="echo?load_ms=1000"), deadline_s=0.3)
    echo_edge.client("a").infer("one", {"x": ones})
    prepare(echo_edge, both(echo_edge, source="echo?load_ms=1000"))  # waits until the first is out of the way
    assert tenant_states(echo_edge) == {"one": "live", "two": "ready"}


@pytest.mark.parametrize("committed", [False, True], ids=["prepared", "committed"])
@pytest.mark.parametrize("victim", ["worker", "agent"])
def test_after_a_crash_exactly_the_committed_tenants_are_loaded(echo_edge, executor, ones, victim, committed):
    prepare(echo_edge, both(echo_edge))
    if committed:
        commit(echo_edge, both(echo_edge))
    if victim == "worker":
        pid = worker_of(executor)
        os.kill(pid, signal.SIGKILL)
        echo_edge.until(lambda: set(tenant_states(echo_edge).values()) != {"live"} or not committed)
    else:
        executor.kill()
        echo_edge.start("a", executor.address)
    expected = {"one": "live", "two": "live"} if committed else {"one": "live"}
    echo_edge.until(lambda: tenant_states(echo_edge) == expected)
    echo_edge.client("a").infer("one", {"x": ones})
    if not committed:
        with pytest.raises(ExecutorRefused, match="two@g0: expected prepared and ready, got not prepared"):
            commit(echo_edge, both(echo_edge))


def test_an_addition_that_kills_the_worker_fails_its_prepare_and_the_live_come_back_alone(echo_edge, executor, ones):
    with pytest.raises(ExecutorRefused, match=r"two@g0: worker \d+ ended with 70"):
        prepare(echo_edge, both(echo_edge, source="echo?crash_load=1"))
    echo_edge.until(lambda: tenant_states(echo_edge) == {"one": "live"})
    echo_edge.client("a").infer("one", {"x": ones})


def test_an_addition_waits_for_a_worker_that_is_being_restarted(echo_edge, executor, ones):
    os.kill(worker_of(executor), signal.SIGKILL)
    echo_edge.until(lambda: tenant_states(echo_edge) != {"one": "live"})
    prepare(echo_edge, both(echo_edge))
    assert tenant_states(echo_edge) == {"one": "live", "two": "ready"}


@pytest.mark.parametrize("change", [{"tp": 2, "devices": (0, 1)}, {"devices": (1,)}], ids=["shape", "place"])
def test_place_and_shape_of_a_running_group_stay(echo_edge, executor, change):
    from dataclasses import replace

    with pytest.raises(ExecutorRefused, match="g0: expected the devices, shape and models it was prepared with"):
        prepare(echo_edge, replace(alone(echo_edge), **change))


# The same with real models.

BERT = {"source": "tiny-bert", "task": "feature-extraction"}
VIT = {"source": "tiny-vit", "task": "image-classification"}


@pytest.fixture
def torch_edge(echo_edge, tiny_root):
    """An executor of torch workers that serves `bert` in group g0."""
    echo_edge.executors["a"] = LocalExecutor(
        "a",
        state_dir=echo_edge.folder / "a",
        model_root=tiny_root,
        log_file=echo_edge.folder / "a.log",
    )
    echo_edge.apply("a", echo_edge.group("a", bert(echo_edge)))
    return echo_edge


def bert(edge):
    return edge.tenant("bert", **BERT, prompt_tokens=16, response_ms=200.0)


def vit(edge, source="tiny-vit"):
    return edge.tenant("vit", **{**VIT, "source": source}, response_ms=200.0)


def test_a_real_model_joins_and_leaves_under_load_and_one_that_is_not_there_is_refused(torch_edge):
    edge = torch_edge
    pair = edge.group("a", bert(edge), vit(edge))
    text = {"text": np.array([b"to be or not to be"], dtype=np.object_)}
    client = edge.client("a")
    with Load(client, "bert", text) as load:
        with pytest.raises(ExecutorRefused, match="vit@g0: model nowhere: no folder"):
            prepare(edge, edge.group("a", bert(edge), vit(edge, "nowhere")))
        prepare(edge, pair)
        commit(edge, pair)
        pixels = np.zeros([1 if n < 0 else n for n in client.metadata("vit").inputs[0].shape], np.float32)
        client.infer("vit", {"pixel_values": pixels})
        commit(edge, edge.group("a", bert(edge)), generation=3)
        edge.until(lambda: tenant_states(edge) == {"bert": "live"})
    assert load.errors == []
    assert load.answers > 3


def test_a_larger_batch_is_prepared_once_who_left_is_unloaded(echo_edge, ones):
    echo_edge.start("a")
    stays = echo_edge.tenant("stays", batch=1)
    leaves = echo_edge.tenant("leaves", source="echo?latency_ms=800")
    echo_edge.apply("a", echo_edge.group("a", stays, leaves))
    answers = []
    asking = threading.Thread(target=lambda: answers.append(echo_edge.client("a").infer("leaves", {"x": ones})))
    asking.start()
    echo_edge.until(lambda: any(r.queued for r in echo_edge.state("a").replicas))
    echo_edge.apply("a", echo_edge.group("a", stays), generation=2)
    prepare(echo_edge, echo_edge.group("a", replace(stays, batch=8)), generation=3)
    assert tenant_states(echo_edge) == {"stays": "live"}
    asking.join()
    assert len(answers) == 1
