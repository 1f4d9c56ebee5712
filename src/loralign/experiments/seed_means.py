"""Means over seeds of what was measured on samples, compared seed by seed, with intervals over seeds and samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student_t

from loralign.evaluation.bootstrap import Estimate, Sample, bootstrap_mean
from loralign.evaluation.pairs import FloatArray

Index = npt.NDArray[np.intp]
Samples = tuple[Sample, ...]
"""Several stand for the mean of their statistics."""
Form = Callable[[FloatArray, FloatArray], FloatArray]
Units = Mapping[tuple[str, int], Mapping[str, Samples]]
"""What cells found, by measure, under what cells of two arms have in common: a group (often the only) and a seed."""

RESAMPLES = 2000
_ENDS = (0.025, 0.975)
# Indices drawn at once: 16 MiB.
_INDICES_AT_ONCE = 2**21


@dataclass(frozen=True)
class SeedEstimate(Estimate):
    """A mean over seeds with its 95 % interval.

    Attributes:
        seeds: how many; the interval of one knows of samples only.
        by_seed: what each seed found, in the order of the seeds; empty where that is not known.
    """

    seeds: int = 1
    by_seed: tuple[float, ...] = ()

    @property
    def doubt(self) -> str:
        """Why its sign is not settled, for after a colon; empty where it is.

        The interval tells how much samples vary. Of few seeds it knows too little: of two it lies between their two
        values, so that without any effect half of all intervals leave zero out. Therefore the seeds' own values must
        settle the sign as well, by Student's t interval of their mean.
        """
        if not (self.low > 0 or self.high < 0):
            return "the interval holds zero, so nothing is settled"
        if self.seeds < 2:
            return "one seed, so nothing is settled"
        return "" if _seeds_agree(self.by_seed) else f"{self.seeds} seeds differ too much, so nothing is settled"


@dataclass(frozen=True, eq=False)
class SampleMean:
    """Mean of several statistics of the same samples, which a resample draws alike for all of them.

    Args:
        parts: the statistics, all of one size.
    """

    parts: Sequence[Sample]

    @property
    def size(self) -> int:
        """Number of samples."""
        return self.parts[0].size

    def at(self, index: Index) -> FloatArray:
        """The mean of the statistics of the samples ``index``."""
        mean: FloatArray = np.mean([one.at(index) for one in self.parts], axis=0)
        return mean


@dataclass(frozen=True, eq=False)
class SeedMean:
    """Mean over seeds of one measure.

    Args:
        seeds: what each seed found, in the order of the seeds.
    """

    seeds: tuple[Samples, ...]

    @property
    def sizes(self) -> tuple[tuple[int, ...], ...]:
        """Numbers of samples of every seed; where they are alike, the seeds share the samples."""
        return tuple(tuple(sample.size for sample in samples) for samples in self.seeds)

    def at(self, drawn: Index, index: Sequence[Sequence[Index]]) -> FloatArray:
        """The mean over the seeds ``drawn`` ``(..., k)`` on the samples ``index``, by seed, ``(..., size)`` each."""
        single = [
            sum(sample.at(chosen) for sample, chosen in zip(samples, own, strict=True)) / len(samples)
            for samples, own in zip(self.seeds, index, strict=True)
        ]
        values = np.stack([np.broadcast_to(one, drawn.shape[:-1]) for one in single], axis=-1)
        mean: FloatArray = np.take_along_axis(values, drawn, axis=-1).mean(-1)
        return mean

    def single(self) -> list[Samples]:
        """Every seed alone."""
        return list(self.seeds)


@dataclass(frozen=True, eq=False)
class Contrast:
    """Two means over the same seeds and samples, put together in every resample.

    Args:
        after: the one.
        before: the other, of the same sizes.
        form: of both means, such as their difference.
    """

    after: SeedMean
    before: SeedMean
    form: Form = np.subtract

    @property
    def sizes(self) -> tuple[tuple[int, ...], ...]:
        """As of either."""
        return self.after.sizes

    def at(self, drawn: Index, index: Sequence[Sequence[Index]]) -> FloatArray:
        """The form of both means over the seeds ``drawn`` on the samples ``index``."""
        return self.form(self.after.at(drawn, index), self.before.at(drawn, index))

    def single(self) -> list[Samples]:
        """Every seed alone, sample by sample."""
        return [
            tuple(_Pair(one, other, self.form) for one, other in zip(after, before, strict=True))
            for after, before in zip(self.after.seeds, self.before.seeds, strict=True)
        ]


OverSeeds = SeedMean | Contrast


def over_seeds(
    outcomes: Sequence[Mapping[str, Samples]], key: str, seeds: Sequence[int] | None = None
) -> SeedMean | None:
    """The mean over seeds of one measure, or ``None`` where an outcome does not have it.

    Args:
        outcomes: by measure.
        key: of the measure.
        seeds: of the outcomes, those of one seed being averaged first; by default each is of another.
    """
    parts = [one.get(key) for one in outcomes]
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return None
    by_seed: dict[int, list[Samples]] = {}
    for seed, part in zip(range(len(known)) if seeds is None else seeds, known, strict=True):
        by_seed.setdefault(seed, []).append(part)
    return SeedMean(tuple(_averaged(parts) for parts in by_seed.values()))


def compared(after: Units, before: Units, key: str, form: Form = np.subtract) -> Contrast | None:
    """One measure of two arms put together, over the seeds (and groups) that both have.

    Returns:
        ``None`` where they have none in common, one of those lacks the measure, or the samples are not the same in
        number.
    """
    common = [unit for unit in before if unit in after]
    seeds = [seed for _, seed in common]
    one, other = (over_seeds([units[unit] for unit in common], key, seeds) for units in (after, before))
    return None if one is None or other is None or one.sizes != other.sizes else Contrast(one, other, form)


def avoided(after: FloatArray, before: FloatArray) -> FloatArray:
    """``1 − after/before``, the share of a loss that is avoided; the worst there is where there was none to avoid."""
    share: FloatArray = np.where(before > 0, 1 - after / np.where(before > 0, before, 1.0), -np.inf)
    return share


def value(found: Samples | OverSeeds) -> float:
    """The mean alone."""
    over = SeedMean((found,)) if isinstance(found, tuple) else found
    every = [[np.arange(size) for size in sizes] for sizes in over.sizes]
    return float(over.at(np.arange(len(over.sizes)), every))


def estimate(found: Samples | OverSeeds, *, seed: int = 0, resamples: int = RESAMPLES) -> SeedEstimate:
    """The mean with its 95 % bootstrap interval over seeds and samples.

    Of one seed the interval is that of :func:`~loralign.evaluation.bootstrap.bootstrap_mean`, over samples. Of more,
    every resample draws samples and, independently, seeds, both with replacement (a pigeonhole bootstrap of seeds ×
    samples), and the interval is of percentiles. Seeds that have as many samples share them, and those that do not
    draw their own. One seed fewer is drawn than there are: means of n draws out of n vary by the factor (n − 1)/n too
    little, which of two seeds is half of the variance. Two or three seeds are still too few for 95 %, so that
    :attr:`SeedEstimate.doubt` asks the seeds themselves as well.

    Args:
        found: what to estimate.
        seed: of the resampling; equal arguments give equal intervals.
        resamples: how many.

    References:
        Owen, The pigeonhole bootstrap, Annals of Applied Statistics 1 (2007); McCarthy & Snowden, The Bootstrap and
        Finite Population Sampling (1985), for drawing n − 1 of n.
    """
    over = SeedMean((found,)) if isinstance(found, tuple) else found
    count = len(over.sizes)
    if count == 1:
        known = bootstrap_mean(over.single()[0], seed=seed, resamples=resamples)
        return SeedEstimate(known.value, known.low, known.high)
    # Percentiles that are values of the sample, since a share may be infinite in some resamples.
    low, high = np.quantile(_resampled(over, seed, resamples), _ENDS, method="inverted_cdf")
    return SeedEstimate(value(over), float(low), float(high), count, tuple(value(one) for one in over.single()))


def _seeds_agree(values: tuple[float, ...]) -> bool:
    """Whether Student's 95 % interval of the values' mean leaves zero out."""
    if not values:
        return True
    if not np.isfinite(values).all():
        return False
    margin = student_t.ppf(_ENDS[1], len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return bool(abs(np.mean(values)) > margin)


def _averaged(parts: Sequence[Samples]) -> Samples:
    """Several outcomes of one seed as one; on the same samples where they have as many."""
    if len({tuple(sample.size for sample in part) for part in parts}) > 1:
        return tuple(chain.from_iterable(parts))
    return tuple(SampleMean(column) for column in zip(*parts, strict=True)) if len(parts) > 1 else parts[0]


def _resampled(found: OverSeeds, seed: int, resamples: int) -> FloatArray:
    """Values of resamples, ``(resamples,)``."""
    generator = np.random.default_rng(seed)
    count, shared = len(found.sizes), len(set(found.sizes)) == 1
    populations = found.sizes[:1] if shared else found.sizes
    batch = max(1, _INDICES_AT_ONCE // sum(chain.from_iterable(found.sizes)))
    values = []
    for start in range(0, resamples, batch):
        rows = min(batch, resamples - start)
        drawn = generator.integers(count, size=(rows, count - 1))
        index = [[generator.integers(size, size=(rows, size)) for size in sizes] for sizes in populations]
        values.append(found.at(drawn, index * count if shared else index))
    return np.concatenate(values)


@dataclass(frozen=True, eq=False)
class _Pair:
    after: Sample
    before: Sample
    form: Form

    @property
    def size(self) -> int:
        return self.after.size

    def at(self, index: Index) -> FloatArray:
        return self.form(self.after.at(index), self.before.at(index))
