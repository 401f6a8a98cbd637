"""From counters to demand."""

import numpy as np
import pytest

from epara_opt.control.fake_planner import small_edge
from epara_opt.control.forecast import Forecaster, ForecastSettings
from epara_opt.control.ports import ExecutorState, FleetState, ServiceObservation
from epara_opt.errors import InputError, StoreError

TOPOLOGY, CATALOGUE = small_edge()


def state(at: float, arrived: int, *, origin: str = "a", boot: str = "1", service: str = "label", streams: int = 0):
    seen = ServiceObservation(
        service=service, arrived=arrived, on_time=0, late=0, shed=0, failed=0, forwarded=0, served=0, streams=streams
    )
    executor = ExecutorState(
        server=origin, incarnation=boot, epoch=1, generation=1, at=at, services=(seen,), replicas=()
    )
    return FleetState(executors={origin: executor})


def feed(forecaster: Forecaster, counts: list[int], *, start: float = 0.0) -> None:
    total = 0
    forecaster.observe(state(start, 0))
    for i, n in enumerate(counts):
        total += n
        forecaster.observe(state(start + i + 1.0, total))


def offered(forecaster: Forecaster, service: str = "label", origin: str = "a") -> float:
    return {(d.service, d.origin): d.offered for d in forecaster.demand()}.get((service, origin), 0.0)


def test_before_anything_is_seen_the_declared_demand_holds() -> None:
    made = Forecaster(TOPOLOGY).demand()
    assert {(d.service, d.origin, d.offered) for d in made} == {("label", "a", 40), ("label", "b", 20), ("seg", "c", 1)}


def test_the_declared_demand_fades_with_observation() -> None:
    forecaster = Forecaster(TOPOLOGY)
    feed(forecaster, [0] * 20)
    assert offered(forecaster) == pytest.approx(20.0)  # one half-life of the prior, nothing arrived
    feed(forecaster, [0] * 400, start=100.0)
    assert offered(forecaster) == 0.0


def test_a_steady_rate_is_forecast_as_it_is() -> None:
    forecaster = Forecaster(TOPOLOGY)
    feed(forecaster, [7] * 300)
    assert offered(forecaster) == pytest.approx(7.0, rel=0.01)


def test_a_rise_is_followed_within_two_windows_and_a_fall_within_the_guards_memory() -> None:
    forecaster = Forecaster(TOPOLOGY)
    feed(forecaster, [10] * 300 + [40] * 10)
    assert offered(forecaster) > 30.0
    forecaster = Forecaster(TOPOLOGY)
    feed(forecaster, [40] * 300 + [10] * 120)
    assert offered(forecaster) < 12.0


def test_a_restarted_executor_neither_doubles_nor_negates_arrivals() -> None:
    forecaster = Forecaster(TOPOLOGY)
    feed(forecaster, [10] * 300)
    forecaster.observe(state(301.0, 5, boot="2"))
    for i in range(20):
        forecaster.observe(state(302.0 + i, 5 + 10 * (i + 1), boot="2"))
    assert offered(forecaster) == pytest.approx(10.0, rel=0.02)


def test_the_same_state_twice_counts_once() -> None:
    forecaster = Forecaster(TOPOLOGY)
    for i in range(300):
        forecaster.observe(state(float(i), 10 * i))
        forecaster.observe(state(float(i), 10 * i))
    assert offered(forecaster) == pytest.approx(10.0, rel=0.01)


def test_streams_are_forecast_from_the_gauge() -> None:
    forecaster = Forecaster(TOPOLOGY)
    for i in range(300):
        forecaster.observe(state(float(i), 30 * i, origin="c", service="seg", streams=3))
    assert offered(forecaster, "seg", "c") == pytest.approx(3.0, rel=0.01)


def test_clients_of_a_lost_origin_are_expected_at_the_nearest_one_that_stands() -> None:
    made = Forecaster(TOPOLOGY).demand(down=frozenset({"a"}))
    assert {d.origin for d in made} == {"b", "c"}
    assert sum(d.offered for d in made if d.service == "label") == pytest.approx(60.0)


def test_clients_that_did_not_come_are_expected_less_and_less() -> None:
    forecaster = Forecaster(TOPOLOGY)
    for i in range(121):
        seen = state(float(i), 0, origin="b")
        forecaster.observe(FleetState(executors=seen.executors, down={"a": "no answer"}))
    label = [d.offered for d in forecaster.demand(down=frozenset({"a"})) if d.service == "label"]
    assert sum(label) < 1.0


def test_frames_of_streams_that_are_placed_nowhere_still_count_as_streams() -> None:
    fps = TOPOLOGY.services["seg"].events_per_work
    forecaster = Forecaster(TOPOLOGY)
    for i in range(60):
        forecaster.observe(state(float(i), round(2 * fps * i), origin="b", service="seg"))
    assert offered(forecaster, "seg", "b") == pytest.approx(2.0, rel=0.05)


def test_a_clock_that_is_set_costs_one_observation_and_no_more() -> None:
    forecaster = Forecaster(TOPOLOGY)
    feed(forecaster, [5] * 60, start=1e6)
    feed(forecaster, [5] * 60, start=1e3)
    assert offered(forecaster) == pytest.approx(5.0, rel=0.3)


def test_demand_that_nobody_declared_is_seen_where_it_enters() -> None:
    forecaster = Forecaster(TOPOLOGY)
    for i in range(60):
        forecaster.observe(state(float(i), 5 * i, origin="c"))
    assert offered(forecaster, "label", "c") == pytest.approx(5.0, rel=0.01)


@pytest.mark.parametrize(("cv", "low", "high"), [(1.0, 0.6, 1.5), (3.0, 1.8, 4.5)])
def test_burstiness_is_estimated_from_window_counts(cv: float, low: float, high: float) -> None:
    rng = np.random.default_rng(7)
    shape = 1 / cv**2
    instants = np.cumsum(rng.gamma(shape, 1 / (20 * shape), size=40_000))
    counts = np.bincount(instants.astype(int))[:600]
    forecaster = Forecaster(TOPOLOGY, ForecastSettings(num_windows=100))
    feed(forecaster, [int(c) for c in counts])
    (demand,) = [d for d in forecaster.demand() if (d.service, d.origin) == ("label", "a")]
    assert low < demand.burstiness_cv < high


def test_what_was_learned_survives_the_store() -> None:
    forecaster = Forecaster(TOPOLOGY)
    feed(forecaster, [9] * 100)
    again = Forecaster(TOPOLOGY)
    again.restore(forecaster.to_json())
    assert again.demand() == forecaster.demand()
    with pytest.raises(StoreError):
        again.restore('{"format": 1}')


def test_settings_name_what_is_wrong() -> None:
    with pytest.raises(InputError, match=r"forecast\.window_s: expected > 0, got 0"):
        ForecastSettings(window_s=0)
