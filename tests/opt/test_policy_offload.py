import random
from collections import Counter

import pytest

from epara_opt.policy.offload import MAX_HOPS, STALE_AFTER_S, PeerView, choose_peer, eligible


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
