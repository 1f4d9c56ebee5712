"""What the directory of an alignment run says of its base and of the aligned model."""

from __future__ import annotations

from pathlib import Path

from loralign.report.alignment_records import Run
from loralign.report.coerce import mapping
from loralign.report.data import load_run
from loralign.report.records import Metric, ScoreSet, accuracy
from loralign.report.runs.differences import difference
from loralign.report.runs.from_guard import (
    by_category,
    energy_maps,
    guard_curves,
    guard_role,
    kept_scores,
    start_scores,
)
from loralign.report.runs.records import HELD_BACK, KL, PREFERENCE, Curve, LayerMap, Part, Quantity, Score
from loralign.report.runs.subjects import subject
from loralign.report.words import DRIFT

_NOTE = "γ, the share of each objective's gradient (by length) that LoRA's subspace can reach, at step {step}."


def read_align(directory: Path) -> list[Part]:
    """Return the base and the aligned model.

    Raises:
        StateError: as :func:`loralign.report.load_run`.
    """
    run = load_run(directory)
    guarded = run.guarded
    # An adapter that was trained on is what the run began with and is compared to, not the base below it. A guard takes
    # none but a fresh one, which is the base.
    adapter = None if guarded else mapping(run.config.get("run")).get("adapter")
    base = (subject(str(adapter or run.model)),)
    kept = guarded.scores if guarded else None
    role = f"aligned, {run.weighting} weighting"
    return [
        Part(
            subjects=base,
            role="start",
            # The probe first: of two drifts it is the one that other runs have too.
            scores=(start_scores(guarded) if guarded and kept else ()) + _scores(run, "before"),
            categories=by_category(kept.safety_before if kept else None),
        ),
        Part(
            subjects=(subject(str(directory / "adapter")), subject(str(directory))),
            name=run.name,
            role=", ".join(filter(None, (role, guard_role(guarded) if guarded else ""))),
            reference=base,
            scores=(kept_scores(guarded) if guarded else ()) + _scores(run, "after", "before"),
            categories=by_category(kept.safety_after if kept else None),
            curves=_curves(run) + (guard_curves(guarded) if guarded else ()),
            layer_maps=_layer_maps(run) + (energy_maps(guarded) if guarded else ()),
            samples=run.samples,
            config=run.config,
            data=run.data,
            environment=run.environment,
            command=run.command,
            notes=tuple(f"{run.name}: {note}" for note in run.notes),
        ),
    ]


def _scores(run: Run, moment: str, start: str | None = None) -> tuple[Score, ...]:
    """Preference accuracy of all pairs and of each objective, and the drift of implicit policy and reference."""
    found: list[Score] = []
    objectives: list[str | None] = [None, *(run.objectives if len(run.objectives) > 1 else ())]
    for name in objectives:
        metric = accuracy(_measures(run.scores.get(moment), name))
        if metric is None or metric.value is None:
            continue
        paired = accuracy(_measures(run.scores.get("difference"), name)) if start else None
        earlier = accuracy(_measures(run.scores.get(start), name)) if start else None
        change = paired or difference(metric, earlier)
        quantity = PREFERENCE if name is None else _of_objective(name)
        found.append(Score(quantity, HELD_BACK, metric, change, paired is not None))
    drift = _measures(run.scores.get(moment), None).get(DRIFT)
    if drift is not None and drift.value is not None:
        found.append(Score(KL, HELD_BACK, drift, drift if start else None, paired=start is not None))
    elif start is None and found:
        found.append(Score(KL, HELD_BACK, Metric(0.0)))
    return tuple(found)


def _of_objective(name: str) -> Quantity:
    return Quantity(f"{PREFERENCE.key}:{name}", f"{PREFERENCE.title}, {name}", "share", True, True)


def _measures(scores: ScoreSet | None, name: str | None) -> dict[str, Metric]:
    if scores is None:
        return {}
    return scores.overall if name is None else scores.objectives.get(name, {})


def _curves(run: Run) -> tuple[Curve, ...]:
    curves = [
        Curve(
            "preference-loss",
            "Preference loss per objective",
            "loss (nats)",
            name,
            tuple(
                (step.step, value)
                for step in run.steps
                if (value := step.objectives.get(name, {}).get("loss")) is not None
            ),
            noisy=True,
        )
        for name in run.objectives
    ]
    return tuple(curve for curve in curves if curve.points)


def _layer_maps(run: Run) -> tuple[LayerMap, ...]:
    record = next((one for one in reversed(run.measurements) if one.layer_attenuation), None)
    if record is None:
        return ()
    note = _NOTE.format(step=record.step)
    title = "Attenuation γ by layer and objective"
    return (LayerMap("attenuation", title, note, "γ", "objective", record.layer_attenuation),)
