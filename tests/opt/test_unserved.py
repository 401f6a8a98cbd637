"""What is not served says why, with the numbers compared."""

from __future__ import annotations

from dataclasses import replace

import pytest

from epara_opt.placement import Flow, PlacedGroup, Placement
from epara_opt.problem import PlacementProblem
from epara_opt.units import GIB
from epara_opt.unserved import explain_unserved

NOTHING = Placement(groups=(), flows=())


def why(problem: PlacementProblem, placement: Placement = NOTHING, prices=None) -> tuple[str, str]:
    (only,) = explain_unserved(problem, placement, prices)
    return only.code, only.reason


def full(problem: PlacementProblem) -> Placement:
    """Every l4 busy with classify from a."""
    content = problem.contents["l4"][0]
    edges = {e.server: e for e in problem.edges if e.origin == "a"}
    servers = [s.name for s in problem.topology.servers.values() for p in s.devices for _ in range(p.count)]
    return Placement(
        groups=tuple(PlacedGroup(server=s, content=content) for s in servers),
        flows=tuple(Flow(edge=edges[s], group=i, rate=100.0) for i, s in enumerate(servers)),
    )


def test_everything_served_needs_no_reason(make) -> None:
    assert explain_unserved(make.edge(demand=[make.offer("classify", "a", 300.0)]).problem(), NOTHING)[0].rate == 300.0
    problem = make.edge(demand=[make.offer("classify", "a", 300.0)]).problem()
    assert explain_unserved(problem, full(problem)) == ()


def test_a_model_never_measured(make) -> None:
    assert why(make.edge(rows=[]).problem()) == ("no_profile", "classify was never measured on l4")


def test_a_model_too_large(make) -> None:
    problem = make.edge(rows=[make.row("classify", latency_ms=10.0, memory_bytes=30 * GIB)]).problem()
    assert why(problem) == ("no_memory", "needs 30.00 GiB per l4, which has 22.00")


def test_a_device_too_slow(make) -> None:
    problem = make.edge(rows=[make.row("classify", latency_ms=80.0)]).problem()
    assert why(problem) == ("no_route_in_time", "l4 answers in 160 ms at best, deadline 100 ms")


def test_a_network_too_far(make) -> None:
    problem = make.edge(l4_at_a=0, rtt_ms=110.0).problem()
    assert why(problem) == (
        "no_route_in_time",
        "every route breaks the SLO: nearest b 110 ms network > 100 ms",
    )


def test_network_and_service_together_too_long(make) -> None:
    problem = make.edge(l4_at_a=0, rtt_ms=61.0, rows=[make.row("classify", latency_ms=24.0)]).problem()
    assert why(problem) == (
        "no_route_in_time",
        "every route breaks the SLO: nearest b 61 ms network + 48 ms service > 100 ms",
    )


def test_a_group_larger_than_any_server(make) -> None:
    problem = make.edge(l4_at_a=1, rows=[make.row("classify", tp=2, latency_ms=10.0)]).problem()
    code, reason = why(problem)
    assert code == "no_devices"
    assert "one group needs 2 l4 at one server" in reason


def test_no_server_left_to_reach(make) -> None:
    problem = make.edge(l4_at_a=0).problem(down=frozenset({"b"}))
    assert why(problem) == ("no_devices", "the servers with devices near a, b first, do not answer")


@pytest.mark.parametrize(
    ("prices", "reason"),
    [
        (None, "outbid: all l4 in reach (a, b) are in use"),
        (
            {"devices[a,l4]": 0.0, "devices[b,l4]": 35.0},
            "outbid: all l4 in reach (a, b) are in use for what is worth more; "
            "one more l4 at b would raise the plan's weighted goodput by about 35 per second",
        ),
    ],
)
def test_devices_used_up(make, prices, reason: str) -> None:
    problem = make.edge(demand=[make.offer("classify", "a", 400.0)]).problem()
    assert why(problem, full(problem), prices) == ("outbid", reason)


def test_too_few_devices_left_for_a_group(make) -> None:
    services = [make.latency("classify"), make.latency("large")]
    rows = [make.row("classify", latency_ms=10.0), make.row("large", tp=2, latency_ms=10.0)]
    demand = [make.offer("classify", "a", 100.0), make.offer("large", "a", 50.0)]
    problem = make.edge(services=services, rows=rows, demand=demand).problem()
    content = next(c for c in problem.contents["l4"] if c.services == {"classify"})
    edge = next(e for e in problem.edges if (e.service, e.server) == ("classify", "a"))
    placement = Placement(
        groups=(PlacedGroup(server="a", content=content),), flows=(Flow(edge=edge, group=0, rate=100.0),)
    )
    assert why(problem, placement) == ("outbid", "outbid: too few l4 in reach (a) are left")


def test_a_price_is_weighted_and_never_above_all_that_is_left_over(make) -> None:
    edge = make.edge(services=[make.latency("classify", weight=2.0)], demand=[make.offer("classify", "a", 400.0)])
    problem = edge.problem()  # 300 of 400 are served
    for price, told in ((100.0, "100"), (1e6, "200")):
        reason = why(problem, full(problem), {"devices[a,l4]": price})[1]
        assert reason.endswith(f"one more l4 at a would raise the plan's weighted goodput by about {told} per second")


def test_streams_too_few_for_the_smallest_batch(make) -> None:
    edge = make.edge(
        services=[make.stream("watch")],
        rows=[make.row("watch", batch=4, latency_ms=10.0)],
        demand=[make.offer("watch", "a", 2.0, streams=True)],
    )
    problem = edge.problem()
    assert why(problem) == (
        "no_batch",
        "the smallest batch that is in time takes 4 streams; a has 2 in reach",
    )
    enough = edge.but(demand=[make.offer("watch", "a", 4.0, streams=True)]).problem()
    assert why(enough)[0] == "outbid"


def test_a_full_link(make) -> None:
    shape = replace(make.latency("x").request, input_bytes=1000.0)
    edge = make.edge(
        l4_at_a=0,
        bandwidth_bytes_per_s=5e4,
        services=[make.latency("classify", request=shape)],
    )
    problem = edge.problem()
    to_b = next(e for e in problem.edges if e.server == "b")
    content = problem.contents["l4"][0]
    placement = Placement(
        groups=(PlacedGroup(server="b", content=content),), flows=(Flow(edge=to_b, group=0, rate=50.0),)
    )
    assert why(problem, placement, {"link[a->b]": 50.0}) == (
        "outbid",
        "outbid: every route crosses a full link (a -> b); 10 % more bandwidth a -> b "
        "would raise the plan's weighted goodput by about 5 per second",
    )


def test_free_devices_are_admitted(make) -> None:
    assert why(make.edge().problem()) == ("outbid", "outbid: this plan leaves it out, though l4 are free at a")


def test_a_reason_is_given_for_the_rate_left_over(make) -> None:
    problem = make.edge(demand=[make.offer("classify", "a", 400.0)]).problem()
    (only,) = explain_unserved(problem, full(problem))
    assert (only.service, only.origin, only.rate) == ("classify", "a", 100.0)
