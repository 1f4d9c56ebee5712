"""Statistics of samples that are no mean over all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loralign.evaluation.bootstrap import Ratio
from loralign.evaluation.pairs import FloatArray


def kept_share(before: FloatArray, after: FloatArray) -> Ratio | None:
    """The share of what there was before that is still there, ``Σ after·before / Σ before``, 0 to 1.

    What is there now but was not before counts nothing. Resamples are drawn among the samples that had something to
    keep, as their number is the start's and the same for all arms: so there is none without any.

    Args:
        before: ``(samples,)``, 0 to 1.
        after: ``(samples,)``, 0 to 1.

    Returns:
        ``None`` where there was nothing to keep.
    """
    there = before > 0
    return Ratio((after * before)[there], before[there]) if there.any() else None


@dataclass(frozen=True, eq=False)
class Lowest:
    """The lowest of the means of several groups, found anew in every resample.

    Resamples are drawn from all groups together; a group that one misses is left out of it.

    Args:
        values: ``(samples,)``.
        groups: ``(samples,)``, the number of the group of each, from 0.
    """

    values: FloatArray
    groups: npt.NDArray[np.intp]

    @classmethod
    def of(cls, ratios: Mapping[str, Ratio]) -> Lowest:
        """Of means by group, whose denominators are one."""
        sizes = [one.size for one in ratios.values()]
        return cls(np.concatenate([one.numerator for one in ratios.values()]), np.repeat(np.arange(len(sizes)), sizes))

    @property
    def size(self) -> int:
        """Number of samples."""
        return len(self.values)

    def at(self, index: npt.NDArray[np.intp]) -> FloatArray:
        """The lowest mean of the samples ``index``."""
        values, groups = self.values[index], self.groups[index]
        lowest = np.full(index.shape[:-1], np.inf)
        for group in range(int(self.groups.max()) + 1):
            member = groups == group
            count = member.sum(-1)
            mean = np.where(member, values, 0.0).sum(-1) / np.maximum(count, 1)
            lowest = np.where(count > 0, np.minimum(lowest, mean), lowest)
        return lowest
