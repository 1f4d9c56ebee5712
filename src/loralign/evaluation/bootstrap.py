"""Bootstrap intervals over pairs, deterministic from the seed."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy import stats

from loralign.evaluation.pairs import FloatArray

# Beyond this many pairs the correction of BCa is far below the interval's width, and its jackknife costs n² operations.
_MOST_FOR_BCA = 5000
# Indices drawn at once: 16 MiB.
_INDICES_AT_ONCE = 2**21


@dataclass(frozen=True)
class Estimate:
    """A value and its interval; low = value = high where the data do not vary or are a single pair."""

    value: float
    low: float
    high: float


class Sample(Protocol):
    """Something measured on pairs that can be recomputed on resampled ones."""

    @property
    def size(self) -> int:
        """Number of pairs."""

    def at(self, index: npt.NDArray[np.intp]) -> FloatArray:
        """The statistic of the pairs ``index`` ``(..., size)``, one for each row of indices."""


@dataclass(frozen=True, eq=False)
class Ratio:
    """Σ numerator / Σ denominator: a mean over pairs where the denominator is one, over tokens where it counts them.

    Args:
        numerator: ``(pairs,)``.
        denominator: ``(pairs,)``, positive.
    """

    numerator: FloatArray
    denominator: FloatArray

    @property
    def size(self) -> int:
        """Number of pairs."""
        return len(self.numerator)

    def at(self, index: npt.NDArray[np.intp]) -> FloatArray:
        """The ratio of the sums over the pairs ``index``."""
        ratio: FloatArray = self.numerator[index].sum(-1) / self.denominator[index].sum(-1)
        return ratio


@dataclass(frozen=True, eq=False)
class Difference:
    """``after`` minus ``before`` on the same pairs."""

    after: Ratio
    before: Ratio

    @property
    def size(self) -> int:
        """Number of pairs."""
        return self.after.size

    def at(self, index: npt.NDArray[np.intp]) -> FloatArray:
        """The difference of the two ratios, both over the pairs ``index``."""
        return self.after.at(index) - self.before.at(index)


def bootstrap_mean(
    samples: Sequence[Sample], *, confidence: float = 0.95, resamples: int = 5000, seed: int = 0
) -> Estimate:
    """The mean of the samples' statistics with its bootstrap interval; pairs are drawn within each sample.

    The interval is bias-corrected and accelerated (BCa), or of percentiles where BCa is not defined, as when every
    resample gives the same value, and beyond 5000 pairs. Data that do not vary give an interval of width zero: all
    answers right in a small sample is then less certain than the interval says.

    Args:
        samples: one for a plain estimate, several for their mean (a macro average); pairs of different samples are
            drawn independently. Samples of a single pair are held fixed.
        confidence: probability that the interval is to hold the true value.
        resamples: number of bootstrap resamples.
        seed: of the resampling; equal arguments give equal intervals.

    References:
        Efron, Better bootstrap confidence intervals, JASA 82 (1987).
    """
    value = float(np.mean([sample.at(np.arange(sample.size)) for sample in samples]))
    varied = [sample for sample in samples if sample.size > 1]
    fixed = float(sum(sample.at(np.arange(sample.size)) for sample in samples if sample.size == 1))
    if not varied:
        return Estimate(value, value, value)

    def statistic(*indices: npt.NDArray[np.intp], axis: int = -1) -> FloatArray:
        terms = [sample.at(np.moveaxis(index, axis, -1)) for sample, index in zip(varied, indices, strict=True)]
        return np.asarray((sum(terms) + fixed) / len(samples), dtype=np.float64)

    pairs = sum(sample.size for sample in varied)
    data = tuple(np.arange(sample.size) for sample in varied)
    options: dict[str, Any] = {
        "confidence_level": confidence,
        "batch": max(1, _INDICES_AT_ONCE // pairs),
        "vectorized": True,
        "axis": -1,
    }
    # A ratio may be infinite in some resamples, whose standard error, not used here, is then none.
    with np.errstate(invalid="ignore"):
        drawn = stats.bootstrap(
            data, statistic, method="percentile", n_resamples=resamples, rng=np.random.default_rng(seed), **options
        )
    interval = drawn.confidence_interval
    if np.ptp(drawn.bootstrap_distribution) > 0 and pairs <= _MOST_FOR_BCA:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            corrected = stats.bootstrap(
                data, statistic, method="BCa", n_resamples=0, bootstrap_result=drawn, **options
            ).confidence_interval
        if np.isfinite(corrected).all():
            interval = corrected
    return Estimate(value, float(interval.low), float(interval.high))
