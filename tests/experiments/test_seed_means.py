from __future__ import annotations

import numpy as np
import pytest

from loralign.evaluation.bootstrap import Ratio, bootstrap_mean
from loralign.evaluation.pairs import FloatArray
from loralign.experiments.seed_means import Contrast, SeedEstimate, SeedMean, avoided, compared, estimate, over_seeds


def ratio(values: FloatArray) -> tuple[Ratio, ...]:
    return (Ratio(values, np.ones(len(values))),)


def over(*seeds: FloatArray) -> SeedMean:
    return SeedMean(tuple(ratio(np.asarray(one, dtype=np.float64)) for one in seeds))


def test_of_one_seed_the_interval_is_that_over_samples() -> None:
    samples = ratio(np.random.default_rng(0).normal(size=30))
    one = bootstrap_mean(samples, resamples=2000)
    for found in (estimate(samples), estimate(SeedMean((samples,)))):
        assert found == SeedEstimate(one.value, one.low, one.high, 1)


def test_of_two_seeds_that_differ_the_interval_holds_both() -> None:
    found = estimate(over(np.full(50, 1.0), np.full(50, 3.0)))
    assert found == SeedEstimate(2.0, 1.0, 3.0, 2, (1.0, 3.0))


@pytest.mark.parametrize(("between", "within"), [(1.0, 0.0), (0.0, 1.0), (0.3, 2.0)])
def test_the_interval_has_the_variance_of_seeds_and_of_samples(between: float, within: float) -> None:
    rng = np.random.default_rng(1)
    seeds, samples = between * rng.normal(size=8), within * rng.normal(size=60)
    found = estimate(over(*(seed + samples for seed in seeds)), resamples=8000)
    # Of an additive layout: the unbiased variance of the mean over seeds, plus that over samples.
    expected = 1.96 * np.sqrt(seeds.var(ddof=1) / 8 + samples.var() / 60)
    assert (found.high - found.low) / 2 == pytest.approx(expected, rel=0.05)


def test_seeds_share_samples_and_objectives_the_seeds() -> None:
    noise = np.random.default_rng(2).normal(size=40)
    shared = estimate(over(noise, noise, noise, noise))
    # Four seeds on the same samples know no more of samples than one does.
    assert shared.high - shared.low == pytest.approx(2 * 1.96 * noise.std() / np.sqrt(40), rel=0.1)
    # A seed that is good at one objective is as bad at the other, so that seeds make no difference to the mean.
    opposed = SeedMean(tuple((*ratio(np.full(9, one)), *ratio(np.full(9, -one))) for one in (1.0, 2.0, 5.0)))
    assert estimate(opposed) == SeedEstimate(0.0, 0.0, 0.0, 3, (0.0, 0.0, 0.0))


def test_seeds_with_other_samples_draw_their_own() -> None:
    noise = np.random.default_rng(3).normal(size=400)
    own = estimate(over(noise[:200] - noise[:200].mean(), noise[200:] - noise[200:].mean(), noise[:199] * 0))
    assert own.seeds == 3
    assert own.value == pytest.approx(0, abs=1e-9)
    assert own.low < 0 < own.high


def test_a_contrast_draws_alike_for_both() -> None:
    rng = np.random.default_rng(4)
    arrays = [rng.uniform(1, 2, size=20) + 3 * seed for seed in range(3)]
    before, after = over(*arrays), over(*(0.5 * one for one in arrays))
    share = estimate(Contrast(after, before, avoided))
    assert (share.value, share.low, share.high) == pytest.approx((0.5, 0.5, 0.5))
    # Nothing to avoid in half of the resamples is the worst there is, and no number that is not one.
    nothing = estimate(Contrast(over([0.1], [0.1]), over([1.0], [0.0]), avoided))
    assert (nothing.value, nothing.low, nothing.high) == (pytest.approx(0.8), -np.inf, pytest.approx(0.9))


def test_outcomes_of_one_seed_are_averaged_before_seeds_are() -> None:
    outcomes = [{"k": ratio(np.full(5, level))} for level in (1.0, 3.0, 10.0)]
    found = over_seeds(outcomes, "k", [0, 0, 1])
    assert found is not None
    assert estimate(found) == SeedEstimate(6.0, 2.0, 10.0, 2, (2.0, 10.0))


def test_arms_are_compared_seed_by_seed_in_whatever_order() -> None:
    before = {("", seed): {"k": ratio(np.full(4, 10.0 * seed))} for seed in (0, 1, 2)}
    after = {("", seed): {"k": ratio(np.full(4, 10.0 * seed + 1))} for seed in (2, 0)}
    found = compared(after, before, "k")
    assert found is not None
    assert estimate(found) == SeedEstimate(1.0, 1.0, 1.0, 2, (1.0, 1.0))
    assert compared(after, {}, "k") is None
    assert compared(after, before, "other") is None


def test_an_estimate_repeats_itself_whatever_else_is_drawn() -> None:
    found = over(*np.random.default_rng(5).normal(size=(3, 20)))
    assert estimate(found) == estimate(found)
    assert estimate(found, seed=1) != estimate(found)


@pytest.mark.parametrize(
    ("one", "doubt"),
    [
        (SeedEstimate(1.0, 0.5, 1.5, 2), ""),
        (SeedEstimate(1.0, 0.9, 1.1, 2, (0.9, 1.1)), "2 seeds differ too much, so nothing is settled"),
        (SeedEstimate(-1.0, -1.05, -0.95, 2, (-1.05, -0.95)), ""),
        (SeedEstimate(1.0, 0.5, 1.5, 3, (0.9, 1.0, 1.1)), ""),
        (SeedEstimate(1.0, 0.5, 1.5, 3, (0.5, 1.0, 1.5)), "3 seeds differ too much, so nothing is settled"),
        (SeedEstimate(1.0, 0.5, 1.5, 2, (1.0, -np.inf)), "2 seeds differ too much, so nothing is settled"),
        (SeedEstimate(-1.0, -1.5, -0.5, 2), ""),
        (SeedEstimate(1.0, 0.5, 1.5, 1), "one seed, so nothing is settled"),
        (SeedEstimate(1.0, -0.5, 1.5, 2), "the interval holds zero, so nothing is settled"),
        (SeedEstimate(1.0, float("nan"), float("nan"), 2), "the interval holds zero, so nothing is settled"),
    ],
)
def test_a_sign_is_settled_by_interval_and_seeds_together(one: SeedEstimate, doubt: str) -> None:
    assert one.doubt == doubt


@pytest.mark.parametrize("count", [2, 3, 5])
def test_without_an_effect_few_differences_are_called_settled(count: int) -> None:
    """Seeds that differ and nothing to find: by intervals alone 49, 26 and 14 % of such differences would be."""
    rng = np.random.default_rng(7)
    trials = [estimate(over(*np.repeat(rng.normal(size=(count, 1)), 3, axis=1)), resamples=200) for _ in range(200)]
    wrong = sum(not one.doubt for one in trials)
    assert wrong <= 20
    assert sum(one.low > 0 or one.high < 0 for one in trials) > wrong


def test_an_effect_that_seeds_agree_on_is_settled() -> None:
    samples = np.random.default_rng(8).normal(size=60)
    found = estimate(over(samples + 1.0, samples + 1.02))
    assert found.doubt == ""
    assert found.by_seed == pytest.approx([samples.mean() + 1.0, samples.mean() + 1.02])
