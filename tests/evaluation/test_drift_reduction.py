from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from loralign.evaluation.drift_reduction import drift_reduction


def drawn(size: int, mean: float, spread: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, spread, size)


def test_the_ratio_is_of_means_and_its_interval_scipys() -> None:
    other = drawn(80, 1.0, 0.8, 0)
    losses = 0.4 * other + drawn(80, 0.0, 0.2, 1)
    found = drift_reduction(losses, other)
    assert found.value == pytest.approx(1 - losses.mean() / other.mean())
    expected = stats.bootstrap(
        (losses, other),
        lambda a, b, axis: 1 - a.mean(axis) / b.mean(axis),
        paired=True,
        vectorized=True,
        n_resamples=5000,
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.01)
    assert found.note == ""


def test_prompts_are_drawn_for_both_runs_together() -> None:
    other = drawn(200, 1.0, 1.0, 0)
    found = drift_reduction(0.5 * other, other)
    assert found.value == pytest.approx(0.5)
    # Unpaired, two noisy means would be divided; paired, every resample gives one half.
    assert found.low == pytest.approx(0.5)
    assert found.high == pytest.approx(0.5)


def test_the_interval_is_that_of_a_naive_bootstrap() -> None:
    rng = np.random.default_rng(3)
    other = (rng.random(300) < 0.4).astype(float)
    losses = other * (rng.random(300) < 0.5)
    found = drift_reduction(losses, other)
    values = []
    for _ in range(4000):
        index = rng.integers(300, size=300)
        values.append(1 - losses[index].mean() / other[index].mean())
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])), abs=0.015)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([-1.0, 0.0, 1.0]), st.sampled_from([-1.0, 0.0, 1.0])), min_size=1, max_size=30)
)
def test_missing_parts_are_said(pairs: list[tuple[float, float]]) -> None:
    losses, others = np.array(pairs).T
    found = drift_reduction(losses, others, resamples=200)
    if others.sum() <= 0:
        assert (found.value, found.low, found.high) == (None, None, None)
        assert "lost nothing" in found.note
        return
    assert found.value == pytest.approx(1 - losses.sum() / others.sum())
    assert (found.low is None) == (found.high is None) == bool(found.note)
    if found.low is not None and found.high is not None:
        assert np.isfinite([found.low, found.high]).all()
        assert found.low <= found.high
    else:
        assert "cannot be told from zero" in found.note


@pytest.mark.parametrize(("mean", "stable"), [(0.3, False), (3.0, True)])
def test_a_denominator_that_may_be_zero_gives_no_interval(mean: float, stable: bool) -> None:
    other = drawn(30, 0.0, 1.0, 0)
    other += mean - other.mean()
    found = drift_reduction(0.5 * other + drawn(30, 0.0, 0.1, 1), other)
    assert (found.low is not None) == stable
    assert found.value is not None


def test_one_prompt_is_too_few() -> None:
    found = drift_reduction(np.array([0.5]), np.array([1.0]))
    assert (found.value, found.low) == (0.5, None)
    assert "unstable" in found.note


def test_a_loss_of_nothing_is_a_reduction_of_all() -> None:
    found = drift_reduction(np.zeros(20), np.ones(20))
    assert (found.value, found.low, found.high, found.note) == (1.0, 1.0, 1.0, "")


def test_equal_arguments_give_equal_intervals() -> None:
    losses, others = drawn(40, 0.5, 0.3, 0), drawn(40, 1.0, 0.3, 1)
    assert drift_reduction(losses, others) == drift_reduction(losses, others)
    assert drift_reduction(losses, others) != drift_reduction(losses, others, seed=1)
    narrow, wide = (drift_reduction(losses, others, confidence=level) for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high  # type: ignore[operator]
