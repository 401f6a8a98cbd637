"""Counting observations in fixed buckets."""

import itertools

import pytest
from epara_executors.agent.buckets import DURATIONS_S, RECENT_BATCHES, ROWS, Buckets, ReplicaMeter
from epara_executors.rpc.convert import histogram_from_pb, histogram_to_pb

from epara_opt.control.ports import BatchTime, Histogram


@pytest.mark.parametrize(("value", "bucket"), [(0.0, 0), (1.0, 0), (1.5, 1), (2.0, 1), (4.0, 2), (4.1, 3)])
def test_an_upper_bound_belongs_to_its_bucket(value, bucket):
    buckets = Buckets((1.0, 2.0, 4.0))
    buckets.observe(value)
    assert buckets.histogram().counts.index(1) == bucket
    assert buckets.histogram().sum == value


@pytest.mark.parametrize("bounds", [DURATIONS_S, ROWS])
def test_buckets_are_evenly_spaced_in_the_logarithm(bounds):
    assert {b / a for a, b in itertools.pairwise(bounds)} == {2.0}


def test_a_histogram_is_a_copy_that_later_observations_do_not_touch():
    buckets = Buckets((1.0,))
    before = buckets.histogram()
    buckets.observe(3.0)
    assert (before.count, buckets.histogram().count) == (0, 1)


def test_a_histogram_has_one_count_more_than_bounds():
    with pytest.raises(ValueError, match="expected 3, one more than bounds, got 2"):
        Histogram(bounds=(1.0, 2.0), counts=(0, 0), sum=0.0)


def test_a_histogram_survives_the_wire():
    histogram = Histogram(bounds=(0.5, 1.0), counts=(3, 0, 2**40), sum=7.25)
    assert histogram_from_pb(histogram_to_pb(histogram)) == histogram


def test_batch_times_are_medians_of_the_latest_batches_of_each_size():
    meter = ReplicaMeter()
    for ms in [1000.0] * 5 + [2.0] * RECENT_BATCHES + [900.0]:
        meter.batch(4, device_ms=ms)
    meter.batch(1, device_ms=1.0)
    assert meter.batch_times() == (
        BatchTime(rows=1, num_batches=1, median_ms=1.0),
        BatchTime(rows=4, num_batches=RECENT_BATCHES + 6, median_ms=2.0),
    )
