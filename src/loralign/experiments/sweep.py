"""``loralign sweep``: a search of recipe fields for alignment kept and task learned, its front and a point to use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loralign.errors import ConfigError
from loralign.experiments.cell import CellSettings, Command
from loralign.experiments.experiment import ExperimentOptions, start_of
from loralign.experiments.finding import Finding
from loralign.experiments.hypervolume import Pair
from loralign.experiments.outcomes import OBJECTIVE, TASK
from loralign.experiments.search import run_search
from loralign.experiments.search_plan import SearchPlan
from loralign.experiments.selection import Limit
from loralign.experiments.subspaces import SubspaceSpec, estimated
from loralign.experiments.sweep_page import swept
from loralign.runs.guarding import NONE

TRADES: dict[Command, tuple[str, str]] = {
    "adapt": ("retention", "task_gain"),
    "align": ("reference_drift", "accuracy"),
}
"""What a sweep is for by default: what is kept, and what is gained."""

_DRIFT: dict[Command, str] = {"adapt": "drift", "align": "reference_drift"}
_JUDGED = {"retention", "refusal", "over_refusal"}
_MEASURED: dict[Command, set[str]] = {
    "adapt": {"task_gain", "task_loss", "drift", *_JUDGED},
    "align": {"accuracy", "accuracy_worst", "loss", "reference_drift", "drift", *_JUDGED},
}
# What a subspace that the guard estimates itself depends on.
_OF_SUBSPACE = {
    "guard",
    "model",
    "revision",
    "dtype",
    "load_in_4bit",
    "alignment_data",
    "fisher_samples",
    "fisher_tokens",
    "max_length",
    "lora_target_modules",
}


@dataclass(frozen=True)
class Wanted:
    """Which point of the front is to be recommended.

    Attributes:
        budget: drift that may be lost, in nats per token.
        keep: retention that must be left, a share.
        reference: of the hypervolume, for the two measures; that of :func:`reference_point` by default.
    """

    budget: float | None = None
    keep: float | None = None
    reference: Pair | None = None

    def limits(self, command: Command) -> list[Limit]:
        """What a recommended point must keep to."""
        stated = (Limit(_DRIFT[command], self.budget) if self.budget is not None else None,)
        kept = (Limit("retention", self.keep) if self.keep is not None else None,)
        return [one for one in stated + kept if one is not None]


def sweep(
    command: Command, base: CellSettings, options: ExperimentOptions, plan: SearchPlan, wanted: Wanted
) -> Finding:
    """Search a space and find its Pareto front, its hypervolume and the point to use within a budget.

    Args:
        command: ``adapt`` or ``align``.
        base: recipe that the trials share, of :func:`~loralign.experiments.cell.base_settings`.
        options: seeds, places, measures.
        plan: what is searched, and for which two measures.
        wanted: what a recommended point must keep to.

    Raises:
        LoralignError: any fault of the recipe or the space; a measure that the trials do not have; every trial failed.
    """
    limits = wanted.limits(command)
    _check_measured(command, base, options, plan, limits)
    if command == "adapt":
        base = start_of(base, options.output)
        if base["guard"] == "auto" and not _OF_SUBSPACE & {one.name for one in plan.space}:
            # Once for all trials and seeds, so that they differ in nothing else.
            base = {**base, "guard": str(estimated(SubspaceSpec.of(base), options.output))}
    results = run_search(f"sweep-{command}", command, base, plan, options)
    return swept(f"sweep {command}", results, plan, limits, wanted.reference)


def _check_measured(
    command: Command, base: CellSettings, options: ExperimentOptions, plan: SearchPlan, limits: Sequence[Limit]
) -> None:
    """What no trial can have is told before the first of them, which may take hours."""
    varied = {one.name for one in plan.space}
    # An alignment has a probe where it has a guard, an adaptation always.
    probed = command == "adapt" or base["guard"] != NONE or "guard" in varied
    judged = probed and (base.get("judged_prompts") != 0 or "judged_prompts" in varied)
    wanted = {"--trade": list(plan.measures), "--keep": [one.measure for one in limits]}
    for place, key in ((place, key) for place, keys in wanted.items() for key in keys):
        if not key.startswith((TASK, OBJECTIVE) if command == "align" else TASK) and key not in _MEASURED[command]:
            choices = ", ".join(sorted(_MEASURED[command]))
            raise ConfigError(
                f"no run of loralign {command} has {key!r}",
                place=place,
                fix=f"choose among {choices}, and task:NAME METRIC of --tasks",
            )
        if key.startswith(TASK) and not options.measures.tasks:
            raise ConfigError("no task is scored", place=f"{place} {key}", fix="name the task with --tasks")
        if key in _JUDGED and not judged and options.measures.driftcheck is None:
            raise ConfigError(
                f"no answer is judged, so there is no {key}",
                place=place,
                fix=f"set --judged_prompts{'' if probed else ' and --guard'} or --driftcheck, or choose other measures",
            )
        if key == "drift" and not probed:
            raise ConfigError(
                "without a guard nothing is probed, so there is no drift",
                place=place,
                fix="set --guard, which may only measure, or choose reference_drift",
            )
