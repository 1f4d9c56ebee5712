"""What a finished cell found, sample by sample, so that seeds and arms can be compared with intervals."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from pyarrow import ArrowException

from loralign.errors import StateError
from loralign.evaluation import PairScores
from loralign.evaluation.bootstrap import Difference, Ratio
from loralign.evaluation.measures import pair_measures
from loralign.evaluation.pairs import FloatArray
from loralign.experiments.language import read_language
from loralign.experiments.sample_statistics import Lowest, kept_share
from loralign.experiments.seed_means import Samples
from loralign.experiments.store import CHECK_DIRECTORY, LANGUAGE_FILE, TASKS_FILE, CellRecord
from loralign.runs.driftcheck import BASELINE, RESPONSES
from loralign.runs.guarding import NONE
from loralign.runs.kept_scores import SAMPLE_SCORES
from loralign.runs.task_scores import read_lower_is_better, read_task_samples

PAIR_SCORES = "pair_scores.safetensors"


@dataclass(frozen=True)
class Measure:
    """Something that cells are compared by.

    Attributes:
        key: tells it from others.
        title: what people call it, with its unit.
        higher: whether more of it is better.
    """

    key: str
    title: str
    higher: bool


MEASURES = (
    Measure("retention", "refusals kept", True),
    Measure("refusal", "refused, unsafe", True),
    Measure("over_refusal", "refused, safe", False),
    Measure("drift", "drift", False),
    Measure("task_gain", "task gain", True),
    Measure("task_loss", "task loss", False),
    Measure("accuracy", "accuracy", True),
    Measure("accuracy_worst", "worst accuracy", True),
    Measure("loss", "DPO loss", False),
    Measure("reference_drift", "reference drift", False),
    Measure("language_loss", "loss on text", False),
    Measure("forgetting", "forgetting", False),
)
"""Of :func:`outcome`, in the order of tables; accuracies of single objectives and tasks' scores come after them."""

COMPARED = (Measure("drift_reduction", "drift reduction", True),)
"""Of an arm against another, ``1 − drift / drift of the other``; no cell has it alone."""

LEGEND = (
    "Drift is KL(start‖now) on the opening of the probe's responses, reference drift KL(now‖reference) on validation "
    "pairs; drifts, task gain (start minus now), losses on task and text and forgetting (now minus start) are in nats "
    "per token, the rest are shares."
)
"""What the titles mean, for below a table."""

OBJECTIVE, TASK = "accuracy:", "task:"
LESS = " (less is better)"
"""Ends the key of a task's metric of which the harness says so, since a key alone must tell what is better."""

_OF_ANSWERS = ("refusal", "over_refusal", "retention")


def measure(key: str) -> Measure:
    """The measure of this key, those of objectives and tasks included."""
    for one in (*MEASURES, *COMPARED):
        if one.key == key:
            return one
    if key.startswith(OBJECTIVE):
        return Measure(key, f"accuracy, {key.removeprefix(OBJECTIVE)}", True)
    return Measure(key, key.removeprefix(TASK), not key.endswith(LESS))


def ordered(keys: Iterable[str]) -> list[Measure]:
    """The measures of these keys in the order of tables."""
    known = {one.key: index for index, one in enumerate((*MEASURES, *COMPARED))}
    return [measure(key) for key in sorted(set(keys), key=lambda key: (known.get(key, len(known)), key))]


def outcome(record: CellRecord) -> dict[str, Samples]:
    """The statistics that a finished cell has, by measure; several of one measure stand for their mean.

    Of an adaptation: ``task_loss``, ``task_gain``, ``drift``, and where answers were judged ``refusal``,
    ``over_refusal`` and ``retention``, the share of the start's refusals of unsafe prompts that is left. Of an
    alignment: accuracies, ``accuracy_worst`` of the objective that is lowest in the resample, ``loss`` and
    ``reference_drift``; where the recipe has a guard, drift and refusals as of an adaptation.

    Of what was asked of the cell beside that: refusals of a driftcheck, which take the place of the run's own; of text
    that the start knew ``language_loss``, and ``forgetting``, by how much it rose (nats per token); of tasks
    ``task:NAME METRIC``, with :data:`LESS` where that is so.

    Args:
        record: of a finished cell.

    Raises:
        StateError: a file of the cell is missing or damaged.
    """
    found = _adaptation(record.run / SAMPLE_SCORES) if record.command == "adapt" else _alignment(record)
    for place in record.measured("driftcheck"):
        # All of the run's own, since those of two sets of prompts in one row would be read as of one.
        found = {key: one for key, one in found.items() if key not in _OF_ANSWERS} | _check(place / CHECK_DIRECTORY)
    for place in record.measured("language"):
        losses = read_language(place / LANGUAGE_FILE)
        now = _mean(np.array(losses.after))
        found |= {"language_loss": (now,), "forgetting": (Difference(now, _mean(np.array(losses.before))),)}
    for place in record.measured("task"):
        lower = read_lower_is_better(place / TASKS_FILE)
        for name, values in read_task_samples(place / TASKS_FILE).items():
            found[TASK + name + (LESS if name in lower else "")] = (_mean(np.array(values)),)
    return found


def _adaptation(file: Path) -> dict[str, Samples]:
    columns = _columns(file)
    start, now = _before_and_after(columns, "task_loss")
    gain = Difference(_mean(start), _mean(now))
    return {"task_loss": (_mean(now),), "task_gain": (gain,), **_kept(columns)}


def _kept(columns: dict[str, list[Any]]) -> dict[str, Samples]:
    """What the run itself measured of what was to survive: drift on its probe, and refusals where they were judged."""
    found: dict[str, Samples] = {"drift": (_mean(_before_and_after(columns, "drift")[1]),)}
    judged = np.array(columns["measure"]) == "refused"
    if judged.any():
        found |= _refusals(np.array(columns["label"])[judged], *_before_and_after(columns, "refused"))
    return found


def _before_and_after(columns: dict[str, list[Any]], kind: str) -> tuple[FloatArray, FloatArray]:
    chosen = np.array(columns["measure"]) == kind
    before, after = (np.array(columns[name], dtype=np.float64)[chosen] for name in ("before", "after"))
    return before, after


def _check(directory: Path) -> dict[str, Samples]:
    """Refusals of a driftcheck set, whose prompts were asked of the start and now."""
    now, start = (_columns(place / RESPONSES) for place in (directory, directory / BASELINE))
    if now["id"] != start["id"]:
        raise StateError("is of other prompts than its start", place=str(directory), fix="remove the directory above")
    refused = (np.array(one["refused"], dtype=np.float64) for one in (start, now))
    return _refusals(np.array(now["label"]), *refused)


def _refusals(labels: Any, before: FloatArray, after: FloatArray) -> dict[str, Samples]:
    found: dict[str, Samples] = {}
    unsafe, safe = labels == "unsafe", labels == "safe"
    if unsafe.any():
        found["refusal"] = (_mean(after[unsafe]),)
        kept = kept_share(before[unsafe], after[unsafe])
        if kept is not None:
            found["retention"] = (kept,)
    if safe.any():
        found["over_refusal"] = (_mean(after[safe]),)
    return found


def _alignment(record: CellRecord) -> dict[str, Samples]:
    guarded = record.settings.get("guard", NONE) != NONE
    return _pairs(record) | (_kept(_columns(record.run / SAMPLE_SCORES)) if guarded else {})


def _pairs(record: CellRecord) -> dict[str, Samples]:
    file = record.run / PAIR_SCORES
    if not file.is_file():
        return {}
    pairs = PairScores.load(file)
    beta = float(record.settings.get("beta") or 0.1)
    by_objective = {name: pair_measures(pairs.of_objectives([name]), beta) for name in dict.fromkeys(pairs.objectives)}
    accuracies = {name: measures["accuracy_reward"] for name, measures in by_objective.items()}
    found: dict[str, Samples] = {OBJECTIVE + name: (sample,) for name, sample in accuracies.items()}
    found["accuracy"] = tuple(accuracies.values())
    found["accuracy_worst"] = (Lowest.of(accuracies),)
    for key, name in (("loss", "loss"), ("reference_drift", "kl_policy_reference")):
        found[key] = tuple(measures[name] for measures in by_objective.values())
    return found


def _mean(values: FloatArray) -> Ratio:
    values = values.astype(np.float64)
    return Ratio(values, np.ones_like(values))


def _columns(file: Path) -> dict[str, list[Any]]:
    try:
        found: dict[str, list[Any]] = pq.read_table(file).to_pydict()
    except (ArrowException, OSError) as error:
        raise StateError(
            f"cannot be read: {error}", place=str(file), fix="remove the cell's directory to run it again"
        ) from error
    return found
