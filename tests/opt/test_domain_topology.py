"""What no single object can see: names, duplicates, islands, paths."""

from __future__ import annotations

from dataclasses import replace

import pytest

from epara_opt.domain.service import RequestShape
from epara_opt.domain.topology import DeviceKind, DevicePool, DeviceType, Link
from epara_opt.errors import InputError


def test_the_path_is_the_one_of_least_rtt(make) -> None:
    topology = make.edge().topology
    servers = {**topology.servers, "c": replace(topology.servers["b"], name="c", address=None)}
    links = (
        Link(between=("a", "b"), rtt_ms=10.0, bandwidth_bytes_per_s=1e9),
        Link(between=("a", "c"), rtt_ms=2.0, bandwidth_bytes_per_s=5e6),
        Link(between=("c", "b"), rtt_ms=3.0, bandwidth_bytes_per_s=1e6),
    )
    path = replace(topology, servers=servers, links=links).path("a", "b")
    assert path is not None
    assert (path.hops, path.rtt_ms) == ((("a", "c"), ("c", "b")), 5.0)
    assert path.transfer_ms(2000.0) == 2.0  # at the narrowest link


def test_a_server_reaches_itself_at_no_cost(make) -> None:
    path = make.edge().topology.path("a", "a")
    assert path is not None
    assert (path.hops, path.rtt_ms, path.transfer_ms(1e9)) == ((), 0.0, 0.0)


def test_there_is_no_path_over_no_link(make) -> None:
    assert replace(make.edge().topology, links=()).path("a", "b") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"servers": {}}, "servers: expected at least one server"),
        ({"links": (Link(between=("a", "z"), rtt_ms=1, bandwidth_bytes_per_s=1),)}, r"links\[0\].between: .*got z"),
        ({"links": (Link(between=("a", "a"), rtt_ms=1, bandwidth_bytes_per_s=1),)}, "two different servers, got a"),
        ({"links": (Link(between=("a", "b"), rtt_ms=1, bandwidth_bytes_per_s=1),) * 2}, "one link per pair"),
        ({"services": {}}, r"demand\[0\].service: expected a name from services, got classify"),
        ({"device_types": {}}, r"servers.a.devices\[0\].type: expected a name from device_types, got l4"),
    ],
)
def test_a_topology_that_breaks_a_law_is_not_born(make, change, message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(make.edge().topology, **change)


def test_all_violations_are_listed_at_once(make) -> None:
    with pytest.raises(InputError) as caught:
        replace(make.edge().topology, services={}, device_types={})
    assert len(caught.value.violations) == 3


def test_an_edge_without_devices_is_an_error(make) -> None:
    with pytest.raises(InputError, match="expected at least one device in the whole edge"):
        _ = make.edge(l4_at_a=0, l4_at_b=0).topology


@pytest.mark.parametrize("count", [0, -1])
def test_a_pool_has_at_least_one_device(make, count: int) -> None:
    topology = make.edge().topology
    broken = replace(topology.servers["a"], devices=(DevicePool(type="l4", count=count),))
    with pytest.raises(InputError, match=rf"servers.a.devices\[0\].count: expected >= 1, got {count}"):
        replace(topology, servers={**topology.servers, "a": broken})


def test_demand_on_an_island_is_an_error(make) -> None:
    demand = [make.offer("classify", "b", 1.0)]
    topology = make.edge(l4_at_b=0, demand=demand).topology
    with pytest.raises(InputError, match=r"demand\[0\].origin: expected a path to some server with devices, got b"):
        replace(topology, links=())


def test_streams_and_rates_are_not_confused(make) -> None:
    with pytest.raises(InputError, match=r"demand\[0\]: expected rate_per_s for the latency-sensitive classify"):
        _ = make.edge(demand=[make.offer("classify", "a", 2.0, streams=True)]).topology


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_links_and_requests_are_measured_in_finite_numbers(value: float) -> None:
    with pytest.raises(InputError, match=r"links.a - b.rtt_ms: expected a finite number >= 0"):
        Link(between=("a", "b"), rtt_ms=value, bandwidth_bytes_per_s=1e9)
    with pytest.raises(InputError, match=r"links.a - b.bandwidth_bytes_per_s: expected a finite number > 0"):
        Link(between=("a", "b"), rtt_ms=1.0, bandwidth_bytes_per_s=value)
    with pytest.raises(InputError, match=r"request.input_bytes: expected a finite number >= 0"):
        RequestShape(input_bytes=value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_demand_and_weights_are_finite(make, value: float) -> None:
    with pytest.raises(InputError, match=r"demand.classify@a: expected a finite number >= 0"):
        make.offer("classify", "a", value)
    with pytest.raises(InputError, match=r"services.classify.weight: expected a finite number > 0"):
        make.latency("classify", weight=value)


@pytest.mark.parametrize(
    ("kind", "parts", "words"),
    [
        ("gpu", 0, r"device_types.x.parts: expected 1 .. 100, got 0"),
        ("gpu", 101, r"device_types.x.parts: expected 1 .. 100, got 101"),
        ("cpu", 2, r"device_types.x.parts: expected kind gpu: only its parts can be assigned, got 2 of kind cpu"),
    ],
)
def test_parts_of_a_device_are_of_a_gpu_and_not_too_many(kind: str, parts: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        DeviceType(name="x", memory_bytes=1, kind=DeviceKind(kind), parts=parts)
