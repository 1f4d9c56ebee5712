"""What the output of a repair says of the base, of the adapter as it came, and of the repaired one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loralign.errors import StateError
from loralign.report.coerce import clean_text, mapping, number, sequence, strings
from loralign.report.guard_reading import read_safety
from loralign.report.guard_records import Safety
from loralign.report.reading import read_metric
from loralign.report.records import Metric
from loralign.report.runs.differences import difference
from loralign.report.runs.files import read_object
from loralign.report.runs.from_guard import by_category, refusals
from loralign.report.runs.records import (
    DRIFT_REDUCTION,
    HELD_BACK,
    KL,
    OWN_PROBE,
    TASK_LOSS,
    Ground,
    LayerMap,
    Part,
    Score,
)
from loralign.report.runs.subjects import Subject, subject

REPAIR_FILE = "repair.json"
REPAIR_VERSION = 1

_FIX = "give the output directory of loralign repair"
_NOTE = "Share of each layer's energy ‖ΔW‖² that the repair took out."


def read_repair(directory: Path) -> list[Part]:
    """Return the base, the adapter as it came, and the repaired adapter.

    Raises:
        StateError: ``repair.json`` is damaged or of another version.
    """
    name = clean_text(directory.resolve().name)
    about = read_object(directory / REPAIR_FILE, _FIX, version=REPAIR_VERSION)
    if about.get("kind") != "repair":
        raise StateError("not the record of a repair", place=str(directory / REPAIR_FILE), fix=_FIX)
    report, came = mapping(about.get("report")), about.get("adapter")
    base = _base(directory, about)
    before_name = f"{name}, before the repair"
    return [
        Part(subjects=base, role="start", scores=_scores(about, "base"), categories=_categories(about, "base")),
        Part(
            subjects=(subject(came) if isinstance(came, str) else (before_name,),),
            name="" if isinstance(came, str) else before_name,
            role="before the repair",
            reference=base,
            scores=_scores(about, "before"),
            categories=_categories(about, "before"),
        ),
        Part(
            subjects=(subject(str(directory)),),
            name=name,
            role=f"repaired ({report.get('method', 'unknown')})",
            reference=base,
            scores=_scores(about, "after") + _reduction(about),
            categories=_categories(about, "after"),
            layer_maps=_layer_maps(report),
            config={key: value for key, value in report.items() if key not in ("layers", "trials")},
            environment=mapping(about.get("environment")),
            command=strings(about.get("command")),
        ),
    ]


def _base(directory: Path, about: dict[str, Any]) -> tuple[Subject, ...]:
    """The base that the adapter's configuration names."""
    stated = about.get("model")
    if not isinstance(stated, str):
        path = directory / "adapter_config.json"
        stated = read_object(path, _FIX).get("base_model_name_or_path") if path.is_file() else None
    return (subject(stated) if isinstance(stated, str) and stated else (f"base of {directory.resolve().name}",),)


def _scores(about: dict[str, Any], moment: str) -> tuple[Score, ...]:
    first = moment == "base"
    losses = mapping(about.get("task"))
    loss, start = read_metric(losses.get(moment)), None if first else read_metric(losses.get("base"))
    found = [] if loss is None else [Score(TASK_LOSS, HELD_BACK, loss, difference(loss, start))]
    drift = Metric(0.0) if first else read_metric(about.get(f"drift_{moment}"))
    if drift is not None:
        found.append(Score(KL, OWN_PROBE, drift, None if first else drift, paired=not first))
    return (*found, *refusals(_safety(about, moment), None if first else _safety(about, "base")))


def _safety(about: dict[str, Any], moment: str) -> Safety | None:
    return read_safety(mapping(about.get("safety")).get(moment))


def _categories(about: dict[str, Any], moment: str) -> Any:
    return by_category(_safety(about, moment))


def _reduction(about: dict[str, Any]) -> tuple[Score, ...]:
    """The share of drift that the repair took back; its two drifts were measured on the same samples, unpaired here."""
    before, after = (read_metric(about.get(f"drift_{moment}")) for moment in ("before", "after"))
    if before is None or after is None or not before.value or after.value is None:
        return ()
    ground = Ground(f"{OWN_PROBE.name}, against the adapter before")
    return (Score(DRIFT_REDUCTION, ground, Metric(1 - after.value / before.value)),)


def _layer_maps(report: dict[str, Any]) -> tuple[LayerMap, ...]:
    layers = [mapping(item) for item in sequence(report.get("layers"))]
    removed = {
        str(item.get("name", "unnamed")): {"energy removed": number(item.get("removed"))}
        for item in layers
        if number(item.get("removed")) is not None
    }
    if not removed:
        return ()
    return (LayerMap("energy-removed", "Energy removed by layer", _NOTE, "share removed", "", removed),)
