"""What budgets and fixed weights found, budget by budget: tables, a chart and a sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loralign.evaluation.bootstrap import Estimate
from loralign.experiments.experiment import ArmResult
from loralign.experiments.facts import ONE_SEED, interval_note, minutes, most_seeds, run_facts
from loralign.experiments.finding import (
    ArmScore,
    Finding,
    arm_scores,
    axes,
    difference_to,
    estimate_text,
    failure_notes,
    nothing_finished,
    score_columns,
    score_table,
    trade_points,
)
from loralign.experiments.outcomes import LEGEND
from loralign.experiments.selection import Known, Limit, best_within, estimates
from loralign.report.experiment import ExperimentPage
from loralign.report.families import Family, families_chart
from loralign.report.format import listing, significant, whole_percent
from loralign.report.theme import Chart, Table
from loralign.report.trade import TradePoint

_DRIFT, _GAIN = "drift", "task_gain"
WEIGHTS = ("lambda_alignment", "lambda_stability", "lambda_collision")
"""Fields of the penalties' weights, which a factor multiplies alike, as a budget does."""


@dataclass(frozen=True)
class BudgetRow:
    """One budget.

    Attributes:
        budget: in nats per token.
        drift: that the controller attained.
        gain: of the task.
        met: ``yes`` where every seed kept to the budget, ``on average`` where only their mean did, or ``no``.
        best: the fixed arm with the largest gain among those whose drift keeps to the budget.
        best_drift: of that.
        best_gain: of that.
        difference: in gain, the controller's minus that of the best fixed arm, paired.
    """

    budget: float
    drift: Estimate
    gain: Estimate
    met: str
    best: str | None = None
    best_drift: Estimate | None = None
    best_gain: Estimate | None = None
    difference: ArmScore | None = None

    @property
    def used(self) -> float:
        """The share of the budget that the drift is."""
        return self.drift.value / self.budget


def against_sweep(held: Sequence[ArmResult], fixed: Sequence[ArmResult]) -> Finding:
    """Budget by budget, what the controller attained and the best fixed weights that keep to it, with a chart.

    An arm with a failed seed is left out of the comparison and named in the remarks.

    Args:
        held: arms with a budget.
        fixed: arms without, of one common factor of the weights each.

    Raises:
        ConfigError: no arm of a budget has finished.
    """
    results = [*held, *fixed]
    scores = arm_scores([one for one in results if one.outcomes and not one.failures])
    known = estimates(scores)
    rows = budget_rows(held, fixed, scores)
    if not rows:
        raise nothing_finished(results, "controller", "no arm with a budget has finished")
    finished = sum(one.arm.name in known for one in fixed)
    page = ExperimentPage(
        title="controller",
        headline=_headline(rows, len(held), finished) + (f" {ONE_SEED}" if most_seeds(results) < 2 else ""),
        facts=_facts(held, fixed),
        tables=[("Budget by budget", _table(rows, finished)), ("All arms", score_table(scores))],
        charts=[_chart(held, fixed, known, [row.budget for row in rows])],
        notes=[*failure_notes(results), *_slack(rows, fixed, known), *_remarks(results, len(fixed)), LEGEND],
    )
    differences = [row.difference for row in rows if row.difference is not None]
    return Finding(page, _columns([*scores, *differences], results))


def budget_rows(held: Sequence[ArmResult], fixed: Sequence[ArmResult], scores: Sequence[ArmScore]) -> list[BudgetRow]:
    """What the controller attained at every budget, and the best fixed arm that keeps to it.

    Args:
        held: arms with a budget.
        fixed: arms without.
        scores: of those of them that are to count.
    """
    known = estimates(scores)
    highest = {one.arm: one.highest for one in scores if one.measure == _DRIFT}
    return [_row(one, fixed, known, highest[one.arm.name]) for one in held if one.arm.name in known]


def _row(held: ArmResult, fixed: Sequence[ArmResult], known: Known, highest: float) -> BudgetRow:
    budget = float(held.arm.overrides["drift_budget"])
    drift, gain = known[held.arm.name][_DRIFT], known[held.arm.name][_GAIN]
    met = "yes" if highest <= budget else "on average" if drift.value <= budget else "no"
    candidates = {one.arm.name: known[one.arm.name] for one in fixed if one.arm.name in known}
    best = best_within(candidates, [Limit(_DRIFT, budget)], _GAIN)
    if best is None:
        return BudgetRow(budget, drift, gain, met)
    difference = difference_to([held, *fixed], best, _GAIN).get(held.arm.name)
    return BudgetRow(budget, drift, gain, met, best, candidates[best][_DRIFT], candidates[best][_GAIN], difference)


def _table(rows: Sequence[BudgetRow], runs: int) -> Table:
    headings = (
        *("budget", "drift attained", "used", "met", "task gain", "best fixed λ", "its drift", "its task gain"),
        *("gain, controller − fixed", "runs, controller", "runs, sweep"),
    )
    return Table(headings, tuple(_cells(row, runs) for row in rows))


def _cells(row: BudgetRow, runs: int) -> tuple[str, ...]:
    return (
        f"{row.budget:g}",
        estimate_text(row.drift),
        whole_percent(row.used),
        row.met,
        estimate_text(row.gain),
        row.best or "none keeps to it",
        _text(row.best_drift),
        _text(row.best_gain),
        _text(None if row.difference is None else row.difference.value, sign=True),
        "1",
        str(runs),
    )


def _text(found: Estimate | None, *, sign: bool = False) -> str:
    return "" if found is None else estimate_text(found, sign=sign)


def _headline(rows: Sequence[BudgetRow], budgets: int, runs: int) -> str:
    """How many budgets either met, how much of them was used, and what the controller gained where both met one."""
    met = sum(row.met != "no" for row in rows)
    found = sum(row.best is not None for row in rows)
    both = [row.difference.value for row in rows if row.met != "no" and row.difference is not None]
    settled = [one for one in both if not one.doubt]
    more, less = sum(one.low > 0 for one in settled), sum(one.high < 0 for one in settled)
    # A budget whose own run failed is in no row, so that nothing is known of what the fixed ones did there.
    of = f" of {len(rows)}" if len(rows) < budgets else ""
    text = (
        f"The controller met {met} of {budgets} budgets with one run each, drifting by {_shares(rows)} of them; the "
        f"best of {runs} fixed weights met {found}{of}."
    )
    if not both:
        return f"{text} There is no budget that both met."
    return (
        f"{text} Of the {len(both)} that both met, the controller's task gain is higher in {more}, lower in {less}, "
        f"and not told apart in {len(both) - more - less}."
    )


def _shares(rows: Sequence[BudgetRow]) -> str:
    used = sorted(row.used for row in rows)
    low, high = whole_percent(used[0]), whole_percent(used[-1])
    return low if low == high else f"{low} to {high}"


def _slack(rows: Sequence[BudgetRow], fixed: Sequence[ArmResult], known: Known) -> list[str]:
    """Budgets that ask for nothing, since training without a guard keeps to them too."""
    free = [one for one in fixed if one.arm.name in known and not any(one.arm.overrides[name] for name in WEIGHTS)]
    if not free:
        return ["Without a factor of 0 nothing says which budgets training without a guard would keep to as well."]
    drift = known[free[0].arm.name][_DRIFT].value
    slack = [f"{row.budget:g}" for row in rows if drift <= row.budget]
    if not slack:
        return []
    ask = "asks" if len(slack) == 1 else "ask"
    return [f"Without a guard drift is {significant(drift)}, so that {listing(slack)} {ask} for nothing."]


def _facts(held: Sequence[ArmResult], fixed: Sequence[ArmResult]) -> list[tuple[str, str]]:
    return [
        ("Budgets", str(len(held))),
        ("Fixed weights", str(len(fixed))),
        *run_facts([*held, *fixed]),
        ("Time under a budget", minutes(held)),
        ("Time of the sweep", minutes(fixed)),
    ]


def _chart(held: Sequence[ArmResult], fixed: Sequence[ArmResult], known: Known, budgets: Sequence[float]) -> Chart:
    across, up = axes(_DRIFT, _GAIN)
    families = [
        Family("controller", _points(held, known)),
        Family("fixed λ", _points(fixed, known)),
    ]
    note = "Dotted lines are the budgets: a point of the controller belongs left of its own, and close to it."
    return families_chart(families, across, up, key="controller", marks=budgets, note=note)


def _points(results: Sequence[ArmResult], known: Known) -> list[TradePoint]:
    return trade_points({one.arm.name: known[one.arm.name] for one in results if one.arm.name in known}, _DRIFT, _GAIN)


def _remarks(results: Sequence[ArmResult], runs: int) -> list[str]:
    return [
        f"Runs are for each seed. A budget known beforehand takes one; the sweep's {runs} serve every budget, and say "
        "which weights keep to one only when they have all ended.",
        "A budget is met on average where the mean over seeds keeps to it but some seed does not. The best fixed λ "
        "is chosen by its measured drift and gain, so it is flattered.",
        "Drift is measured on the probe that the controller steers by.",
        interval_note(results),
    ]


def _columns(scores: Sequence[ArmScore], results: Sequence[ArmResult]) -> dict[str, list[Any]]:
    """Columns of the scores and of what the arms were told; a budget or weight that an arm has not is NaN."""
    told = {one.arm.name: one.arm.overrides for one in results}
    columns = score_columns(scores)
    for name in dict.fromkeys(name for overrides in told.values() for name in overrides):
        values = [told[one.arm].get(name) for one in scores]
        columns[name] = [math.nan if value is None else float(value) for value in values]
    return columns
