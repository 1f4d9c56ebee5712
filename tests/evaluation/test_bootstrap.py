from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from loralign.evaluation.bootstrap import Difference, Estimate, Ratio, bootstrap_mean


def mean_of(values: np.ndarray) -> Ratio:
    return Ratio(values, np.ones(len(values)))


def draw(size: int, seed: int = 0, loc: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(loc, 1.0, size)


def test_same_arguments_give_the_same_interval_and_the_seed_matters() -> None:
    sample = mean_of(draw(50))
    first = bootstrap_mean([sample])
    np.random.default_rng().random()
    assert bootstrap_mean([sample]) == first
    other = bootstrap_mean([sample], seed=1)
    assert other.value == first.value
    assert other.low != first.low


def test_mean_agrees_with_scipy_bca() -> None:
    values = np.random.default_rng(0).exponential(size=40)
    expected = stats.bootstrap((values,), np.mean, n_resamples=5000, rng=np.random.default_rng(0)).confidence_interval
    found = bootstrap_mean([mean_of(values)])
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.02)
    # BCa moves the interval of a skewed sample upwards from that of percentiles.
    percentile = stats.bootstrap(
        (values,), np.mean, n_resamples=5000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert found.high > percentile.high + 0.01


@pytest.mark.parametrize("samples", [1, 3])
def test_intervals_hold_the_true_mean_about_as_often_as_they_say(samples: int) -> None:
    rng = np.random.default_rng(5)
    held, trials = 0, 300
    for _ in range(trials):
        groups = [mean_of(rng.normal(1.0, 1.0 + group, 40)) for group in range(samples)]
        found = bootstrap_mean(groups, resamples=400)
        held += found.low <= 1.0 <= found.high
    assert 0.90 <= held / trials <= 0.98


def test_ratio_weights_by_the_denominator() -> None:
    numerator, denominator = np.array([2.0, 30.0, 1.0]), np.array([1.0, 10.0, 4.0])
    found = bootstrap_mean([Ratio(numerator, denominator)])
    assert found.value == pytest.approx(33 / 15)
    assert 0.25 <= found.low < found.value < found.high <= 3.0


def test_mean_of_samples_counts_each_the_same() -> None:
    small, large = mean_of(draw(10, 0, 4.0)), mean_of(draw(1000, 1, 0.0))
    found = bootstrap_mean([small, large])
    assert found.value == pytest.approx((small.numerator.mean() + large.numerator.mean()) / 2)
    half_width = (found.high - found.low) / 2
    assert half_width == pytest.approx(1.96 / 2 * np.sqrt(small.numerator.var() / 10 + 1 / 1000), rel=0.2)


def test_paired_difference_is_narrower_than_either() -> None:
    before = draw(60)
    after = before + 0.5 + 0.01 * draw(60, 1)
    alone = bootstrap_mean([mean_of(after)])
    found = bootstrap_mean([Difference(mean_of(after), mean_of(before))])
    assert found.value == pytest.approx((after - before).mean())
    assert found.low > 0.49
    assert found.high - found.low < 0.05 * (alone.high - alone.low)


def test_data_that_do_not_vary_give_no_width() -> None:
    assert bootstrap_mean([mean_of(np.ones(30))]) == Estimate(1.0, 1.0, 1.0)
    assert bootstrap_mean([mean_of(np.ones(30)), mean_of(np.zeros(5))]) == Estimate(0.5, 0.5, 0.5)


def test_single_pairs_are_held_fixed() -> None:
    assert bootstrap_mean([mean_of(np.array([3.0]))]) == Estimate(3.0, 3.0, 3.0)
    with_rest = bootstrap_mean([mean_of(np.array([3.0])), mean_of(draw(40))])
    rest = bootstrap_mean([mean_of(draw(40))])
    assert with_rest.value == pytest.approx((3 + rest.value) / 2)
    assert with_rest.high - with_rest.low == pytest.approx((rest.high - rest.low) / 2)


def test_two_pairs_give_a_finite_interval() -> None:
    found = bootstrap_mean([mean_of(np.array([0.0, 1.0]))])
    assert (found.low, found.value, found.high) == (0.0, 0.5, 1.0)


def test_many_pairs_use_percentiles() -> None:
    found = bootstrap_mean([mean_of(draw(6000))], resamples=500)
    assert found.low < found.value < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 / np.sqrt(6000), rel=0.15)
