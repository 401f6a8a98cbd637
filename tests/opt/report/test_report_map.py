"""Layout and charts: inside their box, deterministic, apart."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from epara_opt.report.charts import Event, Series, line_chart, nice_ceiling
from epara_opt.report.edge_map import arrows, draw, heat
from epara_opt.report.figures import number
from epara_opt.report.layout import place


@pytest.mark.parametrize("located", [True, False])
@pytest.mark.parametrize("num_servers", [1, 2, 3, 40, 120])
def test_servers_stand_inside_the_map_and_apart(make_edge: Callable[..., Any], num_servers: int, located: bool) -> None:
    topology = make_edge(num_servers, located=located).topology
    spots = place(topology)
    assert set(spots.points) == set(topology.servers)
    assert all(0 < x < spots.width and 0 < y < spots.height for x, y in spots.points.values())
    assert all(math.dist(a, b) > 15 for a, b in itertools.combinations(spots.points.values(), 2))
    assert spots == place(topology)


def test_coordinates_are_used_when_all_servers_have_them(make_edge: Callable[..., Any]) -> None:
    topology = make_edge(3).topology
    spots = place(topology)
    assert spots.is_geographic
    by_lon = sorted(topology.servers.values(), key=lambda s: s.location.lon)
    assert [s.name for s in by_lon] == sorted(spots.points, key=lambda n: spots.points[n][0])
    north = max(topology.servers.values(), key=lambda s: s.location.lat)
    assert min(spots.points, key=lambda n: spots.points[n][1]) == north.name


def test_one_server_without_coordinates_makes_springs_of_all(make_edge: Callable[..., Any]) -> None:
    topology = make_edge(5).topology
    servers = dict(topology.servers)
    servers["kew"] = replace(servers["kew"], location=None)
    assert not place(replace(topology, servers=servers)).is_geographic


def test_servers_at_one_place_are_drawn_apart(make_edge: Callable[..., Any]) -> None:
    topology = make_edge(6).topology
    there = next(iter(topology.servers.values())).location
    far = {n: replace(s, location=s.location if n == "kew" else there) for n, s in topology.servers.items()}
    spots = place(replace(topology, servers=far))
    assert all(math.dist(a, b) > 15 for a, b in itertools.combinations(spots.points.values(), 2))


def test_six_hundred_servers_need_no_scipy(make_edge: Callable[..., Any]) -> None:
    few = make_edge(3, located=False).topology
    box = next(iter(few.servers.values()))
    many = {f"box-{i}": replace(box, name=f"box-{i}", address=None) for i in range(600)}
    assert len(set(place(replace(few, servers=many, links=(), demand=())).points.values())) == 600


def test_arrows_carry_all_offloaded_work_and_only_that(make_edge: Callable[..., Any]) -> None:
    e = make_edge(40)
    at = {r.id: r.server for r in e.plan.replicas}
    moved = sum(e.topology.services[r.service].weight * r.rate for r in e.plan.routes if at[r.replica] != r.origin)
    made = arrows(e.plan, e.topology)
    assert sum(a.value for a in made) == pytest.approx(moved)
    assert all(a.origin != a.host for a in made)


def test_the_widest_arrow_carries_most(make_edge: Callable[..., Any]) -> None:
    e = make_edge(3, names=(("store-chat", "latency"), ("lane-segmentation", "frequency")), seed=9)
    made = arrows(e.plan, e.topology)
    paths = [p for p in draw(e.plan, e.topology, anchors={}).iter("path") if p.get("marker-end")]
    assert len(paths) == len(made)
    widths = [float(p.get("stroke-width", "0")) for p in paths]
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize(("used", "css"), [(0.0, "u0"), (0.1, "u1"), (0.2, "u2"), (0.79, "u4"), (1.0, "u5")])
def test_heat_grows_with_utilization(used: float, css: str) -> None:
    assert heat(used) == css


@pytest.mark.parametrize(
    ("value", "top"), [(0.0, 1.0), (0.9, 1.0), (1.0, 1.0), (1.1, 2.0), (130.0, 200.0), (990.0, 1000.0)]
)
def test_scales_end_at_round_numbers(value: float, top: float) -> None:
    assert nice_ceiling(value) == pytest.approx(top)


def test_a_gap_in_a_series_breaks_its_line() -> None:
    chart = line_chart("t", [0.0, 1.0, 2.0], [Series(name="a", css="s2", y=(1.0, None, 2.0))], show=number)
    line = next(g for g in chart.iter("g") if g.get("class") == "line s2")
    assert line[0].get("d", "").count("M") == 2
    assert len(list(line.iter("circle"))) == 2


def test_a_chart_of_one_instant_or_of_events_alone_is_drawn() -> None:
    one = line_chart("t", [5.0], [Series(name="a", css="s2", y=(1.0,))], show=number)
    assert "nan" not in "".join(v for e in one.iter() for v in e.attrib.values())
    events = line_chart("t", [], [Series(name="a", css="s2", y=())], [Event(at=3.0, text="killed")], show=number)
    assert any("killed" in (e.text or "") for e in events.iter("li"))
