"""What was gained and what was lost, in one line for each model."""

from __future__ import annotations

from collections.abc import Sequence

from loralign.report.format import listing
from loralign.report.intervals import interval, percent_interval, turned
from loralign.report.records import Metric
from loralign.report.runs.combining import Arm
from loralign.report.runs.differences import beyond_zero
from loralign.report.runs.records import DRIFT_REDUCTION, KL, REFUSAL, Score
from loralign.report.runs.tables import change_text, score_text

MOST_TOLD = 4
"""Models told of at most."""


def headline_lines(arms: Sequence[Arm]) -> tuple[str, ...]:
    """Return the result in plain words, with numbers and intervals: a line for each model, together whole sentences.

    Told are the models of the start that most have: the change of the task score and of refusals of unsafe prompts, or
    else the KL drift. A change whose interval holds zero is said not to be settled.
    """
    tuned = [arm for arm in arms if any(score.change is not None for score in arm.scores)]
    if not tuned:
        return _without_start(arms)
    told: dict[str | None, list[str]] = {}
    for arm in tuned:
        if clause := _clause(arm):
            told.setdefault(arm.reference, []).append(clause)
    if not told:
        return _without_start(arms)
    start = max(told, key=lambda name: len(told[name]))
    clauses = told[start][:MOST_TOLD]
    rest = sum(map(len, told.values())) - len(clauses)
    more = [f"{rest} more {'model is' if rest == 1 else 'models are'} in the tables."] if rest else []
    clauses[0] = f"{f'Against {start}, ' if start else ''}{clauses[0]}"
    return (*(f"{clause};" for clause in clauses[:-1]), f"{clauses[-1]}.", *more)


def _clause(arm: Arm) -> str:
    told = {"gained": list[str](), "kept": list[str](), "lost": list[str]()}
    for of in (
        [score for score in arm.scores if score.quantity.gains],
        [score for score in arm.scores if score.quantity == REFUSAL],
    ):
        score = _first(of)
        if score is not None and score.change is not None and score.change.value is not None:
            told[_direction(score, score.change.value)].append(_moved(score, score.change))
    parts = [f"{verb} {listing(moves)}" for verb, moves in told.items() if moves]
    drift = _first([score for score in arm.scores if score.quantity == KL])
    if drift is not None and not any(score.quantity == REFUSAL for score in arm.scores):
        parts.append(f"drifted by {interval(drift.metric)} nats per token")
    if not parts:
        return ""
    return f"{arm.name} {listing(parts)}{_saved(arm)}"


def _saved(arm: Arm) -> str:
    reduced = next((score for score in arm.scores if score.quantity == DRIFT_REDUCTION), None)
    if reduced is None or reduced.metric.value is None:
        return ""
    whom = reduced.ground.name.partition("against ")[2] or "the other run"
    less = "less" if reduced.metric.value >= 0 else "more"
    size = reduced.metric if reduced.metric.value >= 0 else turned(reduced.metric)
    return f" ({percent_interval(size)} {less} drift than {whom}{_doubt(reduced.metric)})"


def _direction(score: Score, change: float) -> str:
    if change == 0:
        return "kept"
    return "gained" if (change > 0) == score.quantity.higher else "lost"


def _first(scores: Sequence[Score]) -> Score | None:
    """The score to tell of: one measured for all alike (a check, a task) before one on a run's own samples."""
    changed = [score for score in scores if score.change is not None and score.change.value is not None]
    return min(changed, key=lambda score: score.ground.name.startswith("own"), default=None)


def _moved(score: Score, change: Metric) -> str:
    """Say what moved, and by how much: ``4.10 points [2.00, 6.20] of refusals of unsafe prompts``."""
    what = "refusals of unsafe prompts" if score.quantity == REFUSAL else score.quantity.title
    if change.value is None or change.value == 0:
        return f"its {what}"
    size = change_text(change if change.value > 0 else turned(change), score.quantity)
    if score.quantity.higher:
        return f"{size} of {what}{_doubt(change)}"
    return f"a {what} {'higher' if change.value > 0 else 'lower'} by {size}{_doubt(change)}"


def _doubt(change: Metric) -> str:
    return " (not settled: the interval holds zero)" if beyond_zero(change) is False else ""


def _without_start(arms: Sequence[Arm]) -> tuple[str, ...]:
    told = []
    for arm in arms[:MOST_TOLD]:
        scores = [f"{one.quantity.title} {score_text(one)}" for one in arm.scores if _told(one)]
        if scores:
            told.append(f"{arm.name}: {listing(scores)}.")
    if not told:
        return ("Nothing was scored yet, so there is nothing to say of what was gained or lost.",)
    return (*told, "Nothing was compared with a start, so what was gained or lost is unknown.")


def _told(score: Score) -> bool:
    """Whether a score says something; a start has no drift from itself by definition."""
    return score.metric.value is not None and (score.quantity != KL or score.metric.value != 0)
