import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from ranksearch.latency.statistics import (
    _resampled_medians,
    bootstrap_median_interval,
    drift,
    is_settled,
    percentile,
)

positive = st.floats(1e-3, 1e3)
FLOORS = [(90, 64), (95, 130), (99, 662)]


@pytest.mark.parametrize("num_values", [2, 3, 10, 11, 57])
def test_bootstrap_agrees_with_scipy(num_values):
    values = np.random.default_rng(num_values).lognormal(0.0, 0.1, num_values)
    low, high = bootstrap_median_interval(values.tolist(), rng=np.random.default_rng(0), num_resamples=40_000)
    oracle = scipy.stats.bootstrap(
        (values,), np.median, n_resamples=40_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    # A percentile of a discrete distribution may fall one value further: allow the gap at that place, not more.
    gap = np.diff(np.sort(values)).max() / 2
    assert low == pytest.approx(oracle.low, abs=gap / 10 if num_values > 9 else gap)
    assert high == pytest.approx(oracle.high, abs=gap / 10 if num_values > 9 else gap)


@pytest.mark.parametrize("num_values", [2, 3, 4, 7, 12])
def test_resampled_medians_follow_the_law_of_resampling(num_values):
    ordered = np.sort(np.random.default_rng(5).random(num_values))
    rng = np.random.default_rng(6)
    drawn = np.median(ordered[rng.integers(0, num_values, (50_000, num_values))], axis=1)
    ours = _resampled_medians(ordered, np.random.default_rng(7), 50_000)
    assert np.isin(ours, (ordered[:, None] + ordered) / 2).all()
    # the largest gap between the two distributions, beyond the 0.1 % level for samples of this size
    assert scipy.stats.ks_2samp(drawn, ours).statistic < 0.0124


@given(st.lists(positive, min_size=2, max_size=40), st.integers(0, 10))
def test_the_interval_holds_the_median_and_stays_within_the_values(values, seed):
    low, high = bootstrap_median_interval(values, rng=np.random.default_rng(seed))
    assert min(values) <= low <= np.median(values) <= high <= max(values)


def test_the_interval_is_the_same_for_the_same_seed():
    values = np.random.default_rng(0).random(21).tolist()
    intervals = [bootstrap_median_interval(values, rng=np.random.default_rng(3)) for _ in range(2)]
    assert intervals[0] == intervals[1]


@pytest.mark.parametrize(("percent", "floor"), FLOORS)
def test_percentiles_are_numpys_and_unknown_below_their_floor(percent, floor):
    samples = np.random.default_rng(percent).lognormal(size=floor).tolist()
    assert percentile(samples, percent) == np.percentile(samples, percent)
    assert percentile(samples[:-1], percent) is None


@pytest.mark.parametrize(("percent", "floor"), FLOORS)
def test_floors_leave_room_for_an_interval_above_the_percentile(percent, floor):
    """With `floor` samples the largest lies above the percentile but for a chance of at most about 0.13 %."""
    assert (percent / 100) ** floor < 0.00135


@given(st.integers(3, 300), positive)
def test_constant_times_are_settled(num_samples, value):
    assert is_settled([value] * num_samples)


@pytest.mark.parametrize("num_samples", [0, 1, 2])
def test_too_few_samples_are_not_settled(num_samples):
    assert not is_settled([1.0] * num_samples)


def test_a_falling_trend_is_not_settled_until_it_ends():
    falling = [3.0 * math.exp(-i / 20) + 1.0 for i in range(60)]
    assert not is_settled(falling)
    assert is_settled(falling + [1.0] * 200)


def test_noise_does_not_keep_it_from_settling():
    samples = np.random.default_rng(0).lognormal(0.0, 0.05, 3000).tolist()
    assert is_settled(samples)


@pytest.mark.parametrize("tolerance", [0.01, 0.1])
def test_a_step_is_settled_up_to_the_tolerance(tolerance):
    for step, expected in ((0.9 * tolerance, True), (1.1 * tolerance, False)):
        assert is_settled([1.0] * 20 + [1.0 + step] * 10, tolerance=tolerance) is expected


@given(st.floats(0.5, 2.0), st.integers(3, 60))
def test_drift_of_a_step_is_its_height(height, num_values):
    third = math.ceil(num_values / 3)
    values = [1.0] * (num_values - third) + [height] * third
    if num_values - third >= third:
        assert drift(values) == pytest.approx(abs(height - 1))


def test_drift_does_not_see_a_lone_outlier():
    values = [1.0] * 9
    values[0] = 50.0
    assert drift(values) == 0.0
