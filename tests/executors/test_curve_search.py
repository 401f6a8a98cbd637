"""When a curve counts as known, on curves whose truth is known. No clock, no machine."""

import math
import random

import pytest
from epara_executors.confidence import Estimate, estimate, rank
from epara_executors.curve_search import CurveSearch

from epara_opt.domain.profile import Curve


def search(truth, last, *, noise=0.0, tolerance=0.05, most=200):
    """Measure until the curve is known: the search, and how far the planner's lines are from the truth at most."""
    rng = random.Random(7)
    found = CurveSearch(1, last, tolerance=tolerance)
    medians = {}
    while (x := found.next_size()) is not None:
        median = truth(x) * (1 + noise * rng.uniform(-1, 1))
        medians[x] = median
        found.add(x, Estimate(median, median * (1 - noise), median * (1 + noise)))
        most -= 1
        assert most > 0, found.sizes
    line = Curve("x", tuple(sorted(medians)), tuple(medians[x] for x in sorted(medians)))
    return found, max(abs(line.at(x) - truth(x)) / truth(x) for x in range(1, last + 1))


@pytest.mark.parametrize("noise", [0.0, 0.01])
@pytest.mark.parametrize(
    "truth",
    [
        pytest.param(lambda x: 5.0, id="flat"),
        pytest.param(lambda x: 0.3 * x, id="proportional"),
        pytest.param(lambda x: 2.0 + 0.5 * x, id="affine"),
        pytest.param(lambda x: max(8.0, 0.5 * x) + 1.0, id="roofline"),
        pytest.param(lambda x: x**0.7, id="concave"),
    ],
)
def test_a_curve_that_obeys_the_laws_is_known_within_the_tolerance(truth, noise):
    found, off = search(truth, 64, noise=noise)
    assert found.bound <= 0.05
    assert off <= found.bound + 1e-9
    assert len(found.sizes) <= 32


def test_what_the_laws_settle_takes_three_sizes():
    for truth in (lambda x: 5.0, lambda x: 0.3 * x):
        found, off = search(truth, 1024)
        assert found.sizes == (1, 32, 1024)  # the last foretold: the middle by ratio
        assert off < 1e-9


def test_a_narrower_tolerance_takes_more_sizes():
    wide, _ = search(lambda x: 2.0 + 0.5 * x, 64, tolerance=0.2)
    narrow, _ = search(lambda x: 2.0 + 0.5 * x, 64, tolerance=0.02)
    assert len(wide.sizes) < len(narrow.sizes)


def test_the_next_size_lies_in_the_gap_of_the_greatest_bound():
    found = CurveSearch(1, 100)
    assert found.next_size() == 1
    found.add(1, Estimate(1.0, 1.0, 1.0))
    assert found.next_size() == 100
    assert found.bound == math.inf
    found.add(100, Estimate(40.0, 40.0, 40.0))
    found.add(10, Estimate(2.0, 2.0, 2.0))
    assert 10 < (found.next_size() or 0) < 100  # 2 to 40 is wider than 1 to 2


def test_a_step_that_breaks_the_law_of_scale_is_searched_by_the_weaker_law():
    """Two tiles of 16: time per row jumps from 16 to 17, where only monotony holds."""
    found, off = search(lambda x: 4.0 * math.ceil(x / 16) + 0.5, 32)
    assert {16, 17} <= set(found.sizes)
    assert off <= 0.05


def test_a_size_whose_interval_is_wide_is_measured_again():
    found = CurveSearch(1, 2)
    found.add(1, Estimate(1.0, 0.8, 1.3))
    found.add(2, Estimate(2.0, 2.0, 2.0))
    assert found.next_size() == 1
    assert found.bound == pytest.approx(0.3)
    found.add(1, Estimate(1.0, 0.99, 1.01))
    assert found.next_size() is None
    assert found.known


@pytest.mark.parametrize(("first", "last", "tolerance"), [(0, 4, 0.05), (5, 4, 0.05), (1, 4, 0.0)])
def test_an_impossible_search_is_refused(first, last, tolerance):
    with pytest.raises(ValueError, match="expected"):
        CurveSearch(first, last, tolerance=tolerance)


def test_ranks_are_those_of_the_sign_tests_table():
    """Two-sided 95 %, as in Conover's and every other table of the binomial."""
    assert {n: rank(n) for n in (1, 5, 6, 8, 9, 11, 12, 20, 30, 50)} == {
        1: 0, 5: 0, 6: 1, 8: 1, 9: 2, 11: 2, 12: 3, 20: 6, 30: 10, 50: 18,
    }  # fmt: skip


def test_the_interval_covers_the_median_as_often_as_it_says():
    rng = random.Random(3)
    inside = 0
    for _ in range(2000):
        made = estimate([rng.expovariate(1.0) for _ in range(15)])  # skewed, as times are
        inside += made.low <= math.log(2.0) <= made.high
    assert inside / 2000 >= 0.95


def test_too_few_samples_have_no_interval():
    made = estimate([3.0, 1.0, 2.0])
    assert (made.median, made.error) == (2.0, math.inf)
