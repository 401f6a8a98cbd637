"""A device group in this process, with a real echo worker beside it."""

import asyncio

import numpy as np
import pytest
from epara_executors.agent.dispatch import WorkerLost
from epara_executors.agent.echo_launcher import EchoLauncher
from epara_executors.agent.group import DeviceGroup, GroupFailed
from epara_executors.agent.requests import Job, TooLate
from epara_executors.tensors import from_array


def job(value, *, rows=1, due_in_s=5.0, hard_in_s=6.0):
    now = asyncio.get_running_loop().time()
    x = from_array("x", np.full((rows, 4), value, np.float32))
    return Job(
        service="echo",
        rows=rows,
        tensors=[x],
        params={},
        queued_at=now,
        due_at=now + due_in_s,
        hard_at=now + hard_in_s,
    )


async def open_group(spec, folder, **over):
    group = DeviceGroup(spec, launcher=EchoLauncher(), socket_path=folder / "s", **{"persistent": True, **over})
    group.start()
    await group.wait_ready()
    return group


def test_a_hung_worker_is_replaced_once_nobody_waits_for_it_any_more(echo_edge, tmp_path):
    async def scenario():
        spec = echo_edge.group("a", echo_edge.tenant(source="echo?hang_above=10"))
        group = await open_group(spec, tmp_path, hung_after_s=0.2)
        (replica,) = group.replicas.values()
        (before,) = group.worker_pids
        stuck = job(11, due_in_s=0.05, hard_in_s=0.1)
        group.submit(replica, stuck)
        with pytest.raises(WorkerLost):
            await asyncio.wait_for(stuck.answer, 20)
        async with asyncio.timeout(20):
            while not group.worker_pids or group.worker_pids == (before,):
                await asyncio.sleep(0.01)
        fine = job(1)
        group.submit(replica, fine)
        await asyncio.wait_for(fine.answer, 10)
        await group.stop()

    asyncio.run(scenario())


class EndsLate(EchoLauncher):
    """As a chain does where another executor does not answer: rank 0 has gone, and not all is known to have ended."""

    async def launch(self, group, socket_path, listener=None):
        handle = await super().launch(group, socket_path, listener)
        ended = handle.wait

        async def wait():
            status = await ended()
            await asyncio.sleep(4.0)
            return status

        handle.wait = wait
        return handle


def test_what_a_lost_worker_had_need_not_wait_for_the_last_of_its_processes(echo_edge, tmp_path):
    async def scenario():
        spec = echo_edge.group("a", echo_edge.tenant(source="echo?crash_above=10"))
        group = DeviceGroup(spec, launcher=EndsLate(), socket_path=tmp_path / "s", persistent=True)
        group.start()
        await group.wait_ready()
        (replica,) = group.replicas.values()
        lost = job(11)
        group.submit(replica, lost)
        with pytest.raises(WorkerLost):
            await asyncio.wait_for(lost.answer, 2.0)
        await group.stop()

    asyncio.run(scenario())


def test_requests_that_wait_for_a_busy_group_leave_together(echo_edge, tmp_path):
    async def scenario():
        spec = echo_edge.group("a", echo_edge.tenant(source="echo?latency_ms=100", batch=4))
        group = await open_group(spec, tmp_path)
        (replica,) = group.replicas.values()
        jobs = [job(i) for i in range(5)]
        for j in jobs:
            group.submit(replica, j)
        await asyncio.gather(*(j.answer for j in jobs))
        await group.stop()
        return replica.batches_done, replica.rows_done

    assert asyncio.run(scenario()) == (2, 5)


@pytest.mark.parametrize(
    ("together", "order"),
    [
        (False, ["calm", "calm", "urgent", "calm"]),  # two batches of the calm one were at the worker when it came
        (True, ["urgent", "calm", "calm", "calm"]),  # in one turn of the loop
    ],
)
def test_the_most_urgent_tenant_of_a_shared_group_goes_first(echo_edge, tmp_path, together, order):
    async def scenario():
        tenants = [echo_edge.tenant(service=s, source="echo?latency_ms=30", batch=1) for s in ("calm", "urgent")]
        group = await open_group(echo_edge.group("a", *tenants), tmp_path)
        calm, urgent = group.replicas["calm@g0"], group.replicas["urgent@g0"]
        ended = []
        jobs = [(calm, job(0)), (calm, job(1)), (calm, job(2)), (urgent, job(3, due_in_s=1.0))]
        for replica, j in jobs:
            j.answer.add_done_callback(lambda _, name=replica.spec.service: ended.append(name))
            if replica is urgent and not together:
                await asyncio.sleep(0)
            group.submit(replica, j)
        await asyncio.gather(*(j.answer for _, j in jobs))
        await group.stop()
        return ended

    assert asyncio.run(scenario()) == order


def test_nothing_long_goes_ahead_of_a_tenant_in_a_hurry(echo_edge, tmp_path):
    async def scenario():
        slow = {"source": "echo?latency_ms=60", "batch": 1, "response_ms": 120.0}
        tenants = [
            echo_edge.tenant(service="calm", **slow),
            echo_edge.tenant(service="hurried", **{**slow, "deadline_ms": 500.0}),
        ]
        group = await open_group(echo_edge.group("a", *tenants), tmp_path)
        calm, hurried = group.replicas["calm@g0"], group.replicas["hurried@g0"]
        ended = []
        jobs = [(calm, job(0)), (calm, job(1)), (calm, job(2)), (hurried, job(3, due_in_s=2.0))]
        for replica, j in jobs:
            j.answer.add_done_callback(lambda _, name=replica.spec.service: ended.append(name))
            if replica is hurried:
                await asyncio.sleep(0)  # the first of the calm one's is at the worker
            group.submit(replica, j)
        await asyncio.gather(*(j.answer for _, j in jobs))
        await group.stop()
        return ended

    assert asyncio.run(scenario()) == ["calm", "hurried", "calm", "calm"]


def test_what_could_not_be_on_time_any_more_is_not_started(echo_edge, tmp_path):
    async def scenario():
        group = await open_group(echo_edge.group("a", echo_edge.tenant(source="echo?latency_ms=300")), tmp_path)
        (replica,) = group.replicas.values()
        seen, runs, late = job(1), job(2), job(3, due_in_s=0.45)
        group.submit(replica, seen)
        await seen.answer
        group.submit(replica, runs)
        await asyncio.sleep(0)
        group.submit(replica, late)
        with pytest.raises(TooLate, match="could not be on time"):
            await late.answer
        assert not runs.answer.done()
        await runs.answer
        await group.stop()
        return late.started, replica.rows_done

    assert asyncio.run(scenario()) == (False, 2)


def test_a_group_that_cannot_load_says_why_and_stops_trying(echo_edge, tmp_path):
    async def scenario():
        spec = echo_edge.group("a", echo_edge.tenant(source="echo?fail_load=no+weights"))
        group = DeviceGroup(spec, launcher=EchoLauncher(), socket_path=tmp_path / "s", persistent=False)
        group.start()
        with pytest.raises(GroupFailed, match="no weights"):
            await group.wait_ready()
        assert (group.state, group.worker_pids) == ("failed", ())
        await group.stop()

    asyncio.run(scenario())
