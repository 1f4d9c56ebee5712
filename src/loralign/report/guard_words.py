"""Sentences on what a guard did: whether the budget held, what it pressed on, and what the monitors warned of.

Thresholds:

- budget: a drift of up to a tenth above it counts as just missed; under half of it leaves room;
- share: under a hundredth of the update in the subspace, what drift there is comes from elsewhere; under penalties more
  than a twentieth means that they press lightly;
- subspace: agreement under 0.85, of halves of the samples or between estimates, is unstable (docs/adapting.md).
"""

from __future__ import annotations

from collections.abc import Mapping

from loralign.report.coerce import mapping, number
from loralign.report.diagnosis import known, mean
from loralign.report.format import count, listing, percent, significant, whole_percent
from loralign.report.guard_outcome import final_drift, final_share, kept_sentences, refusal_changes, value_of
from loralign.report.guard_records import UNGUARDED, GuardedRun, GuardWarning
from loralign.report.records import Numbers

JUST_MISSED = 1.1
ROOM = 0.5
LITTLE_SHARE = 0.01
MUCH_SHARE = 0.05
UNSTABLE = 0.85
AT_BOUND = 0.99

_HELD_BY = {
    "none": "without a guard (plain LoRA)",
    "measure": "with a guard that only measured",
    "penalty": "with its alignment held by penalties",
    "project": "with its alignment held by projection",
}
_WEIGHTS = {"alignment": "λ_A", "stability": "λ_T", "collision": "λ_NC"}


def held_by(run: GuardedRun) -> str:
    """Return what held the alignment, as a part of a sentence."""
    return _HELD_BY.get(run.mode, f"with guard {run.guard}")


def drift_amount(run: GuardedRun) -> str | None:
    """Return the drift in the end and its budget, as a part of a sentence; ``None`` where none was measured."""
    drift = final_drift(run)
    if drift is None:
        return None
    where = "" if run.scores and value_of(run.scores.drift) is not None else ", by the last probe"
    return f"{significant(drift)} nats per token from the start{_against_budget(run, drift)}{where}"


def refusals_told(run: GuardedRun) -> str:
    """Return a sentence on the refusals after and before, with a leading space; empty where they are unknown."""
    refused = [
        f"{whole_percent(after)} of {name} prompts ({whole_percent(before)} before)"
        for name, (before, after) in refusal_changes(run).items()
    ]
    return f" It refuses {listing(refused)}." if refused else ""


def guard_sentences(run: GuardedRun) -> list[str]:
    """Explain what was lost and whether the guard held, each with what could be done about it."""
    sentences = [*kept_sentences(run), *_budget(run), *_share(run), *_subspace(run), *_stability(run), *_shared(run)]
    return sentences + _warned(run.warnings)


def _against_budget(run: GuardedRun, drift: float) -> str:
    if run.budget is None:
        return ""
    return f" ({'within' if drift <= run.budget else 'beyond'} the budget of {significant(run.budget)})"


def _budget(run: GuardedRun) -> list[str]:
    drift = final_drift(run)
    if run.mode in UNGUARDED:
        return ["Nothing acted on the update: this run is what a guarded one is to be compared with."]
    if run.budget is None:
        return _without_budget(run)
    if drift is None:
        return [f"The budget was {significant(run.budget)} nats per token; no drift was measured against it."]
    amount = f"drift ended at {significant(drift)} of the {significant(run.budget)} nats per token that may be lost"
    if drift > run.budget:
        how = "just missed" if drift <= JUST_MISSED * run.budget else "not held"
        return [f"The budget was {how}: {amount}{_course(run, run.budget)}. {_tighten(run)}"]
    room = (
        " There is room: a higher learning rate or more steps might stay within it."
        if drift < ROOM * run.budget
        else ""
    )
    return [f"The budget held: {amount}{_course(run, run.budget)}.{room}"]


def _without_budget(run: GuardedRun) -> list[str]:
    if run.mode == "project":
        strength = next((step.strength for step in reversed(run.guard_steps) if step.strength is not None), None)
        what = f"every step took {whole_percent(strength)} of the part in the subspace out" if strength else ""
    else:
        last: Numbers = next((step.weights for step in reversed(run.guard_steps) if step.weights), {})
        fixed = [f"{_WEIGHTS[name]} {significant(value)}" for name, value in known(last).items() if name in _WEIGHTS]
        what = f"the weights stood fixed at {', '.join(fixed)}" if fixed else ""
    if run.mode == "unknown" and not what:
        return []
    return [
        f"There was no budget{f': {what}' if what else ''}. With --drift_budget the guard follows what may be lost."
    ]


def _course(run: GuardedRun, budget: float) -> str:
    drifts = {probe.step: probe.kl for probe in run.measured if probe.kl is not None}
    if not drifts:
        return ""
    over = sum(drift > budget for drift in drifts.values())
    peak = max(drifts, key=drifts.__getitem__)
    most = f"the most was {significant(drifts[peak])} at step {peak}"
    return f"; {over or 'none'} of {len(drifts)} probes on the way lay above it, {most}"


def _tighten(run: GuardedRun) -> str:
    bound = number(mapping(run.config.get("guard")).get("control_max"))
    reached = run.guard_steps[-1].multiplier if run.guard_steps else None
    share = final_share(run)
    if share is not None and share < LITTLE_SHARE:
        return (
            f"Only {percent(share)} of the update lies in the subspace, so this drift comes from outside of it: "
            "estimate a wider subspace (more --fisher_samples, or loralign fisher with more energy)."
        )
    if bound is not None and reached is not None and reached >= AT_BOUND * bound:
        other = "" if run.mode == "project" else ", or use --guard_mode project"
        return f"The multiplier reached its bound of {significant(bound)}: raise --control_max{other}."
    return (
        "Let the guard catch up: probe more often (--probe_every), raise --control_rate, or lower the learning rate; "
        "loralign repair brings this adapter within the budget without training."
    )


def _share(run: GuardedRun) -> list[str]:
    share = final_share(run)
    if share is None:
        return []
    text = f"Of the update, by squared norm, {percent(share)} lies in the alignment subspace"
    shares = {probe.step: probe.share for probe in run.measured if probe.share is not None}
    peak = max(shares, key=shares.__getitem__, default=None)
    if peak is not None and shares[peak] > 1.1 * share:
        text += f" (at most it was {percent(shares[peak])}, at step {peak})"
    if run.mode == "penalty" and share > MUCH_SHARE:
        text += ": the penalty presses lightly on it; a higher --lambda_alignment or a smaller budget removes more"
    return [f"{text}."]


def _subspace(run: GuardedRun) -> list[str]:
    if run.subspace is None or not run.subspace.layers:
        return []
    layers, facts = run.subspace.layers, run.subspace.facts
    text = f"The subspace covers {count(len(layers))} layers"
    if ranks := _range(layers, "rank"):
        span = count(ranks[0]) if ranks[0] == ranks[2] else f"{count(ranks[0])} to {count(ranks[2])}"
        text += f" with {span} directions each"
    if energies := _range(layers, "energy"):
        text += f"; they capture {whole_percent(energies[1])} of the Fisher energy on average"
        text += f", {whole_percent(energies[0])} at the least"
    samples, halves = number(facts.get("samples")), number(facts.get("half_agreement"))
    text += "." if samples is None else f" ({count(samples)} samples)."
    if halves is not None and halves < UNSTABLE:
        text += f" Halves of the samples agree to {significant(halves)} only: use more of them (--fisher_samples)."
    return [text]


def _stability(run: GuardedRun) -> list[str]:
    found = [(one.step, one.similarity) for one in run.reestimates if one.similarity is not None]
    if not found:
        return []
    step, least = min(found, key=lambda item: item[1])
    if len(found) == 1:
        text = f"It was estimated again at step {step} and agreed with the earlier one to {significant(least)}."
    else:
        text = (
            f"It was estimated again {len(found)} times and agreed with the one before to {significant(least)} or more."
        )
    if least < UNSTABLE:
        text += " It moves: use more samples (--fisher_samples), or estimate it more often (--reestimate_every)."
    return [text]


def _range(layers: Mapping[str, Numbers], key: str) -> tuple[float, float, float] | None:
    """Least, mean and greatest of a number over layers."""
    values = known({name: value.get(key) for name, value in layers.items()})
    average = mean(values)
    return None if average is None else (min(values.values()), average, max(values.values()))


def _shared(run: GuardedRun) -> list[str]:
    shared, probes = (number(run.data.get(name)) for name in ("probe_prompts_in_training", "probe"))
    if not shared:
        return []
    return [
        f"{count(shared)} of the probe's {count(probes)} prompts are in the training data, so drift looks smaller than "
        "it is: name other prompts with --probe_data."
    ]


def _warned(warnings: tuple[GuardWarning, ...]) -> list[str]:
    """One sentence per kind of warning, with its first step and how often it came."""
    kinds: dict[str, list[GuardWarning]] = {}
    for warning in warnings:
        kinds.setdefault(warning.code or warning.message, []).append(warning)
    sentences = []
    for found in kinds.values():
        first = found[0]
        when = f"at step {first.step}" if len(found) == 1 else f"{len(found)} times, first at step {first.step}"
        fix = f" What to change: {_ended(first.fix)}" if first.fix else ""
        sentences.append(f"Warning, {when}: {_ended(first.message or first.code or 'without a message')}{fix}")
    return sentences


def _ended(text: str) -> str:
    return f"{text.strip().rstrip('.')}."
