"""What an adaptation says: its headline, and sentences on what was gained, what was lost and what held it."""

from __future__ import annotations

from loralign.report.adaptation_outcome import gained_sentences
from loralign.report.adaptation_records import Adaptation
from loralign.report.format import count, listing, significant
from loralign.report.guard_words import drift_amount, guard_sentences, held_by, refusals_told
from loralign.report.words import state


def adaptation_headline(run: Adaptation) -> str:
    """Return what was gained and what was lost, in one or two plain sentences."""
    steps = f" after {count(run.taken)} steps" if run.taken is not None else ""
    start = f"{run.model} adapted {held_by(run)}{steps}{state(run.status)}"
    parts = []
    if run.scores and run.scores.task_before and run.scores.task_after:
        ends = [significant(metric.value) for metric in (run.scores.task_before, run.scores.task_after)]
        parts.append(f"held-back task loss {' → '.join(ends)} nats per token")
    if amount := drift_amount(run):
        parts.append(f"drift {amount}")
    return f"{start}: {listing(parts) or 'there are no scores before and after to compare'}.{refusals_told(run)}"


def explain_guard(run: Adaptation) -> list[str]:
    """Explain what was gained, what was lost and whether the guard held, each with what could be done about it."""
    sentences = [*gained_sentences(run), *guard_sentences(run)]
    return sentences or ["Nothing was measured in this run: it has no scores, no probe and no guard."]
