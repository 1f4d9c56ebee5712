"""What is measured of a cell's adapter beside its run's own scores: driftcheck with its start once, text, tasks."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from loralign import __version__
from loralign.data.alignment import LABELS
from loralign.data.driftcheck import DriftPrompt, load_driftcheck
from loralign.errors import ConfigError, DataError
from loralign.experiments.cell import Cell, recipe_of
from loralign.experiments.contents import contents_digest, identity_digest
from loralign.experiments.language import language_rows, score_language
from loralign.experiments.measurement import Measurement, make_measurement
from loralign.experiments.own_text import OWN, OWN_TOKENS, read_own_text, write_own_text
from loralign.experiments.store import (
    CHECK_DIRECTORY,
    LANGUAGE_FILE,
    RUN_DIRECTORY,
    TASKS_FILE,
    CellStore,
    measure_place,
)
from loralign.models.dtype import DtypeName
from loralign.runs.driftcheck import BASELINE, check_drift, is_run
from loralign.runs.driftcheck_options import CheckOptions, CheckSubject
from loralign.runs.output import ADAPTER
from loralign.runs.task_scores import score_tasks, task_specs

logger = logging.getLogger(__name__)

STARTS = "starts"


@dataclass(frozen=True)
class Measures:
    """What to measure of every adapter of an experiment.

    Attributes:
        driftcheck: a built set of prompts; ``None`` leaves refusals to the runs' own probe.
        prompts: how many of its test part are asked.
        tasks: of lm-evaluation-harness, ``NAME`` or ``NAME=PATH``.
        task_limit: most documents of each task.
        language: text that the start knew, whose loss is taken before and after; ``own`` alone for what each start
            samples itself.
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
            DataError: a file cannot be read, or fewer than two of the prompts to be asked are unsafe, or safe.
        """
        if self.driftcheck is not None:
            _check_prompts(self.driftcheck, CheckOptions(prompts=self.prompts).chosen(load_driftcheck(self.driftcheck)))
        if self.language and self.language != (OWN,):
            language_rows(self.language, self.language_samples)
        if self.tasks:
            task_specs(self.tasks)

    def asked(self) -> tuple[Measurement, ...]:
        """Each with its fingerprint; every task by itself, so that one more leaves the others as they are."""
        found = []
        if self.driftcheck is not None:
            found.append(make_measurement("driftcheck", {"set": self.driftcheck, "prompts": self.prompts}))
        if self.language:
            # Measurements from before texts were left unclosed are not of the same tokens.
            settings: dict[str, Any] = {"text": list(self.language), "samples": self.language_samples, "closed": False}
            if self.language == (OWN,):
                settings["tokens"] = OWN_TOKENS
            found.append(make_measurement("language", settings))
        found += [make_measurement("task", {"task": task, "limit": self.task_limit}) for task in self.tasks]
        return tuple(found)


def _check_prompts(place: str, asked: Sequence[DriftPrompt]) -> None:
    """Make sure that there is something to say of either label; one prompt has no interval.

    Raises:
        DataError: fewer than two prompts have a label.
    """
    for label in LABELS:
        count = sum(prompt.label == label for prompt in asked)
        if count < 2:
            raise DataError(
                f"{count} of the {len(asked)} prompts asked of the test part are {label}, which is too few",
                place=place,
                fix="raise --driftcheck_prompts, or build a larger set",
            )


def measure_cell(store: CellStore, cell: Cell, one: Measurement) -> None:
    """Measure one thing of the adapter that a cell's run left; what an interrupted call has done of it is not repeated.

    Base weights are of the recipe's ``dtype`` and ``revision``. They are never quantised: a warning says so where the
    recipe trains on such. Tasks have the same solved examples whatever the cell's seed, and only the adapter is scored
    on them.

    Args:
        store: of all cells, where starts are kept.
        cell: whose run is finished.
        one: to be measured.

    Raises:
        LoralignError: any fault of the set, the text, the task or the adapter.
    """
    adapter, place = store.place(cell) / RUN_DIRECTORY / ADAPTER, measure_place(store.place(cell), one)
    place.mkdir(parents=True, exist_ok=True)
    dtype: DtypeName = cell.settings.get("dtype") or "auto"
    if cell.settings.get("load_in_4bit"):
        logger.warning("load_in_4bit is set, but the %s is of the unquantised base", one.kind)
    if one.kind == "driftcheck":
        options = CheckOptions(prompts=one.settings["prompts"], toxicity="none", dtype=dtype, seed=0)
        before = _start_check(store.directory, _start(cell), one.settings["set"], options)
        check = place / CHECK_DIRECTORY
        if not is_run(check):
            check_drift(CheckSubject(str(adapter)), one.settings["set"], check, options, baseline=str(before))
        # So that a cell can be read without its start.
        shutil.copytree(before, check / BASELINE, dirs_exist_ok=True)
    elif one.kind == "language" and not (place / LANGUAGE_FILE).is_file():
        sources, samples = one.settings["text"], one.settings["samples"]
        if sources == [OWN]:
            rows = read_own_text(_own_text(store.directory, _start(cell), samples, dtype))
        else:
            rows = language_rows(sources, samples)
        # Settings hold what differs from the command's defaults, the recipe all.
        length = recipe_of(cell, str(adapter.parent)).training.max_length
        score_language(adapter, rows, place / LANGUAGE_FILE, max_length=length, dtype=dtype)
    elif one.kind == "task" and not (place / TASKS_FILE).is_file():
        # One seed for all cells: solved examples that differ between them would make their documents no longer the
        # same.
        score_tasks(
            str(adapter), None, [one.settings["task"]], place / TASKS_FILE, base=False, dtype=dtype,
            limit=one.settings["limit"], seed=0, samples=True, show_progress=False,
        )  # fmt: skip


def _start(cell: Cell) -> CheckSubject:
    """What the cell's training began with."""
    adapter = cell.settings.get("adapter")
    if adapter is not None:
        return CheckSubject(adapter)
    return CheckSubject(cell.settings.get("model"), revision=cell.settings.get("revision"))


def _start_check(store: Path, start: CheckSubject, prompts: str, options: CheckOptions) -> Path:
    """The finished run of the start on the same prompts, made by whoever comes first."""
    contents = [contents_digest(place) for place in (start.model or "", prompts)]
    identity = {"start": [start.model, start.revision], "contents": contents, "options": asdict(options)}
    place = store / STARTS / identity_digest(identity)[:16]
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(place.with_suffix(".lock")):
        if not is_run(place):
            check_drift(start, prompts, place, options)
    return place


def _own_text(store: Path, start: CheckSubject, samples: int, dtype: DtypeName) -> Path:
    """The text that the start samples, drawn by whoever comes first."""
    identity = {
        "start": [start.model, start.adapter, start.revision, dtype],
        "contents": [contents_digest(place or "") for place in (start.model, start.adapter)],
        "samples": samples,
        "tokens": OWN_TOKENS,
        "version": __version__,
    }
    place = store / STARTS / f"text-{identity_digest(identity)[:16]}.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(place.with_suffix(".lock")):
        if not place.is_file():
            write_own_text(place, samples, start.model, start.adapter, revision=start.revision, dtype=dtype)
    return place
