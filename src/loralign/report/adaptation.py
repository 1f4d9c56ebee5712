"""Reading the directory of an adaptation: ``run.json``, ``guard.jsonl``, ``scores.json`` and ``samples.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loralign.report.adaptation_records import (
    Adaptation,
    AdaptationScores,
    GuardStep,
    GuardWarning,
    Probe,
    Reestimate,
    RefusalRate,
    Safety,
    Subspace,
    TaskStep,
)
from loralign.report.coerce import clean_text, mapping, number, numbers, sequence, strings
from loralign.report.reading import read_about, read_log, read_metric, read_optional, read_sample

ADAPT = "adapt"
"""The kind of run that this reader knows."""

_KINDS = ("train", "task", "guard", "probe", "reestimate", "refusal", "warning")


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
    log = read_log(folder / "guard.jsonl", _KINDS, "its course", notes, several=("warning",))
    probes = tuple(_probe(*record) for record in log["probe"])
    scores = mapping(read_optional(folder / "scores.json", "scores", notes))
    samples = sequence(read_optional(folder / "samples.json", "sample answers", notes))
    subspace, guard = mapping(about.get("subspace")), str(about.get("guard", "unknown"))
    settings = mapping(mapping(about.get("config")).get("guard"))
    budget = number(settings.get("drift_budget"))
    return Adaptation(
        name=clean_text(folder.resolve().name),
        model=str(about.get("model", "an unnamed model")),
        guard=guard,
        mode=guard if guard in ("none", "unknown") else str(settings.get("guard_mode", "unknown")),
        budget=next((p.budget for p in reversed(probes) if p.budget is not None), None) if budget is None else budget,
        status=str(about.get("status", "unknown")),
        seconds=number(about.get("seconds")),
        seed=about.get("seed"),
        command=strings(about.get("command")),
        config=mapping(about.get("config")),
        data=mapping(about.get("data")),
        environment=mapping(about.get("environment")),
        subspace=_subspace(subspace) if subspace else None,
        steps=tuple(_task_step(*record) for record in log["train"]),
        held_back=tuple(TaskStep(step, number(record.get("loss"))) for step, record in log["task"]),
        guard_steps=tuple(_guard_step(*record) for record in log["guard"]),
        probes=probes,
        reestimates=tuple(
            Reestimate(step, number(record.get("similarity")), number(record.get("least")))
            for step, record in log["reestimate"]
        ),
        refusals=tuple(RefusalRate(step, number(record.get("rate"))) for step, record in log["refusal"]),
        warnings=tuple(_warning(*record) for record in log["warning"]),
        scores=_scores(scores) if scores else None,
        samples=tuple(map(read_sample, samples)),
        notes=tuple(notes),
    )


def _task_step(step: int, record: dict[str, Any]) -> TaskStep:
    names = ("loss", "learning_rate", "grad_norm")
    return TaskStep(step, *(number(record.get(name)) for name in names))


def _guard_step(step: int, record: dict[str, Any]) -> GuardStep:
    return GuardStep(
        step=step,
        multiplier=number(record.get("multiplier")),
        strength=number(record.get("strength")),
        weights=numbers(record.get("weights")),
        penalty=numbers(record.get("penalty")),
    )


def _probe(step: int, record: dict[str, Any]) -> Probe:
    names = ("kl", "logprob_lost", "entropy", "share", "budget", "multiplier")
    return Probe(step, *(number(record.get(name)) for name in names))


def _warning(step: int, record: dict[str, Any]) -> GuardWarning:
    return GuardWarning(step, *(str(record.get(name) or "") for name in ("code", "message", "fix")))


def _subspace(value: dict[str, Any]) -> Subspace:
    facts = {name: item for name, item in value.items() if name != "layers"}
    return Subspace(facts, {name: numbers(item) for name, item in mapping(value.get("layers")).items()})


def _scores(value: dict[str, Any]) -> AdaptationScores:
    share = read_metric(value.get("share"))
    return AdaptationScores(
        task_before=read_metric(value.get("task_before")),
        task_after=read_metric(value.get("task_after")),
        task_gain=read_metric(value.get("task_gain")),
        drift=read_metric(value.get("drift")),
        logprob_lost=read_metric(value.get("logprob_lost")),
        safety_before=read_safety(value.get("safety_before")),
        safety_after=read_safety(value.get("safety_after")),
        share=share.value if share else None,
    )


def read_safety(value: Any) -> Safety | None:
    """Refusals as a run or a repair wrote them down; ``None`` where no answers were judged."""
    if not isinstance(value, dict):
        return None
    categories = [mapping(item) for item in sequence(value.get("categories"))]
    found = {
        (str(item.get("label", "")), str(item.get("category", ""))): (
            read_metric(item.get("refused")),
            item.get("prompts"),
        )
        for item in categories
    }
    return Safety(
        refusal=read_metric(value.get("refusal")),
        over_refusal=read_metric(value.get("over_refusal")),
        categories={key: refused for key, (refused, _) in found.items() if refused is not None},
        prompts={key: number(prompts) for key, (_, prompts) in found.items()}
        | {(label, ""): number(value.get(label)) for label in ("unsafe", "safe")},
    )
