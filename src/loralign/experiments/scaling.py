"""``loralign scaling``: adapt models of several sizes to several amounts of data, and fit the forgetting law."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loralign.errors import ConfigError, DataError, StateError
from loralign.evaluation.bootstrap import Estimate
from loralign.experiments.cell import Cell, CellSettings, recipe_of
from loralign.experiments.contents import contents_digest
from loralign.experiments.experiment import Arm, ArmResult, ExperimentOptions, run_arms, start_of
from loralign.experiments.forgetting_intervals import RESAMPLES, LawEstimate, estimate_law
from loralign.experiments.forgetting_law import ForgettingRun, check_counts
from loralign.experiments.language import read_language
from loralign.experiments.own_text import OWN
from loralign.experiments.seed_means import estimate
from loralign.experiments.store import LANGUAGE_FILE, CellRecord
from loralign.experiments.subspaces import SubspaceSpec, estimated
from loralign.files import exists
from loralign.models import DEFAULT_MODEL
from loralign.runs.output import ADAPTER, RUN_FILE

PLAIN, GUARDED = "plain", "guarded"
SHARED = "shared"
_WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")
"""Learning rate schedules that transformers starts at the full rate, whatever the warm-up is."""


@dataclass(frozen=True)
class ScalingPlan:
    """What is varied, and what forgetting is measured on.

    Attributes:
        text: that the start knew before it was adapted, as :func:`~loralign.data.load_task` takes it; ``own`` alone
            for what each start samples itself.
        amounts: optimiser steps, a run of its own each, with its own learning rate schedule.
        models: of several sizes; the recipe's own by default.
        samples: most rows of the text.
    """

    text: tuple[str, ...]
    amounts: tuple[int, ...] = (10, 20, 40, 80)
    models: tuple[str | None, ...] = ()
    samples: int = 100

    def __post_init__(self) -> None:
        if not self.text:
            raise ConfigError(
                "there is no text to measure forgetting on",
                place="--pretraining_data",
                fix="name files of general text, or of conversations, that the models knew before and --data is not "
                f"of, or {OWN} for what each model samples itself",
            )
        if OWN in self.text and exists(OWN):
            raise ConfigError(
                f"{OWN} is a place here too", place="--pretraining_data", fix=f"write ./{OWN} for it, or rename it"
            )
        if OWN in self.text and len(self.text) > 1:
            raise ConfigError(
                f"{OWN} stands beside other text", place="--pretraining_data", fix=f"give {OWN} alone, or files"
            )
        if min(self.amounts, default=0) < 1 or len(set(self.amounts)) < len(self.amounts):
            raise ConfigError(
                f"{list(self.amounts)} are no different numbers of steps", place="--amounts", fix="such as 10 20 40 80"
            )
        if len(set(self.models)) < len(self.models):
            raise ConfigError(f"{list(self.models)} repeat", place="--models", fix="give each once")


@dataclass(frozen=True)
class ScalingArm:
    """Runs of one model, with the guard or without, on one amount of data."""

    model: str
    group: str
    steps: int
    overrides: Mapping[str, Any]

    @property
    def name(self) -> str:
        """In tables."""
        return f"{self.group}, {self.model}, {self.steps} steps"


@dataclass(frozen=True)
class ScalingCell:
    """One run, as the law sees it.

    Attributes:
        arm: whose.
        seed: of the run.
        size: parameters of the base.
        amount: samples seen, ``steps × batch × accumulation × processes``; of one process where it is not known how
            many there were.
        passes: how often those go through the training samples.
        before: loss of the start on the text, nats per token.
        after: of the adapted model.
        forgetting: the paired difference, with its interval over samples of text.
        processes: that trained it together; ``None`` where the run did not keep that.
        warmup: of its steps, those during which the learning rate rises from zero.
        tokenizer: digest of what splits text into tokens; ``None`` where the adapter, beside which it lay, is gone.
    """

    arm: ScalingArm
    seed: int
    size: int
    amount: int
    passes: float
    before: float
    after: float
    forgetting: Estimate
    processes: int | None = None
    warmup: int = 0
    tokenizer: str | None = None


@dataclass(frozen=True, eq=False)
class ScalingFits:
    """The law of all runs, with an A for each arm and the rest shared, and that of every arm alone.

    Attributes:
        known: by ``shared`` and name of the arm.
        reasons: why the others could not be fitted.
    """

    known: dict[str, LawEstimate]
    reasons: dict[str, str]


def check_plan(base: CellSettings, options: ExperimentOptions, plan: ScalingPlan) -> None:
    """Refuse what no law can come of, before anything is run.

    Raises:
        ConfigError: the text is the task's own; a subspace for several models; a model beside others that it is not of;
            an amount that ends within the warm-up.
        DataError: too few amounts, or fewer runs than parameters.
    """
    learnt = {content for source in base["data"] for content in _contents(source)}
    own = [source for source in plan.text if _contents(source) & learnt]
    if own:
        raise ConfigError(
            f"{own[0]} is what is being learnt", place="--pretraining_data", fix="name text of another kind"
        )
    single = base.get("model")
    if plan.models and single is not None and single not in plan.models:
        raise ConfigError(
            f"{single} is the model, but not one of these", place="--models", fix="add it to them, or leave it out"
        )
    _check_warmup(base, plan)
    models, groups = max(1, len(plan.models)), 1 if base["guard"] == "none" else 2
    if models > 1 and base["guard"] not in ("none", "auto"):
        raise ConfigError(f"{base['guard']} is of one model", place="--guard", fix="use auto with several --models")
    runs = len(plan.amounts) * models * len(options.seeds)
    check_counts(runs, 1, len(plan.amounts), models)
    check_counts(groups * runs, groups, len(plan.amounts), models)


def _contents(source: str) -> set[str]:
    """What a source names, by content: of a file by another path, of a link or of a copy it is the same."""
    places = [source]
    if glob.has_magic(source) and not exists(source):
        places = glob.glob(str(Path(source).expanduser()), recursive=True)  # noqa: PTH207 - absolute too
    return {contents_digest(place) or place for place in places}


def _check_warmup(base: CellSettings, plan: ScalingPlan) -> None:
    training = recipe_of(Cell("adapt", base), "runs").training
    for steps in sorted(plan.amounts):
        warmup = warmup_steps(training, steps)
        if steps <= warmup:
            raise ConfigError(
                f"{steps} steps end within the warm-up of {warmup}, so that they train little or nothing",
                place="--amounts",
                fix=f"give more than {warmup} each, or a smaller --warmup_steps",
            )


def warmup_steps(training: Any, steps: int) -> int:
    """Of so many optimiser steps, those during which the learning rate rises from zero.

    Args:
        training: transformers' training arguments; a warm-up below 1 is a share of the steps.
        steps: of the run.
    """
    schedule = training.lr_scheduler_type
    idle = getattr(schedule, "value", schedule) in _WITHOUT_WARMUP
    return 0 if idle else int(training.get_warmup_steps(steps))


def scaling_arms(base: CellSettings, plan: ScalingPlan, output: Path) -> list[ScalingArm]:
    """Plain and, unless the recipe has no guard, guarded arms of every model, its subspace estimated once for all.

    Raises:
        LoralignError: any fault of a model or of the must-survive data.
    """
    models = plan.models or (base.get("model"),)
    short = [Path(model or DEFAULT_MODEL).name for model in models]
    arms = []
    for model, name in zip(models, short, strict=True):
        start = start_of({**base, "model": model}, output)
        title = name if short.count(name) == 1 else str(model)
        groups: dict[str, dict[str, Any]] = {PLAIN: {"guard": "none", "drift_budget": None}}
        if base["guard"] != "none":
            own = base["guard"] if base["guard"] != "auto" else str(estimated(SubspaceSpec.of(start), output))
            groups[GUARDED] = {"guard": own}
        arms += [
            ScalingArm(title, group, steps, {"model": start["model"], "max_steps": steps, **overrides})
            for group, overrides in groups.items()
            for steps in plan.amounts
        ]
    return arms


def run_scaling(
    base: CellSettings, options: ExperimentOptions, plan: ScalingPlan
) -> tuple[list[ArmResult], list[ScalingCell]]:
    """Run every arm with every seed.

    Returns:
        The arms' results, and their finished cells.

    Raises:
        LoralignError: any fault of recipe, text, models or plan.
    """
    check_plan(base, options, plan)
    measures = replace(options.measures, language=plan.text, language_samples=plan.samples)
    measures.check()
    options = replace(options, measures=measures)
    arms = scaling_arms(base, plan, options.output)
    results = run_arms("scaling", "adapt", base, [Arm(arm.name, arm.overrides) for arm in arms], options)
    cells = [
        scaling_cell(arm, record, outcome["forgetting"])
        for arm, result in zip(arms, results, strict=True)
        for record, outcome in zip(result.cells, result.outcomes, strict=True)
    ]
    return results, cells


def scaling_cell(arm: ScalingArm, record: CellRecord, forgetting: Any) -> ScalingCell:
    """A finished cell as the law sees it.

    Raises:
        StateError: a file of the cell is damaged.
    """
    (place,) = record.measured("language")
    losses = read_language(place / LANGUAGE_FILE)
    training = recipe_of(Cell("adapt", record.settings), str(record.run)).training
    file = record.run / RUN_FILE
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        rows, processes = int(about["data"]["train"]), about["environment"].get("processes")
        processes = None if processes is None else int(processes)
        steps, batch = training.max_steps, training.per_device_train_batch_size * training.gradient_accumulation_steps
        amount = steps * batch * (processes or 1)
        passes = amount / rows
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise StateError(f"cannot be read: {error}", place=str(file), fix="remove the cell's directory") from error
    before, after = (sum(part) / len(part) for part in (losses.before, losses.after))
    return ScalingCell(
        arm,
        record.seed,
        losses.parameters,
        amount,
        passes,
        before,
        after,
        estimate(forgetting),
        processes,
        warmup_steps(training, steps),
        _tokenizer_digest(record.run / ADAPTER),
    )


def _tokenizer_digest(directory: Path) -> str | None:
    """Of what decides how plain text is split; neither chat tokens nor padding and truncation do."""
    try:
        content = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
        added = [one for one in content.get("added_tokens") or [] if not one["special"]]
        parts = [content.get(name) for name in ("normalizer", "pre_tokenizer", "model")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return hashlib.sha256(json.dumps([added, *parts], sort_keys=True).encode()).hexdigest()


def fit_scaling(cells: Sequence[ScalingCell], *, resamples: int = RESAMPLES) -> ScalingFits:
    """Fit the law to all runs and to every arm's own; plain and guarded runs of a seed are resampled together.

    Ratios are to the plain runs, whichever comes first.

    Args:
        cells: in any number.
        resamples: behind the intervals.
    """
    runs = [
        ForgettingRun(
            cell.arm.group,
            cell.size,
            cell.amount,
            cell.after - cell.before,
            f"{cell.arm.model}, {cell.amount}, {cell.seed}",
        )
        for cell in sorted(cells, key=lambda cell: cell.arm.group != PLAIN)
    ]
    groups = list(dict.fromkeys(run.group for run in runs))
    parts = {group: [run for run in runs if run.group == group] for group in groups}
    if len(groups) > 1:
        parts = {SHARED: runs, **parts}
    known, reasons = {}, {}
    for name, part in parts.items():
        try:
            known[name] = estimate_law(part, resamples=resamples)
        except DataError as error:
            reasons[name] = error.problem
    return ScalingFits(known, reasons)
