"""What the directory of an adaptation says of its start and of the adapted model."""

from __future__ import annotations

from pathlib import Path

from loralign.report.adaptation import load_adaptation
from loralign.report.adaptation_records import UNGUARDED, Adaptation, Safety
from loralign.report.records import Metric
from loralign.report.runs.differences import difference, turned
from loralign.report.runs.records import (
    HELD_BACK,
    KL,
    OVER_REFUSAL,
    OWN_PROBE,
    REFUSAL,
    TASK_LOSS,
    Category,
    Curve,
    LayerMap,
    Part,
    Quantity,
    Score,
)
from loralign.report.runs.subjects import subject

_ROLES = {"penalty": "guarded by penalties", "project": "guarded by projection", "unknown": "adapted"}

ENERGY_NOTE = "Share of each layer's Fisher energy that the directions of the alignment subspace capture."


def read_adapt(directory: Path) -> list[Part]:
    """Return the start and the adapted model.

    Raises:
        StateError: as :func:`loralign.report.load_adaptation`.
    """
    run = load_adaptation(directory)
    start = (subject(run.model), subject(str(directory / "start")))
    scores = run.scores
    before = scores.safety_before if scores else None
    after = scores.safety_after if scores else None
    return [
        Part(
            subjects=start,
            role="start",
            scores=(
                *_score(TASK_LOSS, scores.task_before if scores else None),
                Score(KL, OWN_PROBE, Metric(0.0)),
                *refusals(before, None),
            ),
            categories=by_category(before),
        ),
        Part(
            subjects=(subject(str(directory / "adapter")), subject(str(directory))),
            name=run.name,
            role="adapted without a guard" if run.mode in UNGUARDED else _ROLES.get(run.mode, "guarded"),
            reference=start,
            scores=_gained(run) + refusals(after, before),
            categories=by_category(after),
            curves=_curves(run),
            layer_maps=_layer_maps(run),
            samples=run.samples,
            config=run.config,
            data=run.data,
            environment=run.environment,
            command=run.command,
            notes=tuple(f"{run.name}: {note}" for note in run.notes),
        ),
    ]


def _gained(run: Adaptation) -> tuple[Score, ...]:
    if run.scores is None:
        return ()
    drift = run.scores.drift
    task = _score(TASK_LOSS, run.scores.task_after, turned(run.scores.task_gain), paired=True)
    return task if drift is None else (*task, Score(KL, OWN_PROBE, drift, drift, paired=True))


def _score(
    quantity: Quantity, metric: Metric | None, change: Metric | None = None, paired: bool = False
) -> tuple[Score, ...]:
    return () if metric is None else (Score(quantity, HELD_BACK, metric, change, paired),)


def refusals(safety: Safety | None, before: Safety | None) -> tuple[Score, ...]:
    """Return the shares of unsafe and of safe prompts that were refused, with their change from ``before``."""
    if safety is None:
        return ()
    pairs = (
        (REFUSAL, safety.refusal, before.refusal if before else None),
        (OVER_REFUSAL, safety.over_refusal, before.over_refusal if before else None),
    )
    return tuple(
        Score(quantity, OWN_PROBE, metric, difference(metric, earlier))
        for quantity, metric, earlier in pairs
        if metric is not None
    )


def by_category(safety: Safety | None) -> tuple[Category, ...]:
    """Return the shares refused by label and category."""
    if safety is None:
        return ()
    return tuple(
        Category(
            REFUSAL if label == "unsafe" else OVER_REFUSAL,
            OWN_PROBE,
            label,
            category,
            safety.prompts.get((label, category)),
            metric,
        )
        for (label, category), metric in safety.categories.items()
    )


def _curves(run: Adaptation) -> tuple[Curve, ...]:
    loss = tuple((step.step, step.loss) for step in run.steps if step.loss is not None)
    drift = tuple((probe.step, probe.kl) for probe in run.probes if probe.kl is not None)
    refused = tuple((one.step, 100 * one.rate) for one in run.refusals if one.rate is not None)
    curves = (
        Curve("task-loss", "Task loss", "loss (nats per token)", "", loss, noisy=True),
        Curve("drift", "Drift from the start, on each run's own probe", "KL (nats per token)", "", drift),
        Curve("refusals", "Refusals of the probe's unsafe prompts", "refused (%)", "", refused),
    )
    return tuple(curve for curve in curves if curve.points)


def _layer_maps(run: Adaptation) -> tuple[LayerMap, ...]:
    energies = {
        name: {"energy": values.get("energy")}
        for name, values in (run.subspace.layers if run.subspace else {}).items()
        if values.get("energy") is not None
    }
    if not energies:
        return ()
    return (LayerMap("energy", "Fisher energy captured by layer", ENERGY_NOTE, "energy", "", energies),)
