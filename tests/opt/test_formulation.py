"""The compact program on edges small enough to read: its rows, its columns, and both ways between point and placement.

Against brute force it is tested beside the solvers, in tests/solvers/test_formulation_exact.py.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from epara_opt.formulation.compact import Encoded, encode
from epara_opt.formulation.decode import decode, encode_placement, whole
from epara_opt.formulation.rows import RowBuilder
from epara_opt.placement import Flow, PlacedGroup, Placement, served, value
from epara_opt.problem import PlanningRules, Resident


def row_of(encoded: Encoded, name: str) -> tuple[dict[str, float], float]:
    """Coefficients by variable name, and the upper bound."""
    program = encoded.program
    i = program.row_names.index(name)
    span = slice(program.row_start[i], program.row_start[i + 1])
    names = [program.col_names[c] for c in program.col_index[span]]
    return dict(zip(names, program.coefficient[span].tolist(), strict=True)), float(program.row_upper[i])


def families(encoded: Encoded) -> set[str]:
    return {name.split("[")[0] for name in encoded.program.row_names}


Z_A = "z[a,l4,tp1pp1,classify:b1f1,new]"


def test_one_service_needs_devices_capacity_and_demand_only(make) -> None:
    encoded = encode(make.edge().problem())
    assert families(encoded) == {"devices", "capacity", "demand"}
    assert row_of(encoded, "devices[a,l4]") == ({Z_A: 1.0}, 2.0)
    capacity, limit = row_of(encoded, "capacity[classify,a,1,100]")
    assert limit == 0.0
    assert capacity["y[classify,a,a,1]"] / -capacity[Z_A] == 150.0 / 100.0
    demand, limit = row_of(encoded, "demand[classify,a]")
    assert limit == 1.0
    assert demand == {"y[classify,a,a,1]": 1.0, "y[classify,a,b,1]": pytest.approx(100.0 / 150.0)}  # what b could do


def test_a_group_counts_no_more_than_the_demand_in_its_reach(make) -> None:
    problem = make.edge(demand=[make.offer("classify", "a", 30.0)]).problem()
    capacity, _ = row_of(encode(problem), "capacity[classify,a,1,100]")
    assert capacity["y[classify,a,a,1]"] == -capacity[Z_A]
    capacity, _ = row_of(encode(problem, tighten=False), "capacity[classify,a,1,100]")
    assert capacity["y[classify,a,a,1]"] / -capacity[Z_A] == pytest.approx(0.3)


@pytest.mark.parametrize(("offered", "groups"), [(30.0, 1), (100.0, 1), (101.0, 2), (500.0, 2)])
def test_no_more_groups_are_counted_than_demand_can_fill(make, offered: float, groups: int) -> None:
    encoded = encode(make.edge(demand=[make.offer("classify", "a", offered)]).problem())
    assert encoded.columns[0].max_groups == groups


def test_edges_of_two_slacks_that_the_same_tenants_reach_share_a_row(make) -> None:
    demand = [make.offer("classify", "a", 30.0), make.offer("classify", "b", 30.0)]
    names = encode(make.edge(demand=demand).problem()).program.row_names
    assert [n for n in names if n.startswith("capacity[classify,a")] == ["capacity[classify,a,1,100]"]


def test_a_slower_tenant_serves_only_edges_with_slack_for_it(make) -> None:
    rows = [make.row("classify", batch=1, latency_ms=10.0), make.row("classify", batch=2, latency_ms=15.0)]
    demand = [make.offer("classify", "a", 150.0), make.offer("classify", "b", 150.0)]
    encoded = encode(make.edge(rows=rows, demand=demand, rtt_ms=75.0).problem())
    tight, _ = row_of(encoded, "capacity[classify,a,1,25]")
    loose, _ = row_of(encoded, "capacity[classify,a,1,100]")
    slow = "z[a,l4,tp1pp1,classify:b2f1,new]"
    assert set(tight) == {"y[classify,b,a,1]", Z_A}
    assert set(loose) == {"y[classify,b,a,1]", "y[classify,a,a,1]", Z_A, slow}


def test_only_links_that_could_bind_have_rows(make) -> None:
    service = make.latency("classify", request=replace(make.latency("x").request, input_bytes=1000.0))
    for bandwidth, bound in ((151e3, False), (149e3, True)):
        problem = make.edge(l4_at_b=2, services=[service], bandwidth_bytes_per_s=bandwidth).problem()
        assert ("link[a->b]" in encode(problem).program.row_names) is bound


def resident(group: str, device: int, *services: str) -> Resident:
    return Resident(
        group=group, server="a", device_type="l4", devices=(device,), tp=1, pp=1, services=frozenset(services)
    )


def test_residents_alike_are_counted_together(make) -> None:
    problem = replace(
        make.edge().problem(), residents=(resident("a/l4/0/1", 0, "classify"), resident("a/l4/1/1", 1, "classify"))
    )
    encoded = encode(problem)
    kept = [c for c in encoded.columns if c.residents]
    assert [(c.max_groups, len(c.residents), c.earning) for c in kept] == [(2, 2, (1.0,))]
    assert row_of(encoded, "resident[a,a/l4/0/1]")[1] == 2.0


def test_a_resident_with_nothing_in_common_is_nothing_to_keep(make) -> None:
    problem = replace(make.edge().problem(), residents=(resident("a/l4/0/1", 0, "other"),))
    assert all(not c.residents for c in encode(problem).columns)


def test_flows_of_loaded_and_loading_tenants_are_told_apart(make) -> None:
    problem = replace(make.edge().problem(), residents=(resident("a/l4/0/1", 0, "classify"),))
    earning = {u.earning for u in encode(problem).uses if u.edge.server == "a"}
    assert sorted(earning) == pytest.approx([0.98, 1.0])


def test_tenants_share_the_time_of_their_groups(make) -> None:
    services = [make.latency("classify"), make.latency("detect")]
    rows = [make.row("classify", latency_ms=10.0), make.row("detect", latency_ms=15.0)]
    demand = [make.offer("classify", "a", 30.0), make.offer("detect", "a", 500.0)]
    encoded = encode(make.edge(services=services, rows=rows, demand=demand).problem())
    content = "a,l4,tp1pp1,classify:b1f1+detect:b1f1,new"
    time, _ = row_of(encoded, f"time[{content}]")
    assert time == {f"share[{content},classify]": 1.0, f"share[{content},detect]": 1.0, f"z[{content}]": -1.0}
    reach, _ = row_of(encoded, f"reach[{content},classify]")
    assert reach == {f"share[{content},classify]": 1.0, f"z[{content}]": pytest.approx(-0.3)}
    assert f"reach[{content},detect]" not in encoded.program.row_names


def test_empty_demand_is_an_empty_program(make) -> None:
    encoded = encode(make.edge(demand=[]).problem())
    assert (encoded.program.num_vars, encoded.program.num_rows) == (0, 0)
    assert decode(encoded, np.zeros(0)) == Placement(groups=(), flows=())


def test_a_point_means_its_groups_and_flows(make) -> None:
    problem = make.edge().problem()
    encoded = encode(problem)
    x = np.zeros(encoded.program.num_vars)
    at = encoded.program.col_names.index
    x[at(Z_A)] = 2.0 - 1e-7  # a solver's two
    x[at("y[classify,a,a,1]")] = 1.0
    placement = decode(encoded, x)
    assert [g.server for g in placement.groups] == ["a", "a"]
    assert [f.rate for f in placement.flows] == [100.0, 50.0]  # groups are filled in turn
    assert value(problem, placement) == 150.0
    assert encode_placement(encoded, placement) == pytest.approx(np.round(x))


@pytest.mark.parametrize(("count", "groups"), [(0.0, 0), (0.99, 0), (0.99995, 1), (1.00005, 1), (1.7, 1)])
def test_counts_are_rounded_only_within_tolerance(count: float, groups: int) -> None:
    assert whole(count) == groups


def test_a_point_beyond_capacity_is_scaled_down(make) -> None:
    problem = make.edge().problem()
    encoded = encode(problem)
    x = np.ones(encoded.program.num_vars)  # one group at each server, and the whole demand twice
    assert served(decode(encoded, x)) == {("classify", "a"): pytest.approx(150.0)}


def test_idle_groups_are_left_out(make) -> None:
    encoded = encode(make.edge().problem())
    x = np.where(encoded.program.is_integer, 1.0, 0.0)
    assert decode(encoded, x).groups == ()


def test_a_dominated_content_starts_warm_as_the_one_that_replaces_it(make) -> None:
    rows = [make.row("classify", batch=1, latency_ms=10.0), make.row("classify", batch=2, latency_ms=15.0)]
    problem = make.edge(
        rows=rows, demand=[make.offer("classify", "a", 20.0), make.offer("classify", "b", 1.0)], rtt_ms=75.0
    ).problem()
    encoded = encode(problem)
    assert {c.content.tenants[0].config.batch for c in encoded.columns if c.server == "a"} == {1}  # as fast as needed
    slow = next(c for c in problem.contents["l4"] if c.tenants[0].config.batch == 2)
    edge = next(e for e in problem.edges if (e.origin, e.server) == ("a", "a"))
    placement = Placement(groups=(PlacedGroup(server="a", content=slow),), flows=(Flow(edge=edge, group=0, rate=20.0),))
    x = encode_placement(encoded, placement)
    assert float(encoded.program.objective @ x) == value(problem, placement) == 20.0


def test_the_largest_share_of_time_is_in_the_program(make) -> None:
    problem = make.edge(rules=PlanningRules(max_utilization=0.5), demand=[make.offer("classify", "a", 80.0)]).problem()
    capacity, _ = row_of(encode(problem), "capacity[classify,a,1,100]")
    assert -capacity[Z_A] / capacity["y[classify,a,a,1]"] == pytest.approx(50.0 / 80.0)


def test_rows_pack_in_order_and_drop_zeros() -> None:
    rows = RowBuilder()
    rows.add("first", [(3, 2.0), (1, 0.0)], upper=4.0)
    rows.add_scaled("second", [(0, 5.0), (2, -10.0)])
    assert rows.row_start.tolist() == [0, 1, 3]
    assert rows.col_index.tolist() == [3, 0, 2]
    assert rows.coefficient.tolist() == [2.0, 0.5, -1.0]
    assert rows.upper.tolist() == [4.0, 0.0]
    assert np.isneginf(rows.lower).all()


def test_residents_alike_are_kept_once_each_by_groups_of_different_contents(make) -> None:
    """Two columns on one class of residents: each group that keeps one keeps another."""
    services = [make.latency("classify"), make.latency("detect")]
    rows = [make.row("classify", latency_ms=10.0), make.row("detect", latency_ms=15.0)]
    demand = [make.offer("classify", "a", 10.0), make.offer("detect", "a", 10.0)]
    alike = tuple(resident(f"a/l4/{d}/1", d, "classify", "detect") for d in (0, 1))
    problem = replace(make.edge(services=services, rows=rows, demand=demand).problem(), residents=alike)
    encoded = encode(problem)
    kept = [c for c in encoded.columns if c.residents and len(c.earning) == 1]
    assert len(kept) == 2
    x = np.zeros(encoded.program.num_vars)
    for column in kept:
        x[column.index] = 1.0
    for use in encoded.uses:
        if use.earning == 1.0 and use.edge.server == "a":
            x[use.index] = 0.5
    groups = [g.resident.group for g in decode(encoded, x).groups if g.resident is not None]
    assert sorted(groups) == ["a/l4/0/1", "a/l4/1/1"]


def test_use_is_measured_in_what_a_server_could_serve_of_a_demand(make) -> None:
    """Of ten thousand times more it would be a part that solvers take for nothing."""
    encoded = encode(make.edge(demand=[make.offer("classify", "a", 2e6)]).problem())
    assert [(u.offered, u.unit) for u in encoded.uses] == [(2e6, 200.0), (2e6, 100.0)]
    demand, limit = row_of(encoded, "demand[classify,a]")
    assert (max(demand.values()), limit) == (1.0, 1e4)
