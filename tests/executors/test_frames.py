"""Frames on a stream that arrives in pieces of any size."""

from __future__ import annotations

import math
import random
import struct

import pytest
from epara_executors.worker.frames import Frame, Splitter, Tensor, encode

KINDS = ("FP32", "BYTES")


def frames_of(rng: random.Random, num: int) -> list[Frame]:
    return [
        Frame(
            f"kind{i}",
            {"id": str(i), "none": None, "nested": [{"a": -1}, [1.5, math.inf]], "seed": 2**63 - 1},
            [
                Tensor(f"t{k}", rng.choice(KINDS), (rng.randrange(3), 2), rng.randbytes(rng.choice([0, 1, 90, 5000])))
                for k in range(rng.randrange(4))
            ],
        )
        for i in range(num)
    ]


@pytest.mark.parametrize("piece", [1, 2, 11, 12, 13, 100, 4096, 10**9])
def test_whatever_the_pieces_the_frames_are_the_same(piece: int) -> None:
    rng = random.Random(piece)
    sent = frames_of(rng, 40)
    stream = b"".join(encode(f) for f in sent)
    splitter, got = Splitter(), list[Frame]()
    for at in range(0, len(stream), piece):
        assert splitter.missing > 0
        got += splitter.feed(stream[at : at + piece])
    assert got == sent
    assert splitter.is_between


def test_what_is_missing_of_a_large_frame_is_known_from_its_lengths() -> None:
    data = encode(Frame("infer", {}, [Tensor("x", "UINT8", (10**6,), bytes(10**6))]))
    splitter = Splitter()
    assert splitter.feed(data[:5000]) == []
    assert splitter.missing == len(data) - 5000


@pytest.mark.parametrize(
    ("data", "law"),
    [
        (struct.pack("<IQ", 2**30, 0), "frame header: expected <= "),
        (struct.pack("<IQ", 1, 0) + b"\xc1", "MessagePack"),
        (struct.pack("<IQ", 1, 0) + b"\x01", "Expected `array`"),
        (encode(Frame("infer", {}, [Tensor("x", "UINT8", (4,), b"abcd")]))[:4] + struct.pack("<Q", 5), "frame"),
    ],
)
def test_what_cannot_be_a_frame_is_refused(data: bytes, law: str) -> None:
    if law == "frame":  # lengths that do not add up: the tensors claim more than the header tells of
        whole = encode(Frame("infer", {}, [Tensor("x", "UINT8", (4,), b"abcd")]))
        data += whole[12:] + b"e"
    with pytest.raises(ValueError, match=law):
        Splitter().feed(data)
