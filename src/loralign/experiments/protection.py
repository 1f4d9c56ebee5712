"""What the values of one factor do to protection and task gain, in tables and in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from loralign.experiments.experiment import Arm, ArmResult
from loralign.experiments.factors import FACTORS, ORDERED, Factors, Setting, settings_with
from loralign.experiments.finding import ArmScore, estimate_text
from loralign.experiments.outcomes import measure
from loralign.experiments.saturation import changes, differences, first_fall, saturation
from loralign.experiments.seed_means import SeedEstimate

GAIN = "task_gain"
_RETENTION, _DRIFT = "retention", "drift"
_FEWEST = 10
"""Refusals of the start that what is left of them must be a share of to say anything."""


@dataclass(frozen=True, eq=False)
class FactorResult:
    """One factor.

    Attributes:
        factor: which.
        results: one for each value that has finished cells, named by it, ascending where values have an order; in a
            full grid with the cells of all arms that have the value, grouped by the other factors.
        protection: measure of it, ``retention``, or ``drift`` where no answers were judged or the start refused too
            few prompts.
    """

    factor: str
    results: tuple[ArmResult, ...]
    protection: str

    def sentences(self) -> list[str]:
        """Where protection saturates and task gain falls; of projections, how they differ."""
        if len(self.results) < 2:
            return []
        names = [result.arm.name for result in self.results]
        better, gain = changes(self.results, self.protection), changes(self.results, GAIN)
        protection = f"protection ({measure(self.protection).title})"
        if self.factor not in ORDERED:
            found = better.get((0, 1))
            if found is None:
                return []
            by = estimate_text(found, sign=True)
            told = f": {found.doubt}" if found.doubt else ", settled"
            return [f"{self.factor}: {protection} is better by {by} with {names[1]} than with {names[0]}{told}."]
        index, fall = saturation(len(names), better), first_fall(len(names), gain)
        if index == len(names) - 1:
            text = f"{self.factor}: {protection} still improves at the largest value, {names[-1]}"
        elif index == 0:
            text = (
                f"{self.factor}: no value up to {names[-1]} is seen to improve {protection} on the smallest, {names[0]}"
            )
        else:
            text = f"{self.factor}: {protection} saturates at {names[index]}"
        text += f"; task gain {'is not seen to fall' if fall is None else f'falls from {names[fall]} on'}"
        return [f"{text}{_doubt([*better.values(), *gain.values()])}."]

    def differences(self) -> list[ArmScore]:
        """What the sentences rest on: protection and task gain of every value against every smaller or earlier one."""
        return [one for key in (self.protection, GAIN) for one in differences(self.results, key).values()]

    def lacking(self) -> list[str]:
        """A sentence where values do not have the same cells, of which only the common ones are compared."""
        if len({frozenset(result.units) for result in self.results}) < 2:
            return []
        return [
            f"{self.factor}: some values lack seeds or settings that others have; each two are compared over those "
            "that both have."
        ]


def _doubt(found: Sequence[SeedEstimate]) -> str:
    if not found:
        return "; no two values can be compared"
    if min(one.seeds for one in found) < 2:
        return "; some are compared over one seed, so nothing is settled"
    # Only where a difference was taken for one.
    unsure = any(one.doubt for one in found if one.low > 0 or one.high < 0)
    return "; in some the seeds differ too much for their number, so nothing is settled" if unsure else ""


def factor_results(
    results: Sequence[ArmResult], chosen: Sequence[Setting], factors: Factors, own: Setting
) -> list[FactorResult]:
    """Arms gathered by the values of every factor that has some.

    Args:
        results: of the settings, by name.
        chosen: the settings.
        factors: the values.
        own: the recipe's.
    """
    known = {result.arm.name: result for result in results}
    judged = all(
        _RETENTION in outcome and all(one.size >= _FEWEST for one in outcome[_RETENTION])
        for result in results
        for outcome in result.outcomes
    )
    found = []
    for factor in FACTORS:
        gathered = []
        for value in factors.of(factor):
            arms = [(one, known[one.name]) for one in settings_with(chosen, own, factor, value) if one.name in known]
            cells = tuple(cell for _, arm in arms for cell in arm.cells)
            outcomes = tuple(outcome for _, arm in arms for outcome in arm.outcomes)
            if outcomes:
                groups = tuple(_others(one, factor) for one, arm in arms for _ in arm.cells)
                gathered.append(ArmResult(Arm(str(value)), cells, outcomes, groups=groups))
        if gathered:
            found.append(FactorResult(factor, tuple(gathered), _RETENTION if judged else _DRIFT))
    return found


def _others(setting: Setting, factor: str) -> str:
    """The setting's other factors."""
    return replace(setting, **{factor: None}).name
