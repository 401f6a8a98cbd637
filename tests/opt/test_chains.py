"""Which chains a planner may choose from, and for which services."""

from __future__ import annotations

from dataclasses import replace

import pytest

from epara_opt.contents import Content
from epara_opt.units import GIB


def cuts(content: Content) -> list[tuple[str, int, int]]:
    return [(s.server, s.first_layer, s.end_layer) for s in content.stages]


def test_without_the_rule_there_are_none(make) -> None:
    edge = make.row_edge()
    problem = edge.but(rules=replace(edge.rules, across_servers=False)).problem()
    assert problem.chains.contents == ()
    assert problem.misfits["big"]


def test_a_service_that_fits_nowhere_is_cut_over_neighbours(make) -> None:
    problem = make.row_edge().problem()
    assert problem.chains.services == {"big"}
    assert all(not c.services & {"big"} for cs in problem.contents.values() for c in cs)
    best = next(c for c in problem.chains.contents if cuts(c) == [("a", 0, 3), ("b", 3, 6)])
    (tenant,) = best.tenants
    assert tenant.response_ms == pytest.approx(2 * (30 + 30 + 2 + 1))
    assert tenant.work_per_s == pytest.approx(1000 / 30)
    assert best.pools_at("a") == {("a", "l4"): 1, ("b", "l4"): 1}
    assert best.reserved == ((("a", "b"), pytest.approx(1000 / 30 * 1000)),)


def test_every_chain_is_whole_in_time_and_over_two_servers(make) -> None:
    problem = make.row_edge(pools=(2, 2, 2), services=[make.big(slo_ms=300.0)]).problem()
    assert len(problem.chains.contents) > 10
    for c in problem.chains.contents:
        bounds = [(s.first_layer, s.end_layer) for s in c.stages]
        assert [b for _, b in bounds[:-1]] == [a for a, _ in bounds[1:]]
        assert (bounds[0][0], bounds[-1][1]) == (0, 6)
        assert len({s.server for s in c.stages}) > 1
        assert max(s.memory_bytes for s in c.stages) <= problem.topology.device_types["l4"].memory_bytes
        assert all(k <= 2 for k in c.pools_at(c.stages[0].server).values())
        (tenant,) = c.tenants
        assert tenant.response_ms <= problem.edges_by_service_server["big", c.stages[0].server][-1].slack_ms


def test_a_service_that_some_server_hosts_gets_none(make) -> None:
    edge = make.row_edge()
    roomy = edge.but(rows=[*edge.rows, make.row("big", pp=2, latency_ms=60.0)], pools=(1, 1, 2))
    assert roomy.problem().chains.services == frozenset()
    scattered = roomy.but(pools=(1, 1, 1))  # two devices, but at no one server
    assert scattered.problem().chains.services == {"big"}


def test_one_device_that_is_merely_far_makes_no_chain(make) -> None:
    """A single-device service is never cut: the category forbids it."""
    edge = make.row_edge()
    rows = [*edge.rows, make.row("big", latency_ms=99.0, memory_bytes=1)]
    assert edge.but(rows=rows).problem().chains.services == frozenset()


def test_servers_that_do_not_answer_hold_no_stage(make) -> None:
    problem = make.row_edge().problem(down=frozenset({"b"}))
    assert problem.chains.contents == ()
    problem = make.row_edge().problem(down=frozenset({"c"}))
    assert {s.server for c in problem.chains.contents for s in c.stages} == {"a", "b"}


def test_more_stages_need_more_servers_than_the_rule_allows(make) -> None:
    edge = make.row_edge(memory_gib=2.0, services=[make.big(slo_ms=300.0)])
    assert {len(c.stages) for c in edge.problem().chains.contents} == {3}
    assert edge.but(rules=replace(edge.rules, max_stages=2)).problem().chains.contents == ()


def test_of_too_many_the_best_stay_and_a_note_tells(make) -> None:
    edge = make.row_edge(pools=(2, 2, 2), services=[make.big(slo_ms=300.0)])
    limited = edge.but(rules=replace(edge.rules, max_chains=3)).problem()
    assert len(limited.chains.contents) == 3
    assert any("max_chains = 3; the bound holds under that rule" in n for n in limited.notes)
    assert not any("max_chains" in n for n in edge.problem().notes)


def test_origins_that_are_farther_get_chains_that_answer_sooner(make) -> None:
    """With an even split the rate is highest, with more layers on the fast stage the answer comes sooner."""
    fast = [make.row("big", tp=2, layers=k, latency_ms=5.0 * k, memory_bytes=k * GIB // 2) for k in (1, 6)]
    problem = make.row_edge(
        pools=(2, 1, 0, 0),
        rows=[*make.big_rows(), *fast],
        services=[make.big(slo_ms=90.0)],
        demand=[make.offer("big", "a", 60.0), make.offer("big", "d", 60.0)],
    ).problem()
    mine = {tuple(cuts(c)): c.tenants[0] for c in problem.chains.contents if [s.tp for s in c.stages] == [2, 1]}
    even, uneven = mine[("a", 0, 4), ("b", 4, 6)], mine[("a", 0, 5), ("b", 5, 6)]
    assert (even.work_per_s, even.response_ms) == (pytest.approx(50.0), pytest.approx(86.0))
    assert (uneven.work_per_s, uneven.response_ms) == (pytest.approx(40.0), pytest.approx(76.0))
    slack_ms = {e.origin: e.slack_ms for e in problem.edges if e.server == "a"}
    assert slack_ms == {"a": 90.0, "d": 84.0}


def test_streams_must_fill_the_batch_of_a_chain(make) -> None:
    service = replace(make.stream("big", fps=50.0, frame_deadline_ms=900.0), model=make.big().model)
    rows = [r for b in (1, 2) for r in make.big_rows(batch=b)]
    offers = [make.offer("big", "a", 1.0, streams=True)]
    problem = make.row_edge(services=[service], rows=rows, demand=offers).problem()
    batches = {c.tenants[0].config.batch for c in problem.chains.contents}
    frames = {c.tenants[0].config.frames for c in problem.chains.contents}
    assert batches == {1}
    assert max(frames) == 2  # one stream fills a batch with its own frames
