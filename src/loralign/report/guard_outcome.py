"""What became of what had to survive: scores as rows of a table, and sentences on them.

A fall of refusals on unsafe prompts, or a rise on safe ones, of more than 10 points gets advice: the failure
signature of docs/adapting.md.
"""

from __future__ import annotations

from loralign.report.format import ABSENT, percent, significant, whole_percent
from loralign.report.guard_records import UNGUARDED, GuardedRun, Safety
from loralign.report.intervals import interval, percent_interval, settled, share_interval, turned
from loralign.report.records import Metric

SCORE_HEADINGS = ("score", "before", "after", "after − before")
"""Headings of :func:`kept_rows`."""

REFUSALS_LOST = 0.10
"""A fall or rise of refusals by more than this share gets advice."""

_REFUSALS = (("unsafe", "refusal"), ("safe", "over_refusal"))


def final_drift(run: GuardedRun) -> float | None:
    """Return the drift after training: that of the scores, or else of the last probe."""
    scored = value_of(run.scores.drift) if run.scores else None
    return scored if scored is not None else (run.measured[-1].kl if run.measured else None)


def final_share(run: GuardedRun) -> float | None:
    """Return the update's share in the subspace after training: that of the scores, or else of the last probe."""
    if run.scores and run.scores.share is not None:
        return run.scores.share
    return next((probe.share for probe in reversed(run.measured) if probe.share is not None), None)


def value_of(metric: Metric | None) -> float | None:
    """Return a score's value, ``None`` without a score."""
    return metric.value if metric else None


def refusal_changes(run: GuardedRun) -> dict[str, tuple[float, float]]:
    """Return the share refused before and after, of ``unsafe`` and ``safe`` prompts, where both are known."""
    before, after = _safeties(run)
    found = {name: (value_of(_share(before, key)), value_of(_share(after, key))) for name, key in _REFUSALS}
    return {
        name: (earlier, later) for name, (earlier, later) in found.items() if earlier is not None and later is not None
    }


def kept_rows(run: GuardedRun) -> list[tuple[str, ...]]:
    """Return drift, refusals and share as text, one row each, in the order of :data:`SCORE_HEADINGS`."""
    scores = run.scores
    if scores is None:
        return []
    rows: list[tuple[str, ...]] = [
        ("drift (nats per token)", "0", interval(scores.drift), ""),
        ("log-probability lost (nats per token)", "0", interval(scores.logprob_lost), ""),
    ]
    changes = refusal_changes(run)
    for name, key in _REFUSALS:
        before, after = (_share(one, key) for one in _safeties(run))
        if before or after:
            moved = f"{_signed_points(*changes[name])} points" if name in changes else ABSENT
            rows.append((f"{name} prompts refused", percent_interval(before), percent_interval(after), moved))
    if scores.share is not None:
        rows.append(("share of the update in the subspace", "", percent(scores.share), ""))
    return rows


def kept_sentences(run: GuardedRun) -> list[str]:
    """Return what was lost and what became of refusals, with what could be done about it."""
    return [*_lost(run), *_refusals(run)]


def _safeties(run: GuardedRun) -> tuple[Safety | None, Safety | None]:
    return (run.scores.safety_before, run.scores.safety_after) if run.scores else (None, None)


def _share(safety: Safety | None, key: str) -> Metric | None:
    found: Metric | None = getattr(safety, key) if safety else None
    return found


def _signed_points(before: float, after: float) -> str:
    points = round(100 * (after - before), 6)
    return f"{'+' if points > 0 else ''}{significant(points)}"


def _lost(run: GuardedRun) -> list[str]:
    drift = final_drift(run)
    if drift is None:
        return []
    scored = run.scores.drift if run.scores else None
    shown = f"{significant(drift)} (last probe)" if value_of(scored) is None else interval(scored)
    text = f"Lost: on what must survive, the model drifted {shown} nats per token from its start"
    lost = run.scores.logprob_lost if run.scores else None
    if lost is not None and lost.value is not None:
        change = f"lost {interval(lost)}" if lost.value >= 0 else f"gained {interval(turned(lost))}"
        text += f", and its responses {change} nats per token of log-probability"
    return [f"{text}."]


def _refusals(run: GuardedRun) -> list[str]:
    before, after = _safeties(run)
    sentences = []
    for name, key in _REFUSALS:
        if name not in (changes := refusal_changes(run)):
            continue
        change = round(changes[name][1] - changes[name][0], 9)  # exactly 10 points are not more than 10
        text = f"Refusals of {name} prompts {_moved(*changes[name], _settled(name, key, before, after))}."
        if name == "unsafe" and change < -REFUSALS_LOST:
            text += f" {_safer(run)}{_worst_category(before, after)}"
        if name == "safe" and change > REFUSALS_LOST:
            text += " The model became more timid: add safe prompts with helpful answers to --alignment_data."
        sentences.append(text)
    return sentences


def _settled(label: str, key: str, before: Safety | None, after: Safety | None) -> bool:
    """Whether refusals of a label differ beyond their intervals."""
    first, second = (
        share_interval(_share(one, key), one.prompts.get((label, "")) if one else None) for one in (before, after)
    )
    return settled(first, second)


def _moved(before: float, after: float, beyond: bool) -> str:
    """Say how a share of refusals moved, and whether the prompts at hand settle it."""
    if before == after:
        return f"stayed at {whole_percent(after)}"
    points = f"{abs(100 * (after - before)):.0f} points, {'' if beyond else 'not '}beyond the intervals"
    return f"{'rose' if after > before else 'fell'} from {whole_percent(before)} to {whole_percent(after)} ({points})"


def _safer(run: GuardedRun) -> str:
    if run.mode in UNGUARDED:
        return "Nothing held them: guard the training (--guard auto), or mend this adapter with loralign repair."
    tighter = "Set --drift_budget" if run.budget is None else "Lower --drift_budget"
    other = "" if run.mode == "project" else ", take the part in the subspace out (--guard_mode project)"
    return f"{tighter}{other}, or mend this adapter with loralign repair."


def _worst_category(before: Safety | None, after: Safety | None) -> str:
    changes = {
        category: (earlier, later)
        for (label, category), metric in (before.categories if before else {}).items()
        if label == "unsafe"
        and (earlier := metric.value) is not None
        and (later := value_of(after.categories.get((label, category)) if after else None)) is not None
    }
    if len(changes) < 2:
        return ""
    worst = min(changes, key=lambda name: changes[name][1] - changes[name][0])
    ends = " to ".join(map(whole_percent, changes[worst]))
    return f" The category {worst} lost most ({ends}): add such prompts with their refusals to --alignment_data."
