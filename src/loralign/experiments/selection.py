"""Choosing among arms: the best in one measure of those that keep within limits in others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from loralign.errors import ConfigError
from loralign.evaluation.bootstrap import Estimate
from loralign.experiments.finding import ArmScore
from loralign.experiments.outcomes import measure

Known = dict[str, dict[str, Estimate]]
"""Estimates by arm and measure."""


@dataclass(frozen=True)
class Limit:
    """What an arm must keep to: at most so much of a measure of which less is better, at least so much of the others.

    Attributes:
        measure: its key.
        bound: itself allowed.
    """

    measure: str
    bound: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.bound):
            raise ConfigError(f"{self.bound} is no bound", place=measure(self.measure).title, fix="give a number")

    def excess(self, value: float) -> float:
        """By how much a value is beyond the bound; 0 or less is within."""
        return self.bound - value if measure(self.measure).higher else value - self.bound

    def __str__(self) -> str:
        one = measure(self.measure)
        return f"{one.title} {'≥' if one.higher else '≤'} {self.bound:g}"


def estimates(scores: Sequence[ArmScore]) -> Known:
    """Estimates by arm and measure, in the order of the arms."""
    found: Known = {}
    for one in scores:
        found.setdefault(one.arm, {})[one.measure] = one.value
    return found


def best_within(known: Known, limits: Sequence[Limit], key: str) -> str | None:
    """The arm with the best value of a measure among those whose values keep to every limit; the first of equals.

    Args:
        known: of :func:`estimates`.
        limits: that its values, not their intervals, must keep to; an arm without the measure does not.
        key: of the measure that decides.

    Returns:
        Its name, or ``None`` where no arm keeps to the limits.
    """
    sign = 1.0 if measure(key).higher else -1.0
    within = [
        arm
        for arm, values in known.items()
        if key in values and all(one.measure in values and one.excess(values[one.measure].value) <= 0 for one in limits)
    ]
    return max(within, key=lambda arm: sign * known[arm][key].value, default=None)


def nearest(known: Known, limits: Sequence[Limit]) -> str | None:
    """The arm whose worst excess, as a share of the bound, is least.

    Args:
        known: of :func:`estimates`.
        limits: at least one; an arm that lacks a measure of them does not count.
    """

    def worst(arm: str) -> float:
        values = known[arm]
        return max(one.excess(values[one.measure].value) / (abs(one.bound) or 1.0) for one in limits)

    measured = [arm for arm, values in known.items() if all(one.measure in values for one in limits)]
    return min(measured, key=worst, default=None)
