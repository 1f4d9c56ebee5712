"""Reading the directory of an adaptation: ``run.json``, ``guard.jsonl``, ``scores.json`` and ``samples.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loralign.report.adaptation_records import Adaptation, AdaptationScores
from loralign.report.coerce import clean_text, mapping, number, sequence, strings
from loralign.report.guard_reading import read_guard_scores, read_guarded
from loralign.report.reading import read_about, read_metric, read_optional, read_sample

ADAPT = "adapt"
"""The kind of run that this reader knows."""


def load_adaptation(directory: str | Path) -> Adaptation:
    """Read the directory of a ``loralign adapt`` run.

    Only ``run.json`` must be there. Whatever else is absent, damaged or cut off is left out and named in
    ``Adaptation.notes``; a value of the wrong type counts as absent.

    Raises:
        StateError: ``run.json`` is absent, is not a JSON object, or is of another version or kind of run.
    """
    folder = Path(directory)
    about = read_about(folder / "run.json", ADAPT)
    notes: list[str] = []
    scores = mapping(read_optional(folder / "scores.json", "scores", notes))
    guarded = vars(read_guarded(folder, about, scores, notes))
    samples = sequence(read_optional(folder / "samples.json", "sample answers", notes))
    return Adaptation(
        **guarded | {"scores": _scores(scores) if scores else None},
        name=clean_text(folder.resolve().name),
        model=str(about.get("model", "an unnamed model")),
        status=str(about.get("status", "unknown")),
        seconds=number(about.get("seconds")),
        seed=about.get("seed"),
        command=strings(about.get("command")),
        environment=mapping(about.get("environment")),
        samples=tuple(map(read_sample, samples)),
        notes=tuple(notes),
    )


def _scores(value: dict[str, Any]) -> AdaptationScores:
    return AdaptationScores(
        **vars(read_guard_scores(value)),
        task_before=read_metric(value.get("task_before")),
        task_after=read_metric(value.get("task_after")),
        task_gain=read_metric(value.get("task_gain")),
    )
