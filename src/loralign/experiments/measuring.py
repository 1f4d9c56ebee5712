"""What is measured of a cell's adapter beside its run's own scores: driftcheck with its start once, text, tasks."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from loralign.data.driftcheck import load_driftcheck
from loralign.errors import ConfigError
from loralign.experiments.cell import Cell
from loralign.experiments.contents import contents_digest
from loralign.experiments.language import language_rows, score_language
from loralign.experiments.store import CHECK_DIRECTORY, LANGUAGE_FILE, RUN_DIRECTORY, TASKS_FILE
from loralign.runs.driftcheck import BASELINE, check_drift, is_run
from loralign.runs.driftcheck_options import CheckOptions, CheckSubject
from loralign.runs.output import ADAPTER
from loralign.runs.task_scores import score_tasks

STARTS = "starts"


@dataclass(frozen=True)
class Measures:
    """What to measure of every adapter of an experiment.

    Attributes:
        driftcheck: a built set of prompts; ``None`` leaves refusals to the runs' own probe.
        prompts: how many of its test part are asked.
        tasks: of lm-evaluation-harness, ``NAME`` or ``NAME=PATH``.
        task_limit: most documents of each task.
        language: text that the start knew, whose loss is taken before and after.
        language_samples: most rows of it.
    """

    driftcheck: str | None = None
    prompts: int = 200
    tasks: tuple[str, ...] = ()
    task_limit: int | None = None
    language: tuple[str, ...] = ()
    language_samples: int = 100

    def __post_init__(self) -> None:
        if self.prompts < 2:
            raise ConfigError(f"{self.prompts} prompts are too few", place="prompts", fix="use at least 2")
        if self.language_samples < 2:
            raise ConfigError(f"{self.language_samples} samples of text are too few", fix="use at least 2")

    def check(self) -> None:
        """Make sure that set and text can be read before anything is trained.

        Raises:
            DataError: they cannot.
        """
        if self.driftcheck is not None:
            load_driftcheck(self.driftcheck)
        if self.language:
            language_rows(self.language, self.language_samples)

    def to_json(self) -> dict[str, Any]:
        """As plain values; nothing where nothing is measured."""
        values: dict[str, Any] = {"driftcheck": self.driftcheck, "tasks": list(self.tasks) or None}
        if self.driftcheck is not None:
            values["prompts"] = self.prompts
        if self.tasks and self.task_limit is not None:
            values["task_limit"] = self.task_limit
        if self.language:
            values |= {"language": list(self.language), "language_samples": self.language_samples}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Measures:
        """What :meth:`to_json` gave."""
        lists = {name: tuple(values.get(name, ())) for name in ("tasks", "language")}
        return cls(**{**values, **lists})


def measure_cell(cell: Cell, place: Path, store: Path) -> None:
    """Measure the adapter that a cell's run left, what was measured before left out.

    Args:
        cell: with its measures.
        place: its directory.
        store: of all cells, where starts are kept.

    Raises:
        LoralignError: any fault of the set, the text, the tasks or the adapter.
    """
    measures = Measures.from_json(dict(cell.measures))
    adapter = place / RUN_DIRECTORY / ADAPTER
    start = cell.settings.get("adapter") or cell.settings.get("model")
    seed = cell.seed
    if measures.driftcheck is not None and not is_run(place / CHECK_DIRECTORY / BASELINE):
        options = CheckOptions(prompts=measures.prompts, toxicity="none", seed=0)
        before = _start_check(store, start, measures.driftcheck, options)
        check = place / CHECK_DIRECTORY
        if not is_run(check):
            check_drift(CheckSubject(str(adapter)), measures.driftcheck, check, options, baseline=str(before))
        # So that a cell can be read without its start.
        shutil.copytree(before, check / BASELINE, dirs_exist_ok=True)
    if measures.language and not (place / LANGUAGE_FILE).is_file():
        rows = language_rows(measures.language, measures.language_samples)
        kept = {key: cell.settings.get(key) for key in ("max_length", "dtype")}
        score_language(adapter, rows, place / LANGUAGE_FILE, **kept)
    if measures.tasks and not (place / TASKS_FILE).is_file():
        _score(str(adapter), measures, place / TASKS_FILE, seed)


def _start_check(store: Path, start: str | None, prompts: str, options: CheckOptions) -> Path:
    """The finished run of the start on the same prompts, made by whoever comes first."""
    identity = [start, contents_digest(start or ""), contents_digest(prompts), asdict(options)]
    place = store / STARTS / _short(identity)
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(place.with_suffix(".lock")):
        if not is_run(place):
            check_drift(CheckSubject(start), prompts, place, options)
    return place


def _score(adapter: str, measures: Measures, target: Path, seed: int) -> None:
    score_tasks(
        adapter, None, measures.tasks, target, limit=measures.task_limit, seed=seed, samples=True, show_progress=False
    )


def _short(identity: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
