"""Reading the directory of an alignment: what it is, its geometry, its guard, its scores and sample answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loralign.report.alignment_records import Run
from loralign.report.coerce import clean_text, mapping, number, numbers, sequence, strings
from loralign.report.guard_reading import is_guarded, read_guarded
from loralign.report.reading import ALIGN, read_about, read_log, read_metric, read_optional, read_sample
from loralign.report.records import LayerRefinement, Measurement, Metric, Refinement, ScoreSet, TrainingStep


def load_run(directory: str | Path) -> Run:
    """Read a run directory.

    Only ``run.json`` must be there. Whatever else is absent, damaged or cut off (a killed run leaves half a last line
    in ``geometry.jsonl``) is left out and named in ``Run.notes``.

    Raises:
        StateError: ``run.json`` is absent, is not a JSON object, or is of another version or kind of run.
    """
    folder = Path(directory)
    about = read_about(folder / "run.json", ALIGN)
    notes: list[str] = []
    kinds = ("measurement", "refinement", "step")
    log = read_log(folder / "geometry.jsonl", kinds, "its course or geometry", notes)
    measurements = [_measurement(*record) for record in log["measurement"]]
    scored = mapping(read_optional(folder / "scores.json", "scores", notes))
    scores = {
        name: _score_set(value)
        for name, value in scored.items()
        if name in ("before", "after", "reference", "difference") and isinstance(value, dict)
    }
    samples = [read_sample(item) for item in sequence(read_optional(folder / "samples.json", "sample answers", notes))]
    stated = about.get("headline")
    return Run(
        name=clean_text(folder.resolve().name),
        model=str(about.get("model", "an unnamed model")),
        objectives=_objectives(about, measurements, scores),
        targets=numbers(about.get("target_weights")),
        weighting=str(about.get("weighting", "unknown")),
        status=str(about.get("status", "unknown")),
        seconds=number(about.get("seconds")),
        seed=about.get("seed"),
        command=strings(about.get("command")),
        config=mapping(about.get("config")),
        data=mapping(about.get("data")),
        environment=mapping(about.get("environment")),
        stated_headline=stated if isinstance(stated, str) and stated.strip() else None,
        guarded=read_guarded(folder, about, scored, notes) if is_guarded(folder, about) else None,
        measurements=tuple(measurements),
        refinements=tuple(_refinement(*record) for record in log["refinement"]),
        steps=tuple(_training_step(*record) for record in log["step"]),
        scores=scores,
        samples=tuple(samples),
        notes=tuple(notes),
    )


def _measurement(step: int, record: dict[str, Any]) -> Measurement:
    weights, tradeoff = mapping(record.get("weights")), mapping(record.get("tradeoff"))
    per_layer = "per_layer" in weights and isinstance(weights["per_layer"], dict)
    skipped = record.get("skipped")
    return Measurement(
        step=step,
        attenuation=numbers(record.get("attenuation")),
        layer_attenuation=_by_layer(record.get("layer_attenuation")),
        weights=numbers(weights.get("mean") if per_layer else weights),
        layer_weights=_by_layer(weights["per_layer"]) if per_layer else {},
        directional_distortion=number(record.get("directional_distortion")),
        step_distortion=number(record.get("step_distortion")),
        total_variation=number(tradeoff.get("total_variation")),
        spread=number(tradeoff.get("spread")),
        intended=numbers(tradeoff.get("intended")),
        realised=numbers(tradeoff.get("realised")),
        cosine={
            space: [[number(item) for item in sequence(row)] for row in sequence(rows)]
            for space, rows in mapping(record.get("cosine")).items()
        },
        objectives=strings(record.get("objectives")),
        gradient_norm={space: numbers(norms) for space, norms in mapping(record.get("gradient_norm")).items()},
        samples=numbers(record.get("samples")),
        skipped=str(skipped) if skipped else None,
    )


def _by_layer(value: Any) -> dict[str, dict[str, float | None]]:
    return {name: numbers(item) for name, item in mapping(value).items()}


def _refinement(step: int, record: dict[str, Any]) -> Refinement:
    layers = [
        LayerRefinement(
            name=str(layer.get("name", "unnamed")),
            energy_moved=number(layer.get("energy_moved")),
            function_change=number(layer.get("function_change")),
            rank=number(layer.get("rank")),
            spectrum=tuple(number(item) for item in sequence(layer.get("spectrum"))),
        )
        for layer in map(mapping, sequence(record.get("layers")))
    ]
    return Refinement(
        step=step,
        mode=str(record.get("mode", "unnamed")),
        energy_moved=number(record.get("energy_moved")),
        function_change=number(record.get("function_change")),
        before=numbers(record.get("attenuation_before")),
        after=numbers(record.get("attenuation_after")),
        layers=tuple(layers),
    )


def _training_step(step: int, record: dict[str, Any]) -> TrainingStep:
    return TrainingStep(
        step=step,
        loss=number(record.get("loss")),
        objectives={name: numbers(values) for name, values in mapping(record.get("objectives")).items()},
        learning_rate=number(record.get("learning_rate")),
    )


def _score_set(value: dict[str, Any]) -> ScoreSet:
    objectives = {name: mapping(item) for name, item in mapping(value.get("objectives")).items()}
    return ScoreSet(
        objectives={name: _metrics(item) for name, item in objectives.items()},
        overall=_metrics(mapping(value.get("overall"))),
        pairs={name: number(item.get("pairs")) for name, item in objectives.items()},
    )


def _metrics(value: dict[str, Any]) -> dict[str, Metric]:
    found = {name: read_metric(item) for name, item in mapping(value.get("measures", value)).items() if name != "pairs"}
    return {name: metric for name, metric in found.items() if metric is not None}


def _objectives(
    about: dict[str, Any], measurements: Sequence[Measurement], scores: dict[str, ScoreSet]
) -> tuple[str, ...]:
    measured = [name for measurement in (*measurements[:1], *measurements[-1:]) for name in measurement.attenuation]
    scored = [name for score_set in scores.values() for name in score_set.objectives]
    return tuple(dict.fromkeys([*strings(about.get("objectives")), *measured, *scored]))
