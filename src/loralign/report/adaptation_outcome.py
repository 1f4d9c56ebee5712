"""What an adaptation gained, and what it lost: the table of its scores, and a sentence on the task."""

from __future__ import annotations

from loralign.report.adaptation_records import Adaptation
from loralign.report.guard_outcome import kept_rows
from loralign.report.guard_records import UNGUARDED
from loralign.report.intervals import interval, turned


def score_rows(run: Adaptation) -> list[tuple[str, ...]]:
    """Return the scores before and after as text, one row each, in the order of ``SCORE_HEADINGS``."""
    scores = run.scores
    if scores is None:
        return []
    task = map(interval, (scores.task_before, scores.task_after, turned(scores.task_gain)))
    return [("task loss (nats per token)", *task), *kept_rows(run)]


def gained_sentences(run: Adaptation) -> list[str]:
    """Return what became of the task, with what could be done about it."""
    gain = run.scores.task_gain if run.scores else None
    if gain is None or gain.value is None:
        return []
    moved = f"{'fell' if gain.value >= 0 else 'rose'} by {interval(turned(gain) if gain.value < 0 else gain)}"
    text = f"Gained: the loss on held-back task samples {moved} nats per token."
    if gain.low is not None and gain.low > 0:
        return [text]
    if gain.high is not None and gain.high < 0:
        return [f"{text} The task was not learnt: lower the learning rate, or look at the training data."]
    advice = "train longer, raise the learning rate, or hold back more samples (--validation_samples)"
    if run.mode not in (*UNGUARDED, "unknown"):
        advice += "; if that does not help, loosen the guard"
    return [f"{text} The interval does not exclude zero, so nothing shows that the task was learnt: {advice}."]
