"""What reaches a worker's main thread, and when."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from epara_executors.worker.frames import Frame, Tensor, encode
from epara_executors.worker.inbox import Inbox
from epara_executors.worker.wire import Wire


@pytest.fixture
def agent_and_inbox() -> Iterator[tuple[socket.socket, Inbox]]:
    agent, worker = socket.socketpair()
    with agent, worker:
        yield agent, Inbox(Wire(worker))


def test_a_large_frame_does_not_cost_a_turn_for_each_part_that_a_socket_holds(agent_and_inbox) -> None:
    agent, inbox = agent_and_inbox
    data = encode(Frame("infer", {}, [Tensor("x", "UINT8", (2**23,), bytes(2**23))]))
    sending = threading.Thread(target=agent.sendall, args=(data,))
    sending.start()
    num_takes = 1
    while not (items := inbox.take(block=False)):
        num_takes += 1
        threading.Event().wait(0.01)  # somebody else's turn
    sending.join()
    assert [getattr(i, "type", "") for i in items] == ["infer"]
    assert num_takes <= 5


def test_a_frame_that_has_stopped_in_its_middle_holds_nobody_up(agent_and_inbox) -> None:
    agent, inbox = agent_and_inbox
    data = encode(Frame("cancel", {"id": "7"}))
    agent.sendall(data[:20])
    assert inbox.take(block=False) == []
    inbox.call(lambda: None)
    assert len(inbox.take(block=False)) == 1
    agent.sendall(data[20:])
    assert inbox.take(block=True) == [Frame("cancel", {"id": "7"}, [])]
