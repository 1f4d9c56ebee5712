"""What the directory of an adaptation says of its start and of the adapted model."""

from __future__ import annotations

from pathlib import Path

from loralign.report.adaptation import load_adaptation
from loralign.report.adaptation_records import Adaptation
from loralign.report.guard_records import UNGUARDED
from loralign.report.intervals import turned
from loralign.report.records import Metric
from loralign.report.runs.from_guard import (
    by_category,
    energy_maps,
    guard_curves,
    guard_role,
    kept_scores,
    start_scores,
)
from loralign.report.runs.records import HELD_BACK, TASK_LOSS, Curve, Part, Score
from loralign.report.runs.subjects import subject


def read_adapt(directory: Path) -> list[Part]:
    """Return the start and the adapted model.

    Raises:
        StateError: as :func:`loralign.report.load_adaptation`.
    """
    run = load_adaptation(directory)
    start = (subject(run.model), subject(str(directory / "start")))
    scores = run.scores
    return [
        Part(
            subjects=start,
            role="start",
            scores=_task(scores.task_before if scores else None) + start_scores(run),
            categories=by_category(scores.safety_before if scores else None),
        ),
        Part(
            subjects=(subject(str(directory / "adapter")), subject(str(directory))),
            name=run.name,
            role="adapted without a guard" if run.mode in UNGUARDED else guard_role(run) or "adapted",
            reference=start,
            scores=_gained(run) + kept_scores(run),
            categories=by_category(scores.safety_after if scores else None),
            curves=_curves(run),
            layer_maps=energy_maps(run),
            samples=run.samples,
            config=run.config,
            data=run.data,
            environment=run.environment,
            command=run.command,
            notes=tuple(f"{run.name}: {note}" for note in run.notes),
        ),
    ]


def _gained(run: Adaptation) -> tuple[Score, ...]:
    return _task(run.scores.task_after, turned(run.scores.task_gain), paired=True) if run.scores else ()


def _task(metric: Metric | None, change: Metric | None = None, paired: bool = False) -> tuple[Score, ...]:
    return () if metric is None else (Score(TASK_LOSS, HELD_BACK, metric, change, paired),)


def _curves(run: Adaptation) -> tuple[Curve, ...]:
    loss = tuple((step.step, step.loss) for step in run.steps if step.loss is not None)
    task = (Curve("task-loss", "Task loss", "loss (nats per token)", "", loss, noisy=True),) if loss else ()
    return task + guard_curves(run)
