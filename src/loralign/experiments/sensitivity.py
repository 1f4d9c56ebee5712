"""``loralign sensitivity``: what rank, sketch, samples and projection of a subspace do to what it protects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from loralign.errors import ConfigError, DataError
from loralign.experiments.cell import CellSettings
from loralign.experiments.experiment import Arm, ArmResult, ExperimentOptions, run_arms, start_of
from loralign.experiments.factors import Factors, Setting, own_setting, settings
from loralign.experiments.facts import interval_note, run_facts
from loralign.experiments.finding import (
    ArmScore,
    Finding,
    arm_scores,
    failure_notes,
    nothing_finished,
    score_columns,
    score_table,
    trade,
)
from loralign.experiments.guard_subspaces import subspace_of, subspace_table
from loralign.experiments.outcomes import LEGEND, measure
from loralign.experiments.protection import GAIN, FactorResult, factor_results
from loralign.guard import AlignmentSubspace
from loralign.report.experiment import ExperimentPage
from loralign.report.response import Response, response_chart
from loralign.report.theme import Chart, Table

PLAIN = "plain"

_NOTES = (
    "Protection saturates at the smallest value that no larger one improves on by more than the 95 % interval of their "
    "paired difference; task gain falls from the first value that is below a smaller one by more than that. Wide "
    "intervals make saturation early: it is only as sure as they are narrow.",
    "Ranks are cut from one estimate of the largest. A layer whose Fisher matrix or outputs do not support a rank has "
    "as many directions as they do; the subspaces' table counts such layers.",
)
_FIXED = "The subspace stays as it was estimated before the training, so that what is compared is what acts."


def sensitivity(
    base: CellSettings,
    options: ExperimentOptions,
    factors: Factors | None = None,
    *,
    full_grid: bool = False,
    reestimate: bool = False,
) -> Finding:
    """Adapt with several ranks, sketches, sample counts and projections, and see where protection saturates.

    Args:
        base: recipe of ``loralign adapt``, the setting around which one factor at a time is varied.
        options: seeds, places, measures.
        factors: the values.
        full_grid: every combination instead.
        reestimate: estimate subspaces again during the runs, as the recipe does, with the recipe's own sketch.

    Raises:
        ConfigError: the recipe names a subspace or a budget; more samples than there are; every cell failed.
        LoralignError: any fault of the recipe. An arm with too few samples for its subspace has failed instead.
    """
    factors = factors or Factors()
    if base["guard"] not in ("auto", "none"):
        raise ConfigError(
            f"{base['guard']} is one subspace, and several are to be compared",
            place="--guard",
            fix="leave it out: they are estimated",
        )
    if base["drift_budget"] is not None:
        raise ConfigError(
            "a budget steers every arm to the same drift, by which they are to be compared",
            place="--drift_budget",
            fix="leave it out",
        )
    base = start_of(base, options.output)
    if not reestimate:
        base = {**base, "reestimate_every": 0.0}
    own = own_setting(base)
    chosen = settings(factors, own, full_grid=full_grid)
    guards, failed = guard_subspaces(chosen, base, factors, options.output)
    _check_counts(guards, int(base["fisher_samples"]), factors)
    arms = [Arm(PLAIN, {"guard": "none", "drift_budget": None})]
    arms += [Arm(setting.name, overrides(setting, place)) for setting, place in guards.items()]
    results = run_arms("sensitivity", "adapt", base, arms, options)
    results += [
        ArmResult(Arm(setting.name), (), (), dict.fromkeys(options.seeds, reason)) for setting, reason in failed.items()
    ]
    notes = [*_NOTES, *([] if reestimate else [_FIXED])]
    return sensitivity_finding(results, factor_results(results, chosen, factors, own), subspace_table(guards), notes)


def guard_subspaces(
    chosen: Sequence[Setting], base: Mapping[str, Any], factors: Factors, output: Path
) -> tuple[dict[Setting, Path], dict[Setting, str]]:
    """Every setting's subspace, or why its samples are too few for one.

    Raises:
        DataError: they are for all.
        LoralignError: any other fault.
    """
    guards: dict[Setting, Path] = {}
    failed: dict[Setting, DataError] = {}
    for setting in chosen:
        try:
            guards[setting] = subspace_of(setting, base, factors, output)
        except DataError as error:
            failed[setting] = error
    if not guards:
        raise next(iter(failed.values()))
    return guards, {setting: str(error) for setting, error in failed.items()}


def _check_counts(guards: Mapping[Setting, Path], own: int, factors: Factors) -> None:
    """Counts beyond the samples that there are would be the same arm under several names."""
    if not factors.samples:
        return
    for setting, place in guards.items():
        asked, found = setting.samples or own, AlignmentSubspace.load(place).info.samples
        if found < asked:
            raise ConfigError(
                f"there are {found} samples for the {asked} of {setting.name!r}",
                place="--fisher_sample_counts" if setting.samples else "--fisher_samples",
                fix=f"ask for {found} at most, or name more --alignment_data",
            )


def overrides(setting: Setting, guard: Path) -> dict[str, Any]:
    """What a setting's cells have that the recipe does not."""
    found: dict[str, Any] = {"guard": str(guard)}
    if setting.samples is not None:
        found["fisher_samples"] = setting.samples
    if setting.projection is not None:
        found["guard_projection"] = setting.projection
    return found


def sensitivity_finding(
    results: Sequence[ArmResult], found: Sequence[FactorResult], subspaces: Table, notes: Sequence[str]
) -> Finding:
    """A table and a chart for every factor, and where protection saturates.

    Raises:
        ConfigError: no cell finished.
    """
    scores = arm_scores(results)
    if not scores:
        raise nothing_finished(results, "sensitivity")
    tables = [(f"By {one.factor}", factor_table(one)) for one in found]
    tables += [("All arms", score_table(scores)), ("Subspaces", subspaces)]
    plain = {one.measure: one.value.value for one in scores if one.arm == PLAIN}
    charts = [factor_chart(one, plain) for one in found] + [trade(scores, one, GAIN) for one in _protections(found)]
    page = ExperimentPage(
        title="sensitivity",
        headline=" ".join(chain.from_iterable(one.sentences() for one in found)) or "No factor has two values.",
        facts=run_facts(results),
        tables=[(title, table) for title, table in tables if table.rows],
        charts=[one for one in charts if one is not None],
        notes=[
            *failure_notes(results),
            *chain.from_iterable(one.lacking() for one in found),
            LEGEND,
            *notes,
            interval_note(results),
        ],
    )
    return Finding(page, _columns(scores, found))


def factor_table(found: FactorResult) -> Table:
    """Measures by the values of a factor; in a full grid means over the other factors."""
    return score_table(arm_scores(found.results), found.factor)


def factor_chart(found: FactorResult, plain: Mapping[str, float]) -> Chart:
    """Protection and task gain against the values of a factor, with the level of plain LoRA."""
    scores = {(one.arm, one.measure): one.value for one in arm_scores(found.results)}
    levels = [result.arm.name for result in found.results]

    def response(key: str) -> Response:
        values = [scores.get((level, key)) for level in levels]
        ends = [None if one is None else (one.value, one.low, one.high) for one in values]
        return Response(measure(key).title, ends, plain.get(key))

    keys = (found.protection, GAIN)
    return response_chart(
        found.factor, levels, [response(key) for key in keys], key=f"factor-{found.factor}", reference="plain LoRA"
    )


def _protections(found: Sequence[FactorResult]) -> list[str]:
    return list(dict.fromkeys(one.protection for one in found))


def _columns(scores: Sequence[ArmScore], found: Sequence[FactorResult]) -> dict[str, list[Any]]:
    """All arms, and every factor's values and their differences, told apart by the column ``factor``."""
    parts = [("arms", scores), *((one.factor, [*arm_scores(one.results), *one.differences()]) for one in found)]
    factor = [name for name, part in parts for _ in part]
    return {"factor": factor, **score_columns([score for _, part in parts for score in part])}
