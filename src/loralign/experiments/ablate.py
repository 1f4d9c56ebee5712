"""``loralign ablate``: the arms of a method side by side."""

from __future__ import annotations

from collections.abc import Sequence

from loralign.errors import ConfigError
from loralign.experiments.ablation import align_arms, chosen, guard_arms
from loralign.experiments.cell import CellSettings, Command
from loralign.experiments.experiment import ArmResult, ExperimentOptions, run_arms, start_of
from loralign.experiments.facts import run_facts
from loralign.experiments.finding import (
    Finding,
    arm_scores,
    difference_table,
    difference_to,
    estimate_text,
    failure_notes,
    score_columns,
    score_table,
    trade,
)
from loralign.experiments.outcomes import LEGEND, measure
from loralign.experiments.subspaces import SubspaceSpec, estimated
from loralign.report.experiment import ExperimentPage

_TRADES = {"adapt": (("retention", "task_gain"), ("drift", "task_gain")), "align": (("reference_drift", "accuracy"),)}
_REFERENCE = {"adapt": "plain", "align": "uniform"}
_HEADLINE = {"adapt": ("retention", "task_gain"), "align": ("accuracy", "reference_drift")}


def ablate(
    command: Command, base: CellSettings, options: ExperimentOptions, arms: Sequence[str] | None = None
) -> Finding:
    """Run the arms of an ablation and put them side by side.

    Args:
        command: ``align`` (weightings × refinements, and TorchJD's) or ``adapt`` (the guard's ladder).
        base: recipe that the arms share, of :func:`~loralign.experiments.cell.base_settings`.
        options: seeds, places, measures.
        arms: names of those to run; all by default.

    Raises:
        LoralignError: any fault of the recipe; an unknown arm; every cell failed.
    """
    if command == "adapt":
        base = start_of(base, options.output)
        if base["guard"] in ("auto", "none"):
            # Once for all arms and seeds, so that they differ in nothing else.
            base = {**base, "guard": str(estimated(SubspaceSpec.of(base), options.output))}
    known = align_arms() if command == "align" else guard_arms(base)
    results = run_arms(f"ablate-{command}", command, base, chosen(known, arms), options)
    return side_by_side(f"ablate {command}", command, results)


def side_by_side(title: str, command: Command, results: Sequence[ArmResult]) -> Finding:
    """Arms as tables with intervals, differences to the plain arm, and the trade between what was kept and gained.

    Raises:
        ConfigError: no cell finished.
    """
    scores = arm_scores(results)
    if not scores:
        reasons = "; ".join(failure_notes(results)) or "there are none"
        raise ConfigError(f"no cell has finished: {reasons}", place=title, fix="mend that and repeat with --retry")
    reference = _REFERENCE[command]
    tables = [("Arms", score_table(scores))]
    differences = difference_table(results, reference)
    if differences is not None:
        tables.append((f"Differences to {reference}, paired", differences))
    charts = [trade(scores, across, up, number=number) for number, (across, up) in enumerate(_TRADES[command])]
    page = ExperimentPage(
        title=title,
        headline=_headline(results, command),
        facts=run_facts(results),
        tables=tables,
        charts=[chart for chart in charts if chart is not None],
        notes=[*failure_notes(results), LEGEND, *_remarks(results)],
    )
    return Finding(page, score_columns(scores))


def _headline(results: Sequence[ArmResult], command: Command) -> str:
    """The arm that keeps or gains most against the reference, and whether the interval leaves zero out."""
    first, second = _HEADLINE[command]
    reference = _REFERENCE[command]
    found = difference_to(results, reference, first)
    if not found:
        return f"{len([one for one in results if one.cells])} of {len(results)} arms have finished."
    name = max(found, key=lambda arm: found[arm].value)
    best = found[name]
    sure = best.low > 0 or best.high < 0
    text = f"Most {measure(first).title}: {name}, {estimate_text(best, sign=True)} against {reference}"
    other = difference_to(results, reference, second).get(name)
    if other is not None:
        text += f", with {measure(second).title} {estimate_text(other, sign=True)}"
    return text + ("." if sure else ": the interval holds zero, so nothing is settled.")


def _remarks(results: Sequence[ArmResult]) -> list[str]:
    if max((len(result.cells) for result in results), default=0) < 2:
        return ["One seed: the intervals are over samples and say nothing of how much a training varies."]
    return ["Values are means over seeds; intervals are over samples, which all seeds share."]
