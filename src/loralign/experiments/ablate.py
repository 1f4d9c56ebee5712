"""``loralign ablate``: the arms of a method side by side."""

from __future__ import annotations

from collections.abc import Sequence

from loralign.experiments.ablation import align_arms, chosen, guard_arms
from loralign.experiments.cell import CellSettings, Command
from loralign.experiments.early_stopping import STOPPED_NOTE, missed_notes, stopped_table, stoppings
from loralign.experiments.experiment import ArmResult, ExperimentOptions, run_arms, start_of
from loralign.experiments.facts import interval_note, run_facts
from loralign.experiments.finding import (
    REDUCTION,
    ArmScore,
    Finding,
    arm_scores,
    difference_scores,
    difference_table,
    difference_to,
    estimate_text,
    failure_notes,
    lacking_notes,
    nothing_finished,
    score_columns,
    score_table,
    trade,
)
from loralign.experiments.outcomes import LEGEND, measure
from loralign.experiments.subspaces import SubspaceSpec, estimated
from loralign.report.experiment import ExperimentPage
from loralign.report.theme import Table

_TRADES = {
    "adapt": (("retention", "task_gain"), ("drift", "task_gain")),
    "align": (("reference_drift", "accuracy"), ("drift", "accuracy")),
}
_GAIN = {"adapt": "task gain", "align": "accuracy"}
_REFERENCE = {"adapt": "plain", "align": "uniform"}
_WHOLE = "full"
"""The arm that the source removes terms from: what each is worth is what its absence changes."""
_REDUCTION = (
    "Drift reduction is 1 − drift / drift of {reference}, seeds and samples paired. Read it beside the {gain}: an arm "
    "that learns less drifts less."
)
_REMOVED = (
    f"Beside {_WHOLE} the reduction is 1 − drift / drift of {_WHOLE}: −0.11 says that without that part drift is 11 % "
    "higher."
)
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
    known = align_arms(base) if command == "align" else guard_arms(base)
    results = run_arms(f"ablate-{command}", command, base, chosen(known, arms), options)
    return side_by_side(f"ablate {'align' if command == 'align' else 'guard'}", command, results)


def side_by_side(title: str, command: Command, results: Sequence[ArmResult]) -> Finding:
    """Arms as tables with intervals, differences to the plain arm, and the trade between what was kept and gained.

    Raises:
        ConfigError: no cell finished.
    """
    scores = arm_scores(results)
    if not scores:
        raise nothing_finished(results, title)
    reference = _REFERENCE[command]
    tables = [("Arms", score_table(scores))]
    differences = difference_scores(results, reference)
    reduced = any(one.measure == REDUCTION for one in differences)
    _add_differences(tables, differences, reference)
    # What is left when a term is removed, beside what it added when the ladder was climbed.
    others = [one for one in results if one.arm.name != reference]
    removed = difference_scores(others, _WHOLE)
    _add_differences(tables, removed, _WHOLE)
    stopped = stoppings(results, reference) if command == "adapt" else []
    early = stopped_table(stopped)
    if early is not None:
        tables.append((f"Against {reference} stopped at the same task loss", early))
    charts = [trade(scores, across, up, number=number) for number, (across, up) in enumerate(_TRADES[command])]
    page = ExperimentPage(
        title=title,
        headline=_headline(results, command),
        facts=run_facts(results),
        tables=tables,
        charts=[chart for chart in charts if chart is not None],
        notes=[
            *failure_notes(results),
            *lacking_notes(results, reference),
            *lacking_notes(others, _WHOLE),
            LEGEND,
            *([_REDUCTION.format(reference=reference, gain=_GAIN[command])] if reduced else []),
            *([_REMOVED] if removed else []),
            *([STOPPED_NOTE] if early is not None else []),
            *missed_notes(stopped),
            interval_note(results),
        ],
    )
    return Finding(
        page, score_columns([*scores, *differences, *removed, *(score for one in stopped for score in one.scores())])
    )


def _add_differences(tables: list[tuple[str, Table]], differences: Sequence[ArmScore], reference: str) -> None:
    table = difference_table(differences, reference)
    if table is not None:
        tables.append((f"Differences to {reference}, paired", table))


def _headline(results: Sequence[ArmResult], command: Command) -> str:
    """The arm that keeps or gains most against the reference, and whether that is settled."""
    first, second = _HEADLINE[command]
    reference = _REFERENCE[command]
    found = difference_to(results, reference, first)
    if not found:
        return f"{len([one for one in results if one.cells])} of {len(results)} arms have finished."
    name = max(found, key=lambda arm: found[arm].value.value)
    best = found[name].value
    text = f"Most {measure(first).title}: {name}, {estimate_text(best, sign=True)} against {reference}"
    other = difference_to(results, reference, second).get(name)
    if other is not None:
        text += f", with {measure(second).title} {estimate_text(other.value, sign=True)}"
    text += f": {best.doubt}." if best.doubt else "."
    return f"{text} It is the best of {len(found)} arms, so its lead is flattered." if len(found) > 1 else text
