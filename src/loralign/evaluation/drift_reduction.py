"""How much of another run's drift a run avoids: 1 − drift(this)/drift(other), with its interval where it has one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loralign.evaluation.bootstrap import Estimate, Ratio, bootstrap_mean
from loralign.evaluation.pairs import FloatArray

# The other run's drift has to be positive with this confidence before it may be divided by.
_CERTAIN = 0.999


@dataclass(frozen=True)
class Reduction:
    """The share of another run's drift that is avoided: 1 keeps everything, 0 loses as much, below 0 loses more.

    Args:
        value: None where the other run lost nothing on average, so that there is nothing to avoid.
        low: of the interval; None where the other run's drift cannot be told from zero, so that the ratio has none.
        high: likewise.
        note: empty, or why value or interval are missing.
    """

    value: float | None
    low: float | None
    high: float | None
    note: str = ""


@dataclass(frozen=True, eq=False)
class _Avoided:
    """1 − Σ losses / Σ other losses, a ratio of means over the same prompts."""

    losses: FloatArray
    others: FloatArray

    @property
    def size(self) -> int:
        return len(self.losses)

    def at(self, index: npt.NDArray[np.intp]) -> FloatArray:
        losses, others = self.losses[index].sum(-1), self.others[index].sum(-1)
        # A resample in which the other run loses nothing counts as the worst case instead of one with a random sign.
        share: FloatArray = np.where(others > 0, 1 - losses / np.where(others > 0, others, 1.0), -np.inf)
        return share


def drift_reduction(
    losses: FloatArray, others: FloatArray, *, confidence: float = 0.95, resamples: int = 5000, seed: int = 0
) -> Reduction:
    """The share of the drift of another run that this one avoids, over the same prompts in the same order.

    Args:
        losses: ``(prompts,)`` of this run against the baseline; positive is a loss.
        others: ``(prompts,)`` of the other run against the same baseline.
        confidence: of the interval.
        resamples: of the bootstrap over prompts, which draws the same prompts for both runs.
        seed: of the bootstrap.
    """
    mean = float(others.mean())
    if mean <= 0:
        return Reduction(None, None, None, f"the second run lost nothing (its drift is {mean:.4g}): nothing to reduce")
    certain = max(confidence, _CERTAIN)
    drift = bootstrap_mean([Ratio(others, np.ones_like(others))], confidence=certain, resamples=resamples, seed=seed)
    value = float(1 - losses.mean() / mean)
    if drift.low <= 0 or len(others) == 1:
        note = (
            f"the second run's drift, {mean:.4g}, cannot be told from zero "
            f"({100 * certain:g} % interval {drift.low:.4g} to {drift.high:.4g}): the reduction is unstable"
        )
        return Reduction(value, None, None, note)
    found: Estimate = bootstrap_mean([_Avoided(losses, others)], confidence=confidence, resamples=resamples, seed=seed)
    return Reduction(found.value, found.low, found.high)
