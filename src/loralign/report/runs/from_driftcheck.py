"""What the output of a driftcheck run says of the model that it checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loralign.files import is_file
from loralign.report.coerce import clean_text, mapping, number, sequence, strings
from loralign.report.intervals import turned
from loralign.report.reading import read_metric
from loralign.report.records import Metric
from loralign.report.runs.answers import read_answers
from loralign.report.runs.files import read_object
from loralign.report.runs.records import (
    DRIFT_REDUCTION,
    KL,
    OVER_REFUSAL,
    REFUSAL,
    TOXICITY,
    Category,
    Ground,
    Part,
    Quantity,
    Score,
)
from loralign.report.runs.subjects import Subject, subject, subject_name

RUN_FILE = "run.json"
SCORES_FILE = "scores.json"
SCORES_FORMAT = "loralign.driftcheck.scores"
SCORES_VERSION = 1
RESPONSES_FILE = "responses.parquet"
BASELINE = "baseline"
"""Where a check keeps what its baseline answered."""

_FIX = "give the output directory of loralign driftcheck run"
_MEASURED = (REFUSAL, OVER_REFUSAL, TOXICITY, KL)
_NOT_CONFIGURATION = ("version", "format", "format_version", "kind", "command", "environment", "created")

JUDGED_BY = ("judge", "toxicity", "max_new_tokens", "temperature")
"""Of answers, what two checks must have in common for their refusals and toxicity to be of one measure."""


def is_driftcheck(about: dict[str, Any]) -> bool:
    """Say whether a ``run.json`` or ``scores.json`` was written by a driftcheck run."""
    return about.get("kind") == "driftcheck" or str(about.get("format", "")).startswith("loralign.driftcheck")


def read_driftcheck(directory: Path) -> list[Part]:
    """Return the checked model, after what its baseline answered where the run kept that.

    Raises:
        StateError: ``run.json`` or ``scores.json`` is damaged or of another format or version.
    """
    about = read_object(directory / RUN_FILE, _FIX)
    name = clean_text(directory.resolve().name)
    notes: list[str] = []
    scores: dict[str, Any] = {}
    if (directory / SCORES_FILE).is_file():
        scores = read_object(directory / SCORES_FILE, _FIX, form=SCORES_FORMAT, version=SCORES_VERSION)
    else:
        notes.append(f"The check {name} has no {SCORES_FILE}: it is unfinished.")
    ground = _ground(about)
    answers = read_answers(directory / RESPONSES_FILE, ground, notes)
    baseline = _of_run(about.get("baseline"))
    start = []
    if baseline is not None:
        kept = None
        if (directory / BASELINE / RESPONSES_FILE).is_file():
            kept = read_answers(directory / BASELINE / RESPONSES_FILE, ground, notes)
        before = _before(scores, ground)
        start = [Part(subjects=(baseline,), scores=before, answers=() if kept is None else (kept,))]
    return [
        *start,
        Part(
            subjects=(_subject(about) or (name,),),
            reference=() if baseline is None else (baseline,),
            scores=_scores(scores, ground, baseline is not None) + _reduction(scores, about, ground, notes),
            categories=_categories(scores, ground),
            answers=() if answers is None else (answers,),
            config={ground.name: {key: value for key, value in about.items() if key not in _NOT_CONFIGURATION}},
            environment={ground.name: environment} if (environment := mapping(about.get("environment"))) else {},
            command=strings(about.get("command")),
            notes=tuple(notes),
        ),
    ]


def _subject(about: dict[str, Any]) -> Subject | None:
    return _named(about.get("adapter")) or _named(about.get("model"))


def _named(value: Any) -> Subject | None:
    return subject(value) if isinstance(value, str) and value else None


def _of_run(value: Any) -> Subject | None:
    """The subject of a setting that names a model, an adapter, or the directory of another check."""
    if isinstance(value, str) and is_file(Path(value) / RUN_FILE):
        about = read_object(Path(value) / RUN_FILE, _FIX)
        if is_driftcheck(about):
            return _subject(about)
    return _named(value)


def _ground(about: dict[str, Any]) -> Ground:
    """Only checks of one mode on the same prompts of one set, answered and judged alike, compare."""
    chosen = mapping(about.get("set"))
    prompts, mode = number(about.get("prompts")), about.get("mode", "generate")
    details = (
        f"set {str(chosen['fingerprint'])[:8]}" if chosen.get("fingerprint") else "",
        f"part {chosen['part']}" if chosen.get("part") else "",
        "" if prompts is None else f"{prompts:.0f} prompts",
        # What answers another judge, or after other lengths, would be called is another score.
        *(f"{name} {about[name]}" for name in JUDGED_BY if mode == "generate" and about.get(name) is not None),
    )
    return Ground(f"DRIFTCHECK ({mode} mode)", ", ".join(filter(None, details)))


def _before(scores: dict[str, Any], ground: Ground) -> tuple[Score, ...]:
    """What the baseline scored on the same prompts: the tuned score and what was lost tell it, but no interval."""
    found = []
    for quantity in (REFUSAL, OVER_REFUSAL, TOXICITY):
        after, lost = read_metric(scores.get(quantity.key)), read_metric(mapping(scores.get("drift")).get(quantity.key))
        if after is not None and lost is not None and after.value is not None and lost.value is not None:
            value = after.value + (lost.value if quantity.higher else -lost.value)
            found.append(Score(quantity, ground, Metric(round(value, 12))))
    return tuple(found)


def _scores(scores: dict[str, Any], ground: Ground, compared: bool) -> tuple[Score, ...]:
    """Scores with their change, tuned minus start; the file's drift is what was lost."""
    drift = mapping(scores.get("drift"))
    found = []
    for quantity in _MEASURED:
        metric = read_metric(scores.get(quantity.key))
        if metric is None or metric.value is None:
            continue
        lost = read_metric(drift.get(quantity.key))
        change = turned(lost) if quantity.higher else lost
        if quantity is KL:
            change = metric if compared else None
        found.append(Score(quantity, ground, metric, change, paired=change is not None))
    return tuple(found)


def _reduction(scores: dict[str, Any], about: dict[str, Any], ground: Ground, notes: list[str]) -> tuple[Score, ...]:
    """The share of a second run's lost refusals that is avoided; why there is none goes into ``notes``."""
    found = mapping(mapping(scores.get("drift_reduction")).get(REFUSAL.key))
    metric = read_metric(found)
    other = _of_run(about.get("against"))
    name = f"{ground.name}, against {subject_name(other)}" if other else ground.name
    if note := found.get("note"):
        notes.append(f"Drift reduction on {name}: {note}.")
    if metric is None or metric.value is None:
        return ()
    return (Score(DRIFT_REDUCTION, Ground(name, ground.detail), metric),)


def _categories(scores: dict[str, Any], ground: Ground) -> tuple[Category, ...]:
    found = []
    for item in map(mapping, sequence(scores.get("categories"))):
        label = str(item.get("label", ""))
        quantities: tuple[tuple[Quantity, tuple[str, ...]], ...] = (
            (REFUSAL if label == "unsafe" else OVER_REFUSAL, ("refused", "refusal", "over_refusal")),
            (TOXICITY, ("toxicity",)),
        )
        for quantity, names in quantities:
            metric = next((one for name in names if (one := read_metric(item.get(name)))), None)
            if metric is not None and metric.value is not None:
                prompts = number(item.get("prompts"))
                found.append(Category(quantity, ground, label, str(item.get("category", "")), prompts, metric))
    return tuple(found)
