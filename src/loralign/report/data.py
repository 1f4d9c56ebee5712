"""Reading a run directory: ``run.json``, ``geometry.jsonl``, ``scores.json`` and ``samples.json``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loralign.errors import StateError
from loralign.report.coerce import clean_text, mapping, number, numbers, parse, read_text, sequence, strings
from loralign.report.records import (
    LayerRefinement,
    Measurement,
    Metric,
    Refinement,
    Run,
    Sample,
    ScoreSet,
    TrainingStep,
)

RUN_VERSION = 1
"""The version of ``run.json`` that this reader knows."""


def load_run(directory: str | Path) -> Run:
    """Read a run directory.

    Only ``run.json`` must be there. Whatever else is absent, damaged or cut off (a killed run leaves half a last line
    in ``geometry.jsonl``) is left out and named in ``Run.notes``.

    Raises:
        StateError: ``run.json`` is absent, is not a JSON object, or is of another version.
    """
    folder = Path(directory)
    about = _read_about(folder / "run.json")
    notes: list[str] = []
    measurements, refinements, steps = _read_geometry(folder / "geometry.jsonl", notes)
    scores = {
        name: _score_set(value)
        for name, value in mapping(_read_optional(folder / "scores.json", "scores", notes)).items()
        if name in ("before", "after", "reference", "difference") and isinstance(value, dict)
    }
    samples = [_sample(item) for item in sequence(_read_optional(folder / "samples.json", "sample answers", notes))]
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
        measurements=tuple(measurements),
        refinements=tuple(refinements),
        steps=tuple(steps),
        scores=scores,
        samples=tuple(samples),
        notes=tuple(notes),
    )


def _read_about(path: Path) -> dict[str, Any]:
    fix = "give the output directory of loralign align"
    try:
        about = parse(read_text(path))
    except OSError as error:
        raise StateError("there is no run.json that can be read", place=str(path.parent), fix=fix) from error
    except ValueError as error:
        raise StateError(f"not valid JSON: {error}", place=str(path), fix=fix) from error
    if not isinstance(about, dict):
        raise StateError("not a JSON object", place=str(path), fix=fix)
    if about.get("version") != RUN_VERSION:
        raise StateError(
            f"version {about.get('version')!r} is unknown, only {RUN_VERSION} can be read",
            place=str(path),
            fix="use the loralign release that wrote it",
        )
    return about


def _read_optional(path: Path, what: str, notes: list[str]) -> Any:
    try:
        return parse(read_text(path))
    except FileNotFoundError:
        notes.append(f"The run wrote no {path.name}, so the page has no {what}.")
    except (OSError, ValueError) as error:
        notes.append(f"{path.name} cannot be read ({clean_text(str(error))}), so the page has no {what}.")
    return None


def _read_geometry(path: Path, notes: list[str]) -> tuple[list[Measurement], list[Refinement], list[TrainingStep]]:
    records: dict[str, list[Any]] = {"measurement": [], "refinement": [], "step": []}
    readers = {"measurement": _measurement, "refinement": _refinement, "step": _training_step}
    try:
        lines = read_text(path).split("\n")
    except FileNotFoundError:
        lines = []
        notes.append(f"The run wrote no {path.name}, so nothing is known of its course or geometry.")
    except OSError as error:
        lines = []
        notes.append(f"{path.name} cannot be read ({error.strerror}), so nothing is known of its course or geometry.")
    last = max((index for index, line in enumerate(lines) if line.strip()), default=-1)
    unreadable = 0
    for index, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            record = mapping(parse(line))
        except ValueError:
            if index == last:
                notes.append(f"The last line of {path.name} is cut off (the run was stopped while writing it).")
            else:
                unreadable += 1
            continue
        kind, step = str(record.get("kind")), number(record.get("step"))
        if kind not in readers or step is None:
            continue
        # A resumed run starts again at its last checkpoint: what the killed one had logged beyond that is void.
        kept = records[kind]
        while kept and kept[-1].step >= step:
            kept.pop()
        kept.append(readers[kind](int(step), record))
    if unreadable:
        notes.append(f"{unreadable} lines of {path.name} cannot be read and are left out.")
    return records["measurement"], records["refinement"], records["step"]


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
    result = {}
    for name, item in mapping(value.get("measures", value)).items():
        if isinstance(item, dict) and "value" in item:
            result[name] = Metric(number(item["value"]), number(item.get("low")), number(item.get("high")))
        elif name != "pairs" and (plain := number(item)) is not None:
            result[name] = Metric(plain)
    return result


def _sample(item: Any) -> Sample:
    fields = mapping(item)
    return Sample(*(str(fields.get(name) or "") for name in ("objective", "prompt", "before", "after")))


def _objectives(
    about: dict[str, Any], measurements: Sequence[Measurement], scores: dict[str, ScoreSet]
) -> tuple[str, ...]:
    measured = [name for measurement in (*measurements[:1], *measurements[-1:]) for name in measurement.attenuation]
    scored = [name for score_set in scores.values() for name in score_set.objectives]
    return tuple(dict.fromkeys([*strings(about.get("objectives")), *measured, *scored]))
