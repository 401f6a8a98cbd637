"""Figures as people read them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from epara_opt.plan import Stop
from epara_opt.report.figures import (
    STOP_WORDS,
    Tone,
    by_category,
    by_origin,
    forecasts,
    millis,
    number,
    offloaded,
    operators_in_use,
    percent,
    plain,
    signed,
    tightest_first,
    tone,
    verdict,
)
from epara_opt.report.load import LoadWindow, over_time, per_service


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (0.0004, "0"), (0.0123, "0.0123"), (0.9994, "0.999"), (1.5, "1.5"), (9.999, "10"), (12.34, "12.3"),
        (99.94, "99.9"), (99.96, "100"), (1234.5, "1,234"), (1e6, "1,000,000"), (-3.0, "-3"),
        (float("inf"), "∞"), (float("-inf"), "-∞"), (float("nan"), "–"), (None, "–"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0 %"), (0.0001, "<0.1 %"), (0.92134, "92.1 %"), (0.99999, "99.9 %"), (1.0, "100 %"), (None, "–")],
)
def test_percents_never_round_up_to_a_full_hundred(share: float | None, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(("ms", "text"), [(0.0, "0"), (0.4, "0.4"), (8.26, "8.3"), (61.2, "61"), (1250.0, "1,250")])
def test_milliseconds_lose_what_nobody_reads(ms: float, text: str) -> None:
    assert millis(ms) == text


def test_changes_carry_their_sign() -> None:
    assert (signed(2.0), signed(-2.0), signed(0.0), signed(1e-9)) == ("+2", "-2", "0", "0")


def test_control_characters_are_made_visible() -> None:
    assert plain("a\x1b[31mb\u202ec") == "a\ufffd[31mb\ufffdc"


@pytest.mark.parametrize(
    ("share", "expected"), [(0.95, Tone.GOOD), (0.949, Tone.FAIR), (0.75, Tone.FAIR), (0.74, Tone.POOR)]
)
def test_tones_step_where_streams_count_as_satisfied(share: float, expected: Tone) -> None:
    assert tone(share) is expected


def test_every_stop_has_words() -> None:
    assert set(STOP_WORDS) == set(Stop)


def test_the_verdict_says_what_is_proven(three_shops: Any) -> None:
    plan = three_shops.plan
    assert verdict(plan).startswith(
        f"Serves {percent(plan.predicted.slo_attainment)} of what is offered; at most 2.1 %"
    )
    optimal = replace(plan, stop=Stop.OPTIMAL, dual_bound=plan.objective, gap=0.0)
    assert "no plan under the same rules serves more, proven" in verdict(optimal)
    assert "was not proved" in verdict(replace(plan, dual_bound=None, gap=None))
    assert "fallback" in verdict(replace(plan, stop=Stop.SOLVER_FAILED))
    full = replace(plan.predicted, slo_attainment=1.0)
    assert verdict(replace(plan, predicted=full, dual_bound=None, gap=None)) == "Serves all that is offered."
    assert verdict(replace(plan, stop=Stop.NO_DEMAND)) == "Nothing is offered, so nothing is placed."
    assert f"at most {number(plan.dual_bound)} weighted" in verdict(replace(plan, objective=0.0, gap=1.0))


def test_sums_by_category_and_by_origin_are_the_plans_own(make_edge: Any) -> None:
    e = make_edge(40)
    for rows in (by_category(e.plan, e.topology), by_origin(e.plan, e.topology)):
        assert sum(s.served for s in rows) == pytest.approx(e.plan.predicted.goodput)
        assert sum(s.offered for s in rows) == pytest.approx(e.plan.predicted.offered)


def test_offloaded_work_is_part_of_all_work(make_edge: Any) -> None:
    e = make_edge(40)
    away, total = offloaded(e.plan, e.topology)
    assert 0 < away < total == pytest.approx(e.plan.predicted.goodput)


def test_services_come_with_the_greatest_loss_first(make_edge: Any) -> None:
    e = make_edge(40)
    weight = {s.name: s.weight for s in e.topology.services.values()}
    lost = [round(weight[f.service] * (f.offered - f.goodput), 6) for f in forecasts(e.plan, e.topology)]
    assert lost == sorted(lost, reverse=True)


def test_routes_come_with_the_least_slack_first(make_edge: Any) -> None:
    e = make_edge(40)
    used = [r.predicted_ms / e.topology.services[r.service].deadline_ms for r in tightest_first(e.plan, e.topology)]
    assert used == sorted(used, reverse=True)


def test_operators_are_those_the_replicas_show(three_shops: Any) -> None:
    e = three_shops
    used = operators_in_use(e.plan, e.topology)
    for name, operators in used.items():
        mine = [r for r in e.plan.replicas if r.service == name]
        assert ("MP" in operators) == any(r.tp * r.pp > 1 for r in mine)
        assert ("MF" in operators) == any(r.frames > 1 for r in mine)
        assert ("BS" in operators) == any(r.batch > 1 for r in mine)


def test_load_windows_add_up_per_service_and_over_time() -> None:
    a = LoadWindow(at=0.0, duration_s=5.0, service="a", sent=10, on_time=8, late=2, p99_ms=50.0)
    later = replace(a, at=5.0, on_time=10, late=0, p99_ms=70.0)
    b = replace(a, service="b", sent=0, on_time=0, late=0, p99_ms=None)
    total = {w.service: w for w in per_service([later, b, a])}
    assert (total["a"].sent, total["a"].on_time, total["a"].late, total["a"].p99_ms) == (20, 18, 2, 70.0)
    assert total["a"].duration_s == 10.0
    assert total["a"].slo_attainment == pytest.approx(0.9)
    assert total["b"].slo_attainment is None
    assert over_time([later, b, a]) == ((2.5, 10, 8), (7.5, 10, 10))
