"""The engine with a stage that needs no model, and text as it becomes certain."""

from __future__ import annotations

import itertools
from collections import deque

import pytest
from epara_executors.runners.contract import RequestError
from epara_executors.runners.transcript import IncrementalTranscript
from epara_executors.worker.blocks import BlockPool
from epara_executors.worker.engine import Engine
from epara_executors.worker.scheduler import Scheduler, Work
from epara_executors.worker.sequences import Sampling, Sequence


class CountingStage:
    """The next token of a sequence is its length; `depth` iterations may be under way."""

    def __init__(self, depth: int = 1) -> None:
        self.depth = depth
        self.most_in_flight = 0
        self._under_way: deque[Work] = deque()

    @property
    def num_in_flight(self) -> int:
        return len(self._under_way)

    def submit(self, work: Work) -> None:
        self._under_way.append(work)
        self.most_in_flight = max(self.most_in_flight, len(self._under_way))

    def collect(self) -> tuple[Work, list[int]]:
        work = self._under_way.popleft()
        return work, [s.length for s in work.sequences]


def decode(tokens: list[int]) -> str:
    return bytes(tokens).decode(errors="replace")


def sequence(key: str, max_tokens: int = 4, prompt_length: int = 65, **over: object) -> Sequence:
    values: dict[str, object] = {"transcript": IncrementalTranscript(decode), **over}
    return Sequence(key=key, request=key, prompt=(0,) * prompt_length, max_tokens=max_tokens, **values)  # type: ignore[arg-type]


def run(engine: Engine) -> list[tuple[str, int, bool]]:
    emitted: list[tuple[str, int, bool]] = []
    while not engine.idle:
        emitted += [(e.sequence.key, e.token, e.done) for e in engine.step()]
    return emitted


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_every_sequence_gets_its_own_tokens_whatever_the_company_and_depth(depth: int) -> None:
    stage = CountingStage(depth)
    engine = Engine(stage, Scheduler(2, BlockPool(99), depth), itertools.count().__next__)
    members = [sequence(str(i), max_tokens=1 + i % 4, prompt_length=60 + i) for i in range(9)]
    for member in members:
        engine.add(member)
    emitted = run(engine)
    for member in members:
        first = len(member.prompt)
        assert member.tokens == list(range(first, first + member.max_tokens))
        assert member.finish_reason == "length"
    assert sum(done for _, _, done in emitted) == len(members)
    assert stage.most_in_flight == depth


def test_an_end_token_ends_a_sequence_and_is_among_its_tokens() -> None:
    engine = Engine(CountingStage(), Scheduler(1, BlockPool(99)), itertools.count().__next__)
    member = sequence("a", max_tokens=50, end_tokens=frozenset([67]))
    engine.add(member)
    run(engine)
    assert member.tokens == [65, 66, 67]
    assert member.finish_reason == "stop"


def test_a_stop_string_ends_a_sequence_and_is_not_in_its_text() -> None:
    engine = Engine(CountingStage(), Scheduler(1, BlockPool(99)), itertools.count().__next__)
    member = sequence("a", max_tokens=50, transcript=IncrementalTranscript(decode, ["DE"]))
    engine.add(member)
    run(engine)
    assert member.transcript.text == "ABC"
    assert member.finish_reason == "stop"


def test_cancelled_sequences_emit_nothing_more() -> None:
    engine = Engine(CountingStage(2), Scheduler(1, BlockPool(99), 2), itertools.count().__next__)
    for key in "ab":
        engine.add(sequence(key, max_tokens=5))
    engine.step()
    engine.cancel("a")
    assert {key for key, _, _ in run(engine)} == {"b"}


def test_streamed_pieces_join_to_the_text_and_never_split_a_character() -> None:
    text = "naïve café ☕ 日本語 end"
    transcript = IncrementalTranscript(decode)
    pieces = [transcript.push(byte) for byte in text.encode()]
    pieces.append(transcript.close())
    assert "".join(pieces) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in p for p in pieces)


def test_what_may_become_a_stop_string_is_held_back_until_it_is_certain() -> None:
    transcript = IncrementalTranscript(decode, ["STOP"])
    assert [transcript.push(byte) for byte in b"aST"] == ["a", "", ""]
    assert transcript.push(ord("x")) == "STx"


def test_half_a_character_at_the_end_is_shown_as_what_it_is() -> None:
    transcript = IncrementalTranscript(decode)
    transcript.push("é".encode()[0])
    assert transcript.close() == "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("params", "law"),
    [
        ({"temperature": -1}, "params.temperature: expected >= 0, got -1"),
        ({"top_p": 0}, r"params.top_p: expected in \(0, 1\], got 0"),
        ({"top_k": "many"}, "params.top_k: expected a number, got 'many'"),
        ({"seed": 1.5}, "params.seed: expected a whole number, got 1.5"),
        ({"presence_penalty": 2.01}, r"params.presence_penalty: expected in \[-2, 2\], got 2.01"),
        ({"repetition_penalty": 1e-320}, r"params.repetition_penalty: expected in \[0.01, 100\], got 1e-320"),
        ({"temperature": True}, "params.temperature: expected a number, got True"),
    ],
)
def test_sampling_out_of_range_is_refused_with_the_law(params: dict[str, object], law: str) -> None:
    with pytest.raises(RequestError, match=law):
        Sampling.from_params(params)
