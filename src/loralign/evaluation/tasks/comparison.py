"""Scores of several models on the same tasks in one table: base, adapter and merged, or before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from loralign.errors import DataError
from loralign.evaluation.tasks.scores import TaskSample, TaskScore, TaskScores, metric_name, value_text

_Key = tuple[str, str, str]


@dataclass(frozen=True)
class TaskDifference:
    """A model's value minus that of the first, on the same documents.

    Args:
        value: the difference.
        stderr: of the mean of the differences document by document, which is smaller than that of two independent
            values; None where answers were not kept, or the metric is not a mean over documents.
    """

    value: float
    stderr: float | None


@dataclass(frozen=True)
class TaskRow:
    """One metric of one task for every model.

    Args:
        task: its name.
        metric: of the task.
        filter: the reading of the text.
        n: number of documents.
        higher_is_better: None where the harness does not say.
        scores: value and standard error, by model.
        differences: to the first model, for every other.
    """

    task: str
    metric: str
    filter: str
    n: int
    higher_is_better: bool | None
    scores: dict[str, TaskScore]
    differences: dict[str, TaskDifference]

    def to_json(self) -> dict[str, Any]:
        """As plain values, with the values and standard errors by model."""
        values = {arm: {"value": one.value, "stderr": one.stderr} for arm, one in self.scores.items()}
        return asdict(self) | {"scores": values}

    def texts(self) -> dict[str, str]:
        """The row for printing, a difference as ``0.512 ± 0.021 (−0.010 ± 0.004)``."""
        cells = {"task": self.task, "metric": metric_name(self.metric, self.filter), "n": str(self.n)}
        for arm, one in self.scores.items():
            cells[arm] = value_text(one.value, one.stderr)
            change = self.differences.get(arm)
            if change is not None:
                cells[arm] += f" ({value_text(change.value, change.stderr, sign='+')})"
        return cells


def compare_tasks(arms: Mapping[str, TaskScores]) -> list[TaskRow]:
    """Put the scores of several models side by side, with differences to the first.

    Args:
        arms: by the name of the model, the first of them being what the others are compared with.

    Raises:
        DataError: there is none, or two were not scored on the same documents in the same way.
    """
    if not arms:
        raise DataError("there are no scores to compare", place="task scores", fix="give those of one model at least")
    first = next(iter(arms))
    _check_alike(first, arms)
    tables = {arm: {one.key: one for one in scores.scores} for arm, scores in arms.items()}
    values = {arm: _values(scores.samples) for arm, scores in arms.items() if scores.samples is not None}
    rows = []
    for key, start in tables[first].items():
        differences = {
            arm: TaskDifference(
                table[key].value - start.value, _paired_stderr(values.get(first), values.get(arm), start, table[key])
            )
            for arm, table in tables.items()
            if arm != first
        }
        scores = {arm: table[key] for arm, table in tables.items()}
        rows.append(TaskRow(*key, start.n, start.higher_is_better, scores, differences))
    return rows


def _check_alike(first: str, arms: Mapping[str, TaskScores]) -> None:
    """Numbers of different questions, prompts or definitions do not compare."""
    start = arms[first]
    settings = {one.key: (one.n, one.version, one.fewshot) for one in start.scores}
    for arm, scores in arms.items():
        same = {one.key: (one.n, one.version, one.fewshot) for one in scores.scores} == settings
        for option in ("chat_template", "limit", "seed", "harness"):
            same = same and getattr(scores, option) == getattr(start, option)
        if start.samples is not None and scores.samples is not None:
            same = same and [_asked(one) for one in scores.samples] == [_asked(one) for one in start.samples]
        if not same:
            raise DataError(
                f"{arm!r} was not scored on the same questions in the same way as {first!r}",
                place="task scores",
                fix="score both on the same tasks with the same settings",
            )


def _asked(sample: TaskSample) -> tuple[Any, ...]:
    return sample.task, sample.filter, sample.document, sample.prompt, sample.target


def _values(samples: tuple[TaskSample, ...]) -> dict[_Key, list[float]]:
    """By task, metric and filter, the values of the documents in their order."""
    values: dict[_Key, list[float]] = {}
    for sample in samples:
        for metric, value in sample.values.items():
            values.setdefault((sample.task, metric, sample.filter), []).append(value)
    return values


def _paired_stderr(
    before: dict[_Key, list[float]] | None,
    after: dict[_Key, list[float]] | None,
    start: TaskScore,
    end: TaskScore,
) -> float | None:
    if before is None or after is None:
        return None
    old, new = (np.array(values.get(start.key, ())) for values in (before, after))
    if len(old) != len(new) or len(old) < 2:
        return None
    # Metrics such as a correlation are no mean of what they are on each document.
    if not (np.isclose(old.mean(), start.value) and np.isclose(new.mean(), end.value)):
        return None
    return float(np.std(new - old, ddof=1) / np.sqrt(len(old)))
