"""The least strength of a repair whose measured drift is within a budget."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from loralign.errors import ConfigError, NonFiniteError


@dataclass(frozen=True)
class Trial:
    """One measurement: the strength, in ``[0, 1]``, and the drift that the repair of this strength leaves."""

    strength: float
    drift: float


@dataclass(frozen=True)
class Search:
    """Outcome of :func:`least_strength`.

    Attributes:
        chosen: the trial that the repair is to be left at.
        met: whether its drift is within the budget.
        trials: all of them, in their order; the first is of strength zero.
    """

    chosen: Trial
    met: bool
    trials: list[Trial]


def least_strength(
    drift_at: Callable[[float], float], budget: float, *, tolerance: float = 0.02, max_measurements: int = 8
) -> Search:
    """Bisect for the least strength that keeps the drift within ``budget`` (docs/adapting.md, Repair).

    Both ends are measured first. An adapter that is within the budget needs no repair, so strength zero is chosen;
    where the whole repair is not enough, strength one is the nearest thing and ``met`` is false. Between them every
    step halves the interval whose upper end is known to be within the budget and whose lower end is not. Were the drift
    monotone in the strength, this would end within ``tolerance`` of the least one; where it is not, what is chosen is
    still a strength that was measured to be within the budget, the least among those.

    Args:
        drift_at: applies the repair at a strength and measures.
        budget: largest drift wanted, in the unit of ``drift_at``.
        tolerance: width of the interval at which to stop.
        max_measurements: calls of ``drift_at``, at least two; it ends the search before ``tolerance`` does.

    Raises:
        ConfigError: a budget that is not positive and finite, a tolerance outside ``(0, 1)``, too few measurements.
        NonFiniteError: a drift that is infinite or not a number.
    """
    check_budget(budget, tolerance, max_measurements)
    trials: list[Trial] = []

    def within(strength: float) -> bool:
        trials.append(Trial(strength, finite_drift(drift_at(strength))))
        return trials[-1].drift <= budget

    if within(0.0):
        return Search(trials[0], True, trials)
    if not within(1.0):
        return Search(trials[1], False, trials)
    lower, best = 0.0, trials[1]
    while best.strength - lower > tolerance and len(trials) < max_measurements:
        middle = (lower + best.strength) / 2
        if within(middle):
            best = trials[-1]
        else:
            lower = middle
    return Search(best, True, trials)


def finite_drift(drift: float) -> float:
    """The drift itself.

    Raises:
        NonFiniteError: it is infinite or not a number.
    """
    value = float(drift)
    if not math.isfinite(value):
        raise NonFiniteError(
            f"the measured drift is {value}", fix="look for an adapter or a probe set that overflows the model"
        )
    return value


def check_budget(budget: float, tolerance: float = 0.02, max_measurements: int = 8) -> None:
    """Refuse what :func:`least_strength` cannot work with.

    Raises:
        ConfigError: see there.
    """
    if not (math.isfinite(budget) and budget > 0):
        raise ConfigError(
            f"drift budget {budget} is not a positive number", fix="give the drift that may remain, such as 0.05 nats"
        )
    if not 0 < tolerance < 1:
        raise ConfigError(f"tolerance {tolerance} is not between 0 and 1", fix="give a width such as 0.02")
    if max_measurements < 2:
        raise ConfigError(
            f"{max_measurements} measurements are too few", fix="allow at least the two ends, better eight"
        )
