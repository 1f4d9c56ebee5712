"""Reading what a guard leaves in a run's directory: ``guard.jsonl``, and its part of the description and the scores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loralign.report.coerce import mapping, number, numbers, sequence
from loralign.report.guard_records import (
    GuardedRun,
    GuardScores,
    GuardStep,
    GuardWarning,
    Probe,
    Reestimate,
    RefusalRate,
    Safety,
    Subspace,
    TaskStep,
)
from loralign.report.reading import read_log, read_metric

GUARD_LOG = "guard.jsonl"

_KINDS = ("train", "task", "guard", "probe", "reestimate", "refusal", "warning")


def is_guarded(directory: Path, about: Mapping[str, Any]) -> bool:
    """Say whether a guard has left anything in a run's directory, or ought to have.

    Args:
        directory: of the run.
        about: its ``run.json``.
    """
    return bool(mapping(about.get("subspace"))) or (directory / GUARD_LOG).exists()


def read_guarded(directory: Path, about: Mapping[str, Any], scores: Mapping[str, Any], notes: list[str]) -> GuardedRun:
    """Read what a guard did in a run; a value of the wrong type counts as absent.

    Args:
        directory: of the run.
        about: its ``run.json``.
        scores: its ``scores.json``, empty where there is none.
        notes: gets a sentence for whatever is missing.
    """
    log = read_log(directory / GUARD_LOG, _KINDS, "its course", notes, several=("warning",))
    probes = tuple(_probe(*record) for record in log["probe"])
    subspace, config = mapping(about.get("subspace")), mapping(about.get("config"))
    settings = mapping(config.get("guard"))
    guard = str(about.get("guard", mapping(config.get("run")).get("guard", "unknown")))
    budget = number(settings.get("drift_budget"))
    found, steps = read_guard_scores(scores), number(about.get("steps"))
    return GuardedRun(
        guard=guard,
        mode=guard if guard in ("none", "unknown") else str(settings.get("guard_mode", "unknown")),
        budget=next((p.budget for p in reversed(probes) if p.budget is not None), None) if budget is None else budget,
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
        scores=found if any(value is not None for value in vars(found).values()) else None,
        config=config,
        data=mapping(about.get("data")),
        recorded=None if steps is None else int(steps),
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


def read_guard_scores(value: Mapping[str, Any]) -> GuardScores:
    """Return what a run scored of what had to survive."""
    share = read_metric(value.get("share"))
    return GuardScores(
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
