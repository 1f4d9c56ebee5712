"""What a whole run says: its headline, its summary table, and the story of its geometry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loralign.report.alignment_records import Run
from loralign.report.diagnosis import angle, diagnosis_sentences, known, mean
from loralign.report.format import ABSENT, count, listing, percent, significant, whole_percent
from loralign.report.guard_words import drift_amount, held_by, refusals_told
from loralign.report.intervals import percent_interval, settled
from loralign.report.records import Measurement, Metric, ScoreSet, accuracy

DRIFT = "kl_policy_reference"
"""The drift that summaries show: KL(policy ‖ reference), in nats per token."""

TREND = 0.1
"""A γ that moved by less than this share of its first value is called steady."""

OPTIMISER_EXCESS = 0.1
"""By this much the step taken must be more distorted than the mixture before the optimiser is named as the cause."""

SUMMARY_HEADINGS = (
    "objective",
    "accuracy before",
    "accuracy after",
    "reward accuracy after",
    "drift KL (nats/token)",
    "γ",
    "weight",
)
"""Headings of :meth:`SummaryRow.cells`."""

_METHODS = {
    "uniform": "uniform weights",
    "norm": "GA-LoRA-Norm",
    "geo": "GA-LoRA-Geo",
    "geo_layer": "GA-LoRA-Geo per layer",
    "match": "progress-matching weights",
}


@dataclass(frozen=True)
class SummaryRow:
    """One objective's line of the summary: scores with intervals, drift in nats per token, γ and weight at the end.

    ``reward`` is the accuracy of the implicit rewards, which is one half by definition before training. ``settled``
    says whether before and after differ beyond the bootstrap: by the interval of the paired difference where there is
    one, or else by intervals that do not overlap.
    """

    objective: str
    before: Metric | None
    after: Metric | None
    reward: Metric | None
    settled: bool
    drift: Metric | None
    attenuation: float | None
    weight: float | None
    target: float | None

    def cells(self) -> tuple[str, ...]:
        """Return the row as text, in the order of :data:`SUMMARY_HEADINGS`."""
        drift = self.drift.value if self.drift else None
        weight = significant(self.weight)
        return (
            self.objective,
            percent_interval(self.before),
            percent_interval(self.after),
            percent_interval(self.reward),
            significant(drift),
            significant(self.attenuation),
            weight if self.target is None or weight == ABSENT else f"{weight} (target {significant(self.target)})",
        )


def method(run: Run) -> str:
    """Return the weighting's name as the literature has it."""
    return _METHODS.get(run.weighting.lower(), run.weighting)


def summary_rows(run: Run) -> list[SummaryRow]:
    """Return one row per objective, and one over all pairs (``all``) where such scores exist."""
    rows = [_summary_row(run, name) for name in run.objectives]
    overall = _summary_row(run, None)
    return [*rows, overall] if len(rows) > 1 and (overall.before or overall.after) else rows


def _summary_row(run: Run, name: str | None) -> SummaryRow:
    before, after, difference = (_metrics(run.scores.get(key), name) for key in ("before", "after", "difference"))
    last = run.last
    gamma = weight = target = None
    if name is None:
        gamma = mean(last.attenuation) if last else None
    else:
        target = run.targets.get(name)
        gamma = last.attenuation.get(name) if last else None
        weight = last.weights.get(name) if last else None
    earlier, later = accuracy(before), accuracy(after)
    return SummaryRow(
        objective="all" if name is None else name,
        before=earlier,
        after=later,
        reward=after.get("accuracy_reward"),
        settled=settled(earlier, later, accuracy(difference)),
        drift=after.get(DRIFT),
        attenuation=gamma,
        weight=weight,
        target=target,
    )


def _metrics(scores: ScoreSet | None, name: str | None) -> dict[str, Metric]:
    if scores is None:
        return {}
    return scores.overall if name is None else scores.objectives.get(name, {})


def headline(run: Run) -> str:
    """Return the result in one or two plain sentences: the run's own headline, or one made from its scores."""
    if run.stated_headline:
        return run.stated_headline
    steps = run.steps[-1].step + 1 if run.steps else (run.last.step + 1 if run.last else None)
    length = f" after {count(steps)} steps" if steps is not None else ""
    start = f"{run.model} aligned for {listing(run.objectives)} with {method(run)}{length}{state(run.status)}"
    sentences = [f"{start}: {_scored(run)}"]
    tail = []
    after = run.scores.get("after")
    drift = after.overall.get(DRIFT) if after else None
    if drift and drift.value is not None:
        tail.append(f"the policy drifted {significant(drift.value)} nats per token from its reference")
    if run.last and (gamma := mean(run.last.attenuation)) is not None:
        tail.append(f"LoRA's subspace reached {whole_percent(gamma)} of the average gradient")
    if tail:
        text = " and ".join(tail)
        sentences.append(f"{text[0].upper()}{text[1:]}.")
    if run.guarded and (amount := drift_amount(run.guarded)):
        told = f"On what had to survive, {held_by(run.guarded)}, it drifted {amount}"
        sentences.append(f"{told}.{refusals_told(run.guarded)}")
    return " ".join(sentences)


def state(status: str) -> str:
    """Return what a headline says of a run that has not finished, with a leading space."""
    return {"running": " (still running)", "stopped": " (stopped before its end)"}.get(status, "")


def _scored(run: Run) -> str:
    changes, beyond = [], 0
    for row in (_summary_row(run, name) for name in run.objectives):
        if row.before and row.after and row.before.value is not None and row.after.value is not None:
            changes.append(f"{row.objective} {whole_percent(row.before.value)} → {whole_percent(row.after.value)}")
            beyond += row.settled
    if not changes:
        return "there are no scores before and after to compare."
    return f"preference accuracy {', '.join(changes)} (beyond the bootstrap intervals: {beyond} of {len(changes)})."


def explain_geometry(run: Run) -> list[str]:
    """Explain what LoRA's geometry did to each objective over the run, ending with what could be done about it."""
    last, first = run.last, run.first
    if last is None or first is None:
        return ["The geometry was not measured in this run. Set measure_every to measure it."]
    layers = next((m.layer_attenuation for m in reversed(run.measurements) if m.layer_attenuation), {})
    sentences = diagnosis_sentences(
        last.attenuation,
        layer_attenuation=layers,
        cosine=last.cosine,
        objectives=last.objectives or tuple(last.attenuation),
        directional_distortion=last.directional_distortion,
        tradeoff={"total_variation": last.total_variation, "intended": last.intended, "realised": last.realised},
    )
    sentences += _trend(first, last)
    sentences += _step_taken(run.measurements)
    sentences += _refinements(run)
    sentences += _weights(run, last)
    skipped = sum(1 for measurement in run.measurements if measurement.skipped)
    if skipped:
        sentences.append(f"{skipped} of {len(run.measurements)} measurements left the weights unchanged (see the log).")
    return sentences


def _trend(first: Measurement, last: Measurement) -> list[str]:
    start, end = mean(first.attenuation), mean(last.attenuation)
    if first.step == last.step or start is None or end is None:
        return []
    values = f"(mean {significant(start)} at step {first.step}, {significant(end)} at step {last.step})"
    if abs(end - start) < TREND * start:
        return [f"Over the run γ stayed about the same {values}."]
    return [f"Over the run γ {'rose' if end > start else 'fell'} {values}."]


def _step_taken(measurements: Sequence[Measurement]) -> list[str]:
    pairs = [
        (m.step_distortion, m.directional_distortion)
        for m in measurements
        if m.step_distortion is not None and m.directional_distortion is not None
    ]
    if not pairs:
        return []
    taken = sum(pair[0] for pair in pairs) / len(pairs)
    possible = sum(pair[1] for pair in pairs) / len(pairs)
    start = f"The steps actually taken pointed {angle(taken)} away from the mixture's descent direction"
    if taken - possible < OPTIMISER_EXCESS:
        return [f"{start}, about as near as the subspace allows ({angle(possible)})."]
    return [
        f"{start}; the subspace alone would allow {angle(possible)}. "
        "The rest comes from the optimiser (momentum, scaling of each parameter), not from LoRA's rank."
    ]


def _refinements(run: Run) -> list[str]:
    gains = [
        (event, start, end)
        for event in run.refinements
        if (start := mean(event.before)) is not None and (end := mean(event.after)) is not None
    ]
    if not gains:
        return [f"There were {len(run.refinements)} refinements, without γ around them."] if run.refinements else []
    if len(gains) <= 2:
        return [
            f"The refinement at step {event.step} ({event.mode}) took mean γ from {significant(start)} to "
            f"{significant(end)} and changed the function by {percent(event.function_change)}."
            for event, start, end in gains
        ]
    change = sum(end - start for _, start, end in gains) / len(gains)
    worst = max((event.function_change for event, *_ in gains if event.function_change is not None), default=None)
    return [
        f"{len(gains)} refinements changed mean γ by {significant(change)} on average, and the function by at most "
        f"{percent(worst)} each."
    ]


def _weights(run: Run, last: Measurement) -> list[str]:
    ratios = {
        name: weight / target
        for name, weight in known(last.weights).items()
        if (target := run.targets.get(name)) is not None and target > 0
    }
    if not ratios:
        return []
    low, high = min(ratios, key=ratios.__getitem__), max(ratios, key=ratios.__getitem__)
    if ratios[high] - ratios[low] < 0.02:
        return [f"{method(run)} left the weights at their targets (within 2 %)."]
    return [
        f"{method(run)} ended with {high} at {significant(ratios[high])} times its target weight and {low} at "
        f"{significant(ratios[low])} times."
    ]
