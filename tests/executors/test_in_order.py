"""The order of a stream's answers, without any executor."""

import asyncio
import gc
import weakref

import pytest
from epara_executors.agent.in_order import InOrder


class Stream:
    """An order whose answers and departures are written down."""

    def __init__(self):
        self.out = []
        self.num_left = 0
        self.order = InOrder(let_out=self.out.append, left=self._leave)

    def _leave(self):
        self.num_left += 1

    def enter(self, name, due_in_s=60.0):
        place = self.order.enter(lambda: f"{name} given up")
        place.due_at = asyncio.get_running_loop().time() + due_in_s
        return place


def run(story):
    async def main():
        await story(Stream())

    asyncio.run(main())


@pytest.mark.parametrize("ends", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (2, 0, 1)])
def test_answers_go_out_in_the_order_of_their_frames(ends):
    async def story(stream):
        places = [stream.enter(i) for i in range(3)]
        for i in ends:
            places[i].answer(i)
            places[i].end()
        assert stream.out == [0, 1, 2]
        assert stream.num_left == 3
        assert len(stream.order) == 0

    run(story)


def test_parts_of_the_first_go_out_as_they_come_and_those_of_others_wait():
    async def story(stream):
        first, second = stream.enter("a"), stream.enter("b")
        second.answer("b1")
        first.answer("a1")
        assert stream.out == ["a1"]
        first.end()
        assert stream.out == ["a1", "b1"]
        second.answer("b2")
        assert stream.out == ["a1", "b1", "b2"]
        assert stream.num_left == 1

    run(story)


def test_a_frame_past_its_deadline_holds_up_those_behind_it_no_longer():
    async def story(stream):
        lost, next_one = stream.enter("lost", due_in_s=0.0), stream.enter("next")
        next_one.answer("next")
        assert stream.out == []
        next_one.end()
        while stream.num_left < 2:
            await asyncio.sleep(0)
        assert stream.out == ["lost given up", "next"]
        lost.answer("too late")
        lost.end()
        assert stream.out == ["lost given up", "next"]
        assert stream.num_left == 2

    run(story)


def test_a_frame_past_its_deadline_with_nothing_behind_it_may_still_come():
    async def story(stream):
        only, unanswered = stream.enter("only", due_in_s=0.0), stream.enter("unanswered")
        for _ in range(5):
            await asyncio.sleep(0)
        only.answer("late")
        only.end()
        assert stream.out == ["late"]
        assert not unanswered.ended

    run(story)


def test_every_lost_frame_in_a_row_is_given_up_at_its_own_deadline():
    async def story(stream):
        for i in range(3):
            stream.enter(i, due_in_s=0.0)
        last = stream.enter("last")
        last.answer("last")
        last.end()
        while stream.num_left < 4:
            await asyncio.sleep(0)
        assert stream.out == ["0 given up", "1 given up", "2 given up", "last"]

    run(story)


def test_a_closed_order_lets_nothing_out():
    async def story(stream):
        lost, other = stream.enter("lost", due_in_s=0.0), stream.enter("other")
        other.end()
        stream.order.close()
        for _ in range(5):
            await asyncio.sleep(0)
        lost.answer("x")
        lost.end()
        assert stream.out == []
        assert stream.num_left == 0

    run(story)


class Owner:
    """What a frame is: it holds its place, and its place can reach it."""

    def __init__(self, order):
        self.place = order.enter(self.give_up)

    def give_up(self):
        return "given up"


@pytest.mark.parametrize("leaves", [True, False], ids=["ended", "closed"])
def test_a_frame_that_has_left_is_freed_without_the_collector(leaves):
    async def story(stream):
        frame = Owner(stream.order)
        freed = weakref.ref(frame)
        if leaves:
            frame.place.end()
        else:
            stream.order.close()
        del frame
        assert freed() is None

    gc.disable()
    try:
        run(story)
    finally:
        gc.enable()
