"""Tables on a narrow terminal: every figure is there, whole, and nothing is markup."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from rich.console import Console, RenderableType

from epara_opt.control.diff import compare
from epara_opt.control.ports import (
    DeviceObservation,
    ExecutorState,
    FetchObservation,
    FleetState,
    Histogram,
    ReplicaHistograms,
    ReplicaObservation,
    ServiceObservation,
)
from epara_opt.plan import Plan, Predicted, Stop
from epara_opt.report.figures import millis, number, percent, verdict
from epara_opt.report.html import render
from epara_opt.report.terminal import (
    diff_table,
    history_table,
    load_table,
    plan_table,
    plan_view,
    solvers_table,
    status_table,
    summary,
    topology_table,
)


def shown(item: RenderableType, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    console.print(item)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(len(line) <= width for line in text.splitlines())
    return text


@pytest.mark.parametrize("width", [80, 120, 200])
def test_the_summary_carries_the_key_figures(three_shops: Any, width: int) -> None:
    plan = three_shops.plan
    text = shown(summary(plan), width)
    for figure in (
        verdict(plan),
        number(plan.predicted.goodput),
        number(plan.predicted.offered),
        number(plan.dual_bound),
        percent(plan.gap),
        "stopped at the time limit",
        f"{plan.wall_s}",
        plan.solver,
        plan.inputs_digest,
    ):
        assert figure in text


def test_at_80_columns_no_number_is_cut(make_edge: Callable[..., Any]) -> None:
    e = make_edge(40)
    text = shown(plan_table(e.plan, e.topology, max_rows=None))
    assert "…" not in text
    for f in e.plan.predicted.services:
        assert f" {number(f.goodput)} " in text
        assert f" {number(f.offered)} " in text
    for r in e.plan.replicas:
        assert f"{percent(r.share)} " in text


def test_plan_table_names_every_replicas_place_and_shape(three_shops: Any) -> None:
    text = shown(plan_table(three_shops.plan, three_shops.topology), 160)
    for r in three_shops.plan.replicas:
        assert f"{r.device_type} {'+'.join(map(str, r.devices))}" in text
        assert f"{r.tp}x{r.pp}" in text
        assert f"{r.response_ms:.0f}/{three_shops.topology.services[r.service].deadline_ms:.0f}" in text
    for u in three_shops.plan.unserved:
        assert u.reason in text
    for heading in ("Actions; stages run in order", "prepare", "commit", "retire", "devices in use"):
        assert heading in text


def test_long_tables_say_how_much_they_leave_out(make_edge: Callable[..., Any]) -> None:
    e = make_edge(40)
    text = shown(plan_view(e.plan, e.topology, max_rows=10), 120)
    assert f"... and {len(e.plan.replicas) - 10} more" in text
    assert f"... and {len(e.plan.routes) - 10} more" in text


def test_names_are_never_markup(make_edge: Callable[..., Any]) -> None:
    e = make_edge(2, names=(("[red]chat[/red]", "latency"), ("[/]\x1b[31m", "latency")))
    text = shown(plan_view(e.plan, e.topology), 200) + shown(topology_table(e.topology, e.categories), 200)
    assert "[red]chat[/red]" in text
    assert "\x1b" not in text


def test_an_empty_plan_has_a_summary_and_no_empty_tables(three_shops: Any) -> None:
    plan = Plan(
        generation=1,
        topology="t",
        inputs_digest="0",
        solver="greedy",
        stop=Stop.NO_DEMAND,
        objective=0.0,
        dual_bound=None,
        gap=None,
        wall_s=0.0,
        predicted=Predicted(goodput=0.0, offered=0.0, slo_attainment=1.0),
    )
    text = shown(plan_view(plan, three_shops.topology))
    assert "Nothing is offered" in text
    assert "Routes" not in text


def test_a_topology_shows_categories_operators_and_reasons(three_shops: Any) -> None:
    text = shown(topology_table(three_shops.topology, three_shops.categories), 120)
    for server in three_shops.topology.servers.values():
        assert server.name in text
        assert server.address in text
    for name, c in three_shops.categories.items():
        assert name in text
        assert " ".join(c.operators) in text
        assert c.reason in text
    for link in three_shops.topology.links:
        assert millis(link.rtt_ms) in text


def test_a_diff_shows_what_comes_goes_and_changes(three_shops: Any) -> None:
    new = three_shops.plan
    first = new.replicas[0]
    old_replicas = tuple(
        replace(r, batch=r.batch + 1) if r.id == new.replicas[-1].id else r
        for r in new.replicas
        if r.group != first.group
    )
    known = {r.id for r in old_replicas}
    old = replace(
        new, replicas=old_replicas, routes=tuple(r for r in new.routes if r.replica in known), objective=100.0
    )
    text = shown(diff_table(compare(old, new)), 120)
    assert "+ group" in text
    assert first.group in text
    assert f"batch {new.replicas[-1].batch + 1} -> {new.replicas[-1].batch}" in text
    assert "100 -> " in text
    assert shown(diff_table(compare(new, new))).strip() == "Nothing changes."


def test_status_tells_up_behind_failing_and_down_apart(three_shops: Any) -> None:
    def state(server: str, generation: int, replica_state: str) -> ExecutorState:
        return ExecutorState(
            server=server,
            incarnation="x",
            epoch=1,
            generation=generation,
            at=0.0,
            services=(
                ServiceObservation(
                    service="store-chat", arrived=1000, on_time=900, late=50, shed=40, failed=10, forwarded=123,
                    served=900, latency_p99_ms=321.0,
                ),
            ),
            replicas=(
                ReplicaObservation(
                    replica=f"store-chat@{server}", group="g", service="store-chat", state=replica_state, queued=7,
                    served=900, busy_s=1.0, mean_batch=2.0, batch_ms=10.0, detail="out of memory",
                ),
            ),
        )  # fmt: skip

    fleet = FleetState(
        executors={"carlton": state("carlton", 2, "live"), "docklands": state("docklands", 3, "failed")},
        down={"fitzroy": "no answer within 2 s"},
    )
    text = shown(status_table(fleet, three_shops.topology, three_shops.plan))
    for word in ("behind", "failing", "down", "no answer within 2 s", "out of memory", "2,000", "90 %", "321", "246"):
        assert word in text
    fine = FleetState(executors={"carlton": state("carlton", 3, "live")})
    text = shown(status_table(fine, three_shops.topology, three_shops.plan))
    assert " up " in text
    assert "not asked" in text
    assert "Troubles" not in text


def test_status_shows_models_on_their_way_and_those_that_could_not_be_had(three_shops: Any) -> None:
    fetches = (
        FetchObservation(
            source="org/chat", state="fetching", origin="docklands", done_bytes=1_500_000, total_bytes=6_000_000_000
        ),
        FetchObservation(source="org/absent", state="failed", detail="nobody could give it"),
    )
    state = ExecutorState(
        server="carlton", incarnation="x", epoch=1, generation=3, at=0.0, services=(), replicas=(), fetches=fetches
    )
    text = shown(status_table(FleetState(executors={"carlton": state}), three_shops.topology, three_shops.plan))
    for word in ("Models on their way", "org/chat", "fetching", "docklands", "1.5", "6,000.0", "nobody could give it"):
        assert word in text
    assert str(fetches[0]) == "org/chat: fetching 1,500,000 of 6,000,000,000 bytes from docklands"


def measured_fleet() -> FleetState:
    """Two replicas of names as long as they get; one has seen 100 requests, 98 of 1 to 2 ms, 2 of 64 to 128 ms."""
    bounds = (0.001, 0.002, 0.064, 0.128)
    seen = Histogram(bounds=bounds, counts=(0, 98, 0, 2, 0), sum=0.3)
    none = Histogram(bounds=bounds, counts=(0,) * 5, sum=0.0)
    rows = Histogram(bounds=(1.0, 2.0, 4.0), counts=(10, 0, 30, 0), sum=130.0)
    histograms = ReplicaHistograms(
        queue_s=seen, service_s=seen, e2e_s=seen, first_token_s=none, per_token_s=none, batch_rows=rows
    )
    given: dict[str, Any] = {"group": "g", "queued": 9, "waiting": 7, "served": 100, "busy_s": 1.0, "batch_ms": 3.0}
    loaded = ReplicaObservation(
        replica="search@edge-docklands/gpu/0/1", service="search", state="live", mean_batch=3.25,
        arrived_per_s=1234.5, busy_share=0.87, memory_bytes=7 * 2**30, restarts=2, histograms=histograms, **given,
    )  # fmt: skip
    idle = {**given, "queued": 0, "waiting": 0}
    fresh = ReplicaObservation(replica="b@edge-docklands/gpu/1/1", service="b", state="loading", mean_batch=0.0, **idle)
    state = ExecutorState(
        server="edge-docklands", incarnation="x", epoch=1, generation=3, at=0.0, services=(), replicas=(loaded, fresh),
        devices=(DeviceObservation(kind="gpu", index=0, name="L4", energy_j=123_456.0),),
    )  # fmt: skip
    return FleetState(executors={"edge-docklands": state}, down={"fitzroy": "no answer"})


def test_status_shows_what_replicas_measure_in_a_hundred_columns(three_shops: Any) -> None:
    text = shown(status_table(measured_fleet(), three_shops.topology, None), 100)
    (line,) = [line for line in text.splitlines() if line.startswith("search@")]
    assert line.split() == [
        "search@edge-docklands/gpu/0/1", "live", "7", "2", "1,234", "87", "%", "1.5", "96", "3.25", "7,168", "2",
    ]  # fmt: skip
    (line,) = [line for line in text.splitlines() if line.startswith("b@")]
    assert line.split() == ["b@edge-docklands/gpu/1/1", "loading", "0", "0", "0", "0", "%", "–", "–", "–", "–", "0"]
    assert "123" in next(line for line in text.splitlines() if "L4" in line)


def test_the_page_shows_what_replicas_measure_and_who_is_silent(three_shops: Any) -> None:
    page = render(three_shops.plan, three_shops.topology, fleet=measured_fleet())
    for word in ("What executors measure", "search@edge-docklands/gpu/0/1", "7,168", "no answer", "123"):
        assert word in page
    assert "What executors measure" not in render(three_shops.plan, three_shops.topology)


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        ((0, 0, 0), 0.5, None),
        ((4, 0, 0), 0.5, 0.5),
        ((1, 1, 0), 0.75, 1.5),
        ((1, 1, 0), 1.0, 2.0),
        ((0, 0, 5), 0.5, 2.0),  # beyond every bound
        ((0, 3, 0), 0.0, 1.0),
    ],
)
def test_quantiles_of_histograms_are_linear_inside_a_bucket(
    counts: tuple[int, ...], share: float, expected: float | None
) -> None:
    assert Histogram(bounds=(1.0, 2.0), counts=counts, sum=0.0).quantile(share) == expected


def test_history_shows_the_last_cycles_and_their_events(three_shops: Any) -> None:
    text = shown(history_table(three_shops.history), 100)
    assert "executor of carlton killed" in text
    last = three_shops.history[37:40]
    text = shown(history_table(last, max_rows=2))
    assert [str(p.generation) in text for p in last] == [False, True, True]


def test_load_adds_up(three_shops: Any) -> None:
    text = shown(load_table(three_shops.load))
    assert f"{sum(w.sent for w in three_shops.load):,}" in text
    assert f"{sum(w.on_time for w in three_shops.load):,}" in text
    assert "all" in text


def test_solvers_show_whatever_the_registry_knows() -> None:
    @dataclass(frozen=True)
    class Entry:
        name: str
        available: bool
        good_for: tuple[str, ...]

        reason: str = ""

    text = shown(solvers_table([Entry("cbc", True, ("small", "checks")), Entry("scip", False, ())]))
    assert "Reason" not in text
    for word in ("cbc", "scip", "yes", "no", "small, checks", "Good for"):
        assert word in text
