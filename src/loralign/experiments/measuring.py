"""What is measured of a cell's adapter beside its run's own scores: driftcheck with its start once, text, tasks."""

from __future__ import annotations

import hashlib
import json
import logging
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
from loralign.models.dtype import DtypeName
from loralign.runs.driftcheck import BASELINE, check_drift, is_run
from loralign.runs.driftcheck_options import CheckOptions, CheckSubject
from loralign.runs.output import ADAPTER
from loralign.runs.task_scores import score_tasks, task_specs

logger = logging.getLogger(__name__)

STARTS = "starts"
# Settings of a recipe that measuring cannot follow, and what it loads in their place.
_UNFOLLOWED = {"load_in_4bit": "the unquantised base", "revision": "the main revision of the base"}


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
        if self.task_limit is not None and self.task_limit < 1:
            raise ConfigError(f"{self.task_limit} documents are too few", place="task_limit", fix="use at least 1")

    def check(self) -> None:
        """Make sure that set, text and tasks are there before anything is trained.

        Data that a task of the harness takes from the hub are not asked for.

        Raises:
            ConfigError: a task is unknown or named twice, or the harness is not installed.
            DataError: a file cannot be read.
        """
        if self.driftcheck is not None:
            load_driftcheck(self.driftcheck)
        if self.language:
            language_rows(self.language, self.language_samples)
        if self.tasks:
            task_specs(self.tasks)

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

    Base weights are of the recipe's ``dtype``. They are never quantised, and of a hub model those of its main revision:
    a warning says so where the recipe trains on others. Tasks have the same solved examples whatever the cell's seed,
    and only the adapter is scored on them.

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
    dtype: DtypeName = cell.settings.get("dtype") or "auto"
    if measures != Measures():
        _warn_of_another_base(cell)
    if measures.driftcheck is not None and not is_run(place / CHECK_DIRECTORY / BASELINE):
        options = CheckOptions(prompts=measures.prompts, toxicity="none", dtype=dtype, seed=0)
        before = _start_check(store, start, measures.driftcheck, options)
        check = place / CHECK_DIRECTORY
        if not is_run(check):
            check_drift(CheckSubject(str(adapter)), measures.driftcheck, check, options, baseline=str(before))
        # So that a cell can be read without its start.
        shutil.copytree(before, check / BASELINE, dirs_exist_ok=True)
    if measures.language and not (place / LANGUAGE_FILE).is_file():
        rows = language_rows(measures.language, measures.language_samples)
        length = cell.settings.get("max_length")
        score_language(adapter, rows, place / LANGUAGE_FILE, max_length=length, dtype=dtype)
    if measures.tasks and not (place / TASKS_FILE).is_file():
        _score(str(adapter), measures, place / TASKS_FILE, dtype)


def _warn_of_another_base(cell: Cell) -> None:
    for name, loaded in _UNFOLLOWED.items():
        if cell.settings.get(name):
            logger.warning("%s is %s, but prompts, text and tasks are of %s", name, cell.settings[name], loaded)


def _start_check(store: Path, start: str | None, prompts: str, options: CheckOptions) -> Path:
    """The finished run of the start on the same prompts, made by whoever comes first."""
    identity = [start, contents_digest(start or ""), contents_digest(prompts), asdict(options)]
    place = store / STARTS / _short(identity)
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(place.with_suffix(".lock")):
        if not is_run(place):
            check_drift(CheckSubject(start), prompts, place, options)
    return place


def _score(adapter: str, measures: Measures, target: Path, dtype: DtypeName) -> None:
    limit = measures.task_limit
    # One seed for all cells: solved examples that differ between them would make their documents no longer the same.
    score_tasks(
        adapter, None, measures.tasks, target, base=False, dtype=dtype, limit=limit, seed=0, samples=True,
        show_progress=False,
    )  # fmt: skip


def _short(identity: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
