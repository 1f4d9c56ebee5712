"""From which value of a factor on more of it does not help, and from which on it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from loralign.evaluation.bootstrap import Estimate
from loralign.experiments.experiment import ArmResult
from loralign.experiments.outcomes import difference, estimate, measure, over_seeds

Changes = Mapping[tuple[int, int], Estimate]
"""By the indices of a smaller and of a larger value, what the larger gives more of; positive is better."""


def changes(results: Sequence[ArmResult], key: str) -> dict[tuple[int, int], Estimate]:
    """Paired differences in one measure of every larger value to every smaller, with 95 % intervals over samples.

    Args:
        results: one for each value, ascending.
        key: of the measure; where less of it is better, the sign is turned.

    Returns:
        Without the pairs that cannot be paired: a value without cells, or other samples.
    """
    samples = [over_seeds(result.outcomes, key) for result in results]
    found = {}
    for earlier, later in combinations(range(len(results)), 2):
        before, after = samples[earlier], samples[later]
        if before is None or after is None:
            continue
        paired = difference(after, before) if measure(key).higher else difference(before, after)
        if paired is not None:
            found[earlier, later] = estimate(paired)
    return found


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
