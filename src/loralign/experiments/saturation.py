"""From which value of a factor on more of it does not help, and from which on it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from loralign.evaluation.bootstrap import Estimate
from loralign.experiments.experiment import ArmResult
from loralign.experiments.finding import ArmScore
from loralign.experiments.outcomes import measure
from loralign.experiments.seed_means import SeedEstimate, compared

Changes = Mapping[tuple[int, int], Estimate]
"""By the indices of a smaller and of a larger value, what the larger gives more of; positive is better."""


def differences(results: Sequence[ArmResult], key: str) -> dict[tuple[int, int], ArmScore]:
    """Differences in one measure of every larger value to every smaller, over the seeds that both have.

    Args:
        results: one for each value, ascending.
        key: of the measure.

    Returns:
        By the indices of both, under the larger value's name. Without the pairs that cannot be paired: a value without
        cells, no seed in common, or other samples.
    """
    found = {}
    for (earlier, before), (later, after) in combinations(enumerate(results), 2):
        both = compared(after.units, before.units, key)
        if both is not None:
            found[earlier, later] = ArmScore.of(after.arm.name, key, both, before.arm.name)
    return found


def changes(results: Sequence[ArmResult], key: str) -> dict[tuple[int, int], SeedEstimate]:
    """The same with their 95 % intervals alone, and the sign turned where less of the measure is better."""
    sign = 1 if measure(key).higher else -1
    return {pair: _times(sign, one.value) for pair, one in differences(results, key).items()}


def _times(sign: int, one: SeedEstimate) -> SeedEstimate:
    low, high = sorted((sign * one.low, sign * one.high))
    return SeedEstimate(sign * one.value, low, high, one.seeds, tuple(sign * found for found in one.by_seed))


def saturation(count: int, improvement: Changes) -> int:
    """Index of the smallest value that no larger one improves on by more than the interval of their difference.

    The smallest ``i`` such that for every ``j > i`` the 95 % interval of ``protection(j) - protection(i)`` holds zero
    or lies below it. The last value always does, which says nothing: where it is the first to, protection still rises
    at the end of what was tried. Wide intervals make it small, so a saturation is only as sure as they are narrow.

    Args:
        count: of values.
        improvement: of protection.
    """
    for index in range(count):
        later = [improvement.get((index, other)) for other in range(index + 1, count)]
        if not any(one is not None and one.low > 0 for one in later):
            return index
    return count - 1


def first_fall(count: int, gain: Changes) -> int | None:
    """Index of the smallest value whose task gain is below that of a smaller value by more than their interval.

    Args:
        count: of values.
        gain: differences of task gain.

    Returns:
        ``None`` where none is.
    """
    for index in range(count):
        earlier = [gain.get((other, index)) for other in range(index)]
        if any(one is not None and one.high < 0 for one in earlier):
            return index
    return None
