"""What a file of task scores says of each model in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loralign.errors import StateError
from loralign.report.coerce import mapping, number, sequence
from loralign.report.records import Metric
from loralign.report.runs.files import read_object
from loralign.report.runs.records import Ground, Part, Quantity, Score
from loralign.report.runs.subjects import Subject, subject

TASKS_FILE = "tasks.json"
TASKS_FORMAT = "loralign.tasks"
TASKS_VERSION = 1

_FIX = "give the scores of loralign's task evaluation"
_NORMAL = 1.959964
"""Standard errors to either side of a 95 % interval."""

_BASE, _MERGED = "base", "merged"


@dataclass(frozen=True)
class _Entry:
    """One score in the file: whose it is, against whom, the score as written, and its paired difference if any."""

    model: Subject
    base: Subject | None
    item: dict[str, Any]
    change: Any
    place: str


def read_tasks(path: Path) -> list[Part]:
    """Return one part for each model in the file, in its order.

    The file lists scores with a model and an adapter each (``results``), or the scores of one model as it is, with an
    adapter and merged (``arms``), with paired differences between them.

    Raises:
        StateError: it is damaged, of another format or version, or a score lacks what it needs.
    """
    content = read_object(path, _FIX, form=TASKS_FORMAT, version=TASKS_VERSION)
    if isinstance(content.get("arms"), dict):
        entries = list(_of_arms(content, path))
    elif isinstance(content.get("results"), list):
        entries = list(_of_list(content["results"], path))
    else:
        raise StateError("has no scores", place=str(path), fix=_FIX)
    found: dict[Subject, tuple[Subject | None, list[Score]]] = {}
    for entry in entries:
        found.setdefault(entry.model, (entry.base, []))[1].append(_score(entry))
    environment = mapping(content.get("environment"))
    config = {name: content[name] for name in ("model", "adapter", "settings") if name in content}
    return [
        Part(
            subjects=(model,),
            reference=() if base is None else (base,),
            scores=tuple(scores),
            config={} if base is None and len(found) > 1 else {"tasks": config} if config else {},
            environment={"tasks": environment} if environment else {},
        )
        for model, (base, scores) in found.items()
    ]


def _of_list(results: list[Any], path: Path) -> Iterator[_Entry]:
    for index, item in enumerate(map(mapping, results)):
        place = f"{path}: score {index + 1}"
        model, adapter = _text(item, "model", place), item.get("adapter")
        tuned = isinstance(adapter, str) and adapter != ""
        yield _Entry(subject(str(adapter) if tuned else model), subject(model) if tuned else None, item, None, place)


def _of_arms(content: dict[str, Any], path: Path) -> Iterator[_Entry]:
    start = content.get("start")
    base = subject(start if isinstance(start, str) and start else _text(content, "model", str(path)))
    adapter = content.get("adapter")
    changes = {
        (_key(row), arm): change
        for row in map(mapping, sequence(content.get("comparison")))
        for arm, change in mapping(row.get("differences")).items()
    }
    for arm, scores in content["arms"].items():
        model = base
        if arm != _BASE:
            tuned = subject(_text(content, "adapter", str(path)) if adapter else arm)
            model = (*tuned[:-1], f"{tuned[-1]} ({_MERGED})") if arm == _MERGED else tuned
        for index, item in enumerate(map(mapping, sequence(mapping(scores).get("scores")))):
            place = f"{path}: score {index + 1} of {arm}"
            yield _Entry(model, None if arm == _BASE else base, item, changes.get((_key(item), arm)), place)


def _key(item: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(item.get(name)) for name in ("task", "metric", "filter"))


def _score(entry: _Entry) -> Score:
    item, place = entry.item, entry.place
    metric = _metric(item)
    if metric is None:
        raise StateError("has no value that is a number", place=place, fix=_FIX)
    reading = item.get("filter")
    title = f"{_text(item, 'task', place)} {_text(item, 'metric', place)}"
    title += f", {reading}" if reading and reading != "none" else ""
    quantity = Quantity(f"task:{title}", title, "score", item.get("higher_is_better") is not False, gains=True)
    samples, examples, version = number(item.get("n")), number(item.get("fewshot")), item.get("version")
    # Values of other versions, or after other examples, do not compare.
    details = (
        "" if samples is None else f"{samples:.0f} samples",
        "" if examples is None else f"{examples:.0f} solved examples",
        "" if version is None else f"version {version}",
    )
    change = _metric(mapping(entry.change))
    return Score(quantity, Ground("", ", ".join(filter(None, details))), metric, change, change is not None)


def _metric(item: dict[str, Any]) -> Metric | None:
    """A value with the normal interval of its standard error."""
    value, error = number(item.get("value")), number(item.get("stderr"))
    if value is None or error is None:
        return None if value is None else Metric(value)
    return Metric(value, value - _NORMAL * error, value + _NORMAL * error)


def _text(item: dict[str, Any], name: str, place: str) -> str:
    stated = item.get(name)
    if not isinstance(stated, str) or not stated:
        raise StateError(f"has no {name}", place=place, fix=_FIX)
    return stated
