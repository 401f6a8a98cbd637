"""Arrivals: their rates, their burstiness, streams that keep their beat, and recorded lists with their errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from epara_solvers.simulate.arrivals import drawn, read_requests, recorded, renewals

from epara_opt.domain.service import Demand, Model, RequestShape, Sensitivity, Service, Task
from epara_opt.errors import InputError

LABEL = Service(
    name="label",
    model=Model(source="label", task=Task.IMAGE_CLASSIFICATION),
    sensitivity=Sensitivity.LATENCY,
    slo_ms=100.0,
    request=RequestShape(),
)
LANES = replace(LABEL, name="lanes", sensitivity=Sensitivity.FREQUENCY, slo_ms=None, fps=5.0, frame_deadline_ms=200.0)
SERVICES = {"label": LABEL, "lanes": LANES}
PLACES = ("a", "b", "elsewhere")
DEMAND = (
    Demand(service="label", origin="a", offered=20.0, burstiness_cv=2.0),
    Demand(service="lanes", origin="b", offered=3.0, is_streams=True, burstiness_cv=2.0),
)


@pytest.mark.parametrize("cv", [0.0, 0.5, 1.0, 3.0])
def test_renewals_have_the_rate_and_the_burstiness_asked_for(cv: float) -> None:
    at_s = renewals(10.0, cv, duration_s=20_000.0, rng=np.random.default_rng(3))
    gaps = np.diff(at_s)
    assert len(at_s) / 20_000.0 == pytest.approx(10.0, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05, abs=1e-9)
    assert at_s[0] >= 0.0
    assert at_s[-1] < 20_000.0


def test_streams_send_their_frames_at_equal_distances_from_phases_of_their_own() -> None:
    found = drawn(DEMAND, SERVICES, duration_s=60.0, rng=np.random.default_rng(1))
    assert found.stream_entry.tolist() == [1, 1, 1]
    phases: set[float] = set()
    for s in range(3):
        frames = found.at_s[found.stream == s]
        assert len(frames) == 300
        assert np.diff(frames) == pytest.approx(0.2)
        phases.add(float(frames[0]))
    assert len(phases) == 3
    assert set(found.entry[found.stream < 0].tolist()) == {0}


def test_one_seed_gives_one_day() -> None:
    days = [drawn(DEMAND, SERVICES, duration_s=30.0, rng=np.random.default_rng(5)) for _ in range(2)]
    assert days[0].at_s.tolist() == days[1].at_s.tolist()
    assert days[0].draw.tolist() == days[1].draw.tolist()


def test_a_window_starts_its_own_clock_and_loses_nothing_inside() -> None:
    whole = drawn(DEMAND, SERVICES, duration_s=30.0, rng=np.random.default_rng(5))
    parts = [whole.window(0.0, 10.0), whole.window(10.0, 30.0)]
    assert sum(len(p) for p in parts) == len(whole)
    assert parts[1].at_s.tolist() == (whole.at_s[len(parts[0]) :] - 10.0).tolist()
    assert parts[1].duration_s == 20.0


def test_a_record_is_kept_as_it_came_with_the_streams_that_it_does_not_list(tmp_path: Path) -> None:
    file = tmp_path / "seen.csv"
    file.write_text("# seen today\narrival_s,service,origin\n0.5,label,a\n2.25,label,a\n1.0,label,elsewhere\n")
    found = recorded(
        read_requests(file, services=SERVICES, servers=PLACES),
        DEMAND,
        SERVICES,
        duration_s=4.0,
        rng=np.random.default_rng(1),
    )
    assert found.at_s[found.stream < 0].tolist() == [0.5, 2.25]
    assert (found.stream >= 0).sum() == 3 * 5 * 4


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("at,service,origin\n", "header: expected the columns arrival_s,service,origin, got at,service,origin"),
        ("arrival_s,service,origin\n", "expected at least one request"),
        ("arrival_s,service,origin\n-1,label,a\n", r"seen.csv:2: row: expected an instant >= 0"),
        ("arrival_s,service,origin\n1,labl,a\n", r"seen.csv:2: service: expected a service of the topology, got labl"),
        ("arrival_s,service,origin\n1,label,z\n", r"seen.csv:2: origin: expected a server of the topology, got z"),
        ("arrival_s,service,origin\n1,label\n", r"seen.csv:2: row: expected an instant >= 0"),
        ("arrival_s,service,origin\nnan,label,a\n", r"seen.csv:2: row: expected an instant >= 0"),
    ],
)
def test_what_is_no_record_is_refused_by_line(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "seen.csv"
    file.write_text(text)
    with pytest.raises(InputError, match=says):
        read_requests(file, services=SERVICES, servers=PLACES)
