"""How far the parameters of a forgetting law are known: intervals by bootstrap over runs, and standard errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from loralign.errors import DataError
from loralign.experiments.forgetting_law import (
    ALPHA_BOUNDS,
    BETA_BOUNDS,
    FloatArray,
    ForgettingRun,
    LawFit,
    check_counts,
    fit_law,
    on_bound,
)

RESAMPLES = 1000
_FEWEST = 100
"""Resamples that must have had a fit for an interval to be given."""
_FEWEST_DIFFERENT = 40
"""Of those, different ones: of fewer none is beyond an end of a 95 % interval on either side."""
_LARGEST_CONDITION = 1e6
_UPPER = 0.975
_BOUNDS = {"β": BETA_BOUNDS, "α": ALPHA_BOUNDS, "E": (0.0, math.inf)}


@dataclass(frozen=True)
class Parameter:
    """A fitted number.

    Attributes:
        name: ``A, plain``, ``β`` and so on; those of ``a`` are amplitudes.
        value: of the fit of all runs.
        low: end of its 95 % interval by bootstrap; NaN where too few resamples could be fitted.
        high: likewise.
        standard_error: from the curvature of the squares at the fit; NaN where that is not regular.
    """

    name: str
    value: float
    low: float = math.nan
    high: float = math.nan
    standard_error: float = math.nan


@dataclass(frozen=True, eq=False)
class LawEstimate:
    """A fit with its uncertainty.

    Attributes:
        fit: of all runs.
        runs: that it was fitted to.
        parameters: in the order amplitudes, A, β, α, E, ratios of A to the first group's, and where E is fitted those
            of all that is forgotten at the middle.
        resamples: number of resampled fits behind the intervals.
        units: number of independent ones among the runs.
    """

    fit: LawFit
    runs: tuple[ForgettingRun, ...]
    parameters: tuple[Parameter, ...]
    resamples: int
    units: int

    @property
    def has_intervals(self) -> bool:
        """Whether there were resamples enough for any."""
        return not math.isnan(self.parameter("β").low)

    @property
    def loose(self) -> bool:
        """Whether an exponent may be anything: the fit on a bound of its search, or an interval from end to end."""
        known = [one for one in self.parameters if one.name in ("β", "α")]
        return self.fit.bounded or any(
            on_bound(one.low, _BOUNDS[one.name]) and on_bound(one.high, _BOUNDS[one.name]) for one in known
        )

    @property
    def determined(self) -> bool:
        """Whether the runs tell both exponents apart from anything, which without an interval nobody knows."""
        return self.has_intervals and not self.loose

    def parameter(self, name: str) -> Parameter:
        """The parameter of this name."""
        return next(one for one in self.parameters if one.name == name)


def estimate_law(runs: Sequence[ForgettingRun], *, resamples: int = RESAMPLES, seed: int = 0) -> LawEstimate:
    """Fit the law and say how far its parameters are known.

    Units are resampled with replacement among those of one size, so that every resample has all sizes: how much models
    of other kinds would depart from the law is not in the intervals, least of all with two sizes. Resamples that no law
    can be fitted to are left out. Amplitudes of all are taken at the middle of the runs, not at the resample's own. The
    percentile intervals are widened by :func:`widening`, on a logarithmic scale for what is positive. Where units are
    so few that a law can be fitted to hardly any other choice of them than themselves, such as one seed of three
    amounts, there is no interval. Runs count alike, so where those that forget most also scatter most, the intervals
    are still too narrow.

    Args:
        runs: of one or more groups, the first of which is the reference.
        resamples: number of bootstrap resamples.
        seed: of the resampling; equal arguments give equal intervals.

    Raises:
        DataError: as :func:`~loralign.experiments.forgetting_law.fit_law`.
    """
    fit = fit_law(runs)
    resampled = _resampled(runs, fit, resamples, seed)
    drawn = [_values(one, fit.middle) for one, _ in resampled]
    different = len({choice for _, choice in resampled})
    errors = standard_errors(runs, fit)
    factor = widening(*degrees(runs))
    parameters = []
    for name, value in _values(fit, fit.middle).items():
        low, high = math.nan, math.nan
        if different >= _FEWEST_DIFFERENT:
            ends = _interval([one[name] for one in drawn])
            low, high = (widened(name, value, end, factor) for end in ends)
        parameters.append(Parameter(name, value, low, high, errors.get(name, math.nan)))
    return LawEstimate(fit, tuple(runs), tuple(parameters), len(drawn), degrees(runs)[0])


def degrees(runs: Sequence[ForgettingRun]) -> tuple[int, int]:
    """How many independent units the runs are, ``n``, and how many parameters the noise of a unit is fitted by, ``p``.

    Runs of a unit, such as one seed's plain and guarded ones, share noise, so that two of them are not two witnesses.
    Of a unit with a run of each of G groups take the mean of the runs and, orthogonal to it, their G − 1 contrasts.
    Shared noise is in the mean alone. Of the amplitudes the mean sees only their mean, so that what is fitted to the n
    means is one level, the exponents and E: ``p = free − (G − 1)``, and n − p degrees of freedom are left to the shared
    noise. The contrasts, which know the ratios, have as many or more; ratios are no freer than that all the same, as
    noise that adds alike to both arms moves the ratio of what they forget. Without shared noise the count is on the
    safe side. In general the amplitudes that means of units tell apart are as many as the rank of the matrix
    ``(units, groups)`` of how many runs of each group a unit has; of units of one run each it is G, and n and p are
    those of runs and all parameters.

    Raises:
        DataError: as :func:`~loralign.experiments.forgetting_law.check_counts`.
    """
    groups = list(dict.fromkeys(run.group for run in runs))
    sizes = _units(runs)
    units = [unit for size in sizes.values() for unit in size.values()]
    members = np.array([[sum(run.group == group for run in unit) for group in groups] for unit in units])
    absent = check_counts(len(runs), len(groups), len({run.amount for run in runs}), len(sizes))
    return len(units), int(np.linalg.matrix_rank(members)) + 3 - len(absent)


def widening(units: int, parameters: int) -> float:
    """By which percentile intervals of so many units are widened: ``√(n/(n−p)) · t₀.₉₇₅,ₙ₋ₚ / z₀.₉₇₅``.

    Resamples draw residuals, whose variance is (n − p)/n of that of new noise; and Student's t is to a normal
    distribution as an interval whose scale is taken from n − p degrees of freedom is to one whose scale is known.

    Args:
        units: ``n``, of :func:`degrees`.
        parameters: ``p``, likewise.

    Returns:
        The factor, at least 1; NaN with as many parameters as units.
    """
    spare = units - parameters
    if spare < 1:
        return math.nan
    return math.sqrt(units / spare) * float(stats.t.ppf(_UPPER, spare) / stats.norm.ppf(_UPPER))


def standard_errors(runs: Sequence[ForgettingRun], fit: LawFit) -> dict[str, float]:
    """Standard errors of the parameters from the Gauss–Newton matrix ``s² (JᵀJ)⁻¹`` at the fit, by name.

    Nothing where the problem is not regular there: as many parameters as runs, a parameter on its bound, or columns of
    ``J`` that are nearly one. Those of A and of the ratio follow by the delta method.
    """
    names, jacobian = _jacobian(runs, fit)
    spare = len(runs) - len(names)
    lengths = np.linalg.norm(jacobian, axis=0)
    empty = not all(fit.amplitudes.values()) or (fit.offset == 0 and "E" not in fit.absent)
    if spare < 1 or fit.bounded or empty or np.linalg.cond(jacobian / lengths) > _LARGEST_CONDITION:
        return {}
    unit = np.linalg.inv((jacobian / lengths).T @ (jacobian / lengths))
    covariance = float(np.sum(fit.residuals**2)) / spare * unit / np.outer(lengths, lengths)
    found = dict(zip(names, np.sqrt(np.diag(covariance)).tolist(), strict=True))
    reference = next(iter(fit.amplitudes))
    for group, value in fit.amplitudes.items():
        logarithmic = {_middle(group): 1 / value, "β": -math.log(fit.middle[0]), "α": math.log(fit.middle[1])}
        found[_own(group)] = fit.coefficient(group) * _delta(names, covariance, logarithmic)
        if group != reference:
            logarithmic = {_middle(group): 1 / value, _middle(reference): -1 / fit.amplitudes[reference]}
            found[ratio_name(group, reference)] = fit.ratio(group, reference) * _delta(names, covariance, logarithmic)
    return found


def _jacobian(runs: Sequence[ForgettingRun], fit: LawFit) -> tuple[list[str], FloatArray]:
    """Derivatives of the law by its free parameters at every run, ``(runs, free)``."""
    amount = np.array([run.amount for run in runs]) / fit.middle[0]
    size = np.array([run.size for run in runs]) / fit.middle[1]
    growth = amount**fit.beta * size**-fit.alpha
    grown = growth * np.array([fit.amplitudes[run.group] for run in runs])
    columns = {_middle(group): np.where([run.group == group for run in runs], growth, 0.0) for group in fit.amplitudes}
    columns |= {"β": grown * np.log(amount), "α": -grown * np.log(size), "E": np.ones(len(runs))}
    names = [name for name in columns if name not in fit.absent]
    return names, np.stack([columns[name] for name in names], axis=1)


def _delta(names: Sequence[str], covariance: FloatArray, gradient: dict[str, float]) -> float:
    vector = np.array([gradient.get(name, 0.0) for name in names])
    return float(np.sqrt(vector @ covariance @ vector))


_Choice = tuple[tuple[int, ...], ...]
"""The units of a resample, in order, of every size."""


def _resampled(runs: Sequence[ForgettingRun], fit: LawFit, resamples: int, seed: int) -> list[tuple[LawFit, _Choice]]:
    """Fits of resamples that hold all groups and determine all parameters, and which units they are of."""
    units = _units(runs)
    groups, generator = list(fit.amplitudes), np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        chosen: list[ForgettingRun] = []
        choice = []
        for one in units.values():
            pool = list(one.values())
            drawn = generator.integers(len(pool), size=len(pool)).tolist()
            choice.append(tuple(sorted(drawn)))
            chosen += [run for index in drawn for run in pool[index]]
        # Ratios are to the first group, whichever was drawn first.
        chosen.sort(key=lambda run: groups.index(run.group))
        try:
            resampled = fit_law(chosen, near=fit)
        except DataError:
            continue
        if resampled.absent == fit.absent and list(resampled.amplitudes) == groups:
            found.append((resampled, tuple(choice)))
    return found


def _units(runs: Sequence[ForgettingRun]) -> dict[float, dict[str, list[ForgettingRun]]]:
    """Runs by size and unit; one without a unit's name is a unit."""
    units: dict[float, dict[str, list[ForgettingRun]]] = {}
    for index, run in enumerate(runs):
        units.setdefault(run.size, {}).setdefault(run.unit or str(index), []).append(run)
    return units


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """Percentiles that are values of the sample, since a ratio may be infinite in some resamples."""
    known = [value for value in values if not math.isnan(value)]
    if len(known) < _FEWEST:
        return math.nan, math.nan
    low, high = np.quantile(known, [1 - _UPPER, _UPPER], method="inverted_cdf")
    return float(low), float(high)


def widened(name: str, value: float, end: float, factor: float) -> float:
    """An end of an interval, moved away from the value by a factor.

    Args:
        name: of the parameter; exponents and E are moved on a linear scale within their bounds, others on a logarithmic
            one. That has no place for zero, which is no forgetting: from there they are moved on a linear scale, and
            from infinity, where the reference forgets nothing, on that of the reciprocal.
        value: of the fit.
        end: of the interval.
        factor: of :func:`widening`.

    Returns:
        The end; NaN where value or factor is.
    """
    if math.isnan(factor) or math.isnan(value) or math.isnan(end):
        return math.nan
    if name in _BOUNDS:
        low, high = _BOUNDS[name]
        return min(max(value + factor * (end - value), low), high)
    if value == 0:
        return factor * end
    if math.isinf(value):
        return end / factor
    # The resamples of this end forget nothing, or their reference does: there is nothing further away.
    if not 0 < end < math.inf:
        return end
    with np.errstate(over="ignore"):
        return float(value * np.float64(end / value) ** factor)


def _values(fit: LawFit, middle: tuple[float, float]) -> dict[str, float]:
    """All numbers of a fit that have an interval, by name; amplitudes at this amount and size."""
    groups = list(fit.amplitudes)
    grown = replace(fit, offset=0.0)
    found = {_middle(group): float(grown.increment(group, *middle)) for group in groups}
    found |= {_own(group): fit.coefficient(group) for group in groups}
    found |= {"β": fit.beta, "α": fit.alpha, "E": fit.offset}
    found |= {ratio_name(group, groups[0]): fit.ratio(group, groups[0]) for group in groups[1:]}
    if "E" not in fit.absent:
        found |= {
            forgetting_name(group, groups[0]): fit.forgetting_ratio(group, groups[0], middle) for group in groups[1:]
        }
    return {name: value for name, value in found.items() if name not in fit.absent}


def _middle(group: str) -> str:
    return f"a, {group}"


def _own(group: str) -> str:
    return f"A, {group}"


def ratio_name(group: str, reference: str) -> str:
    """Name of the parameter that is the ratio of two groups' A."""
    return f"A {group} / A {reference}"


def forgetting_name(group: str, reference: str) -> str:
    """Name of the parameter that is the ratio of what two groups forget at the middle of the runs, E included."""
    return f"forgetting {group} / {reference}"
