import random
from collections import Counter

import pytest

from epara_opt.policy.offload import (
    FAN_OUT,
    MAX_HOPS,
    STALE_AFTER_S,
    SYNC_EVERY_S,
    PeerView,
    alive_for_s,
    choose_peer,
    eligible,
    next_to_ask,
    turns_around,
)


def peer(server, *, idle=1.0, response_ms=10.0, network_ms=5.0, age_s=0.1):
    return PeerView(server=server, idle_per_s=idle, response_ms=response_ms, network_ms=network_ms, age_s=age_s)


def test_peers_are_drawn_in_proportion_to_their_idle_goodput():
    peers = [peer("a", idle=1.0), peer("b", idle=3.0)]
    rng = random.Random(5)
    drawn = Counter(
        choose_peer(peers, remaining_ms=100, visited=(), hops=0, draw=rng.random()).server for _ in range(4000)
    )
    assert drawn["b"] / 4000 == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize(
    "unfit",
    [
        peer("x", age_s=STALE_AFTER_S + 0.01),
        peer("x", idle=0.0),
        peer("x", response_ms=96.0),
        peer("x", network_ms=91.0),
        peer("visited"),
    ],
)
def test_stale_full_late_or_visited_peers_are_not_eligible(unfit):
    assert eligible([unfit], remaining_ms=100, visited={"visited"}, hops=0) == ()


def test_a_request_that_has_hopped_enough_goes_nowhere():
    assert choose_peer([peer("a")], remaining_ms=100, visited=(), hops=MAX_HOPS, draw=0.5) is None


def test_any_draw_below_one_names_somebody():
    peers = [peer("a", idle=0.1), peer("b", idle=0.2)]
    assert choose_peer(peers, remaining_ms=100, visited=(), hops=0, draw=1 - 1e-16).server == "b"


def exchanges(num_others, num_turns, heard):
    """Greatest number of turns in which some other server was neither asked nor heard of. heard(turn): who spoke."""
    last = dict.fromkeys(map(str, range(num_others)), -1.0)
    worst = 0.0
    for turn in range(num_turns):
        asked = next_to_ask(last)
        assert len(asked) == min(FAN_OUT, num_others)
        last |= dict.fromkeys(asked, float(turn))
        last |= dict.fromkeys(heard(turn), turn + 0.5)
        worst = max(worst, turn - min(last.values()))
    return worst


@pytest.mark.parametrize("num_others", [1, 8, 9, 30, 100])
def test_every_other_server_is_heard_of_within_the_turns_that_a_bounded_fan_out_needs(num_others):
    quiet = exchanges(num_others, 200, heard=lambda turn: ())
    rng = random.Random(5)
    talkative = exchanges(num_others, 200, heard=lambda turn: [str(rng.randrange(num_others)) for _ in range(FAN_OUT)])
    assert quiet == turns_around(num_others) - 1
    assert talkative <= quiet


def test_thirty_neighbours_are_fresh_enough_to_offload_to_at_any_time():
    assert turns_around(30) * SYNC_EVERY_S <= STALE_AFTER_S


def test_silence_is_forgiven_for_two_rounds_of_turns():
    assert alive_for_s(30) == pytest.approx(2 * 4 * SYNC_EVERY_S)
    assert alive_for_s(3) == STALE_AFTER_S
    assert alive_for_s(100) == pytest.approx(2 * 13 * SYNC_EVERY_S)
