"""Running a cell: the same code as ``loralign align`` and ``adapt``, here or under accelerate, and what is measured."""

from __future__ import annotations

import gc
import json
import logging
import shutil
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from loralign.errors import LoralignError, StateError
from loralign.experiments.cell import Cell, recipe_of, recipe_text
from loralign.experiments.failure import CellFailed
from loralign.experiments.launching import await_launch, launch
from loralign.experiments.measurement import Measurement
from loralign.experiments.measuring import measure_cell
from loralign.experiments.store import RUN_DIRECTORY, CellRecord, CellStore, measure_place
from loralign.files import write_text
from loralign.runs import run_adaptation, run_alignment
from loralign.runs.adapt_recipe import AdaptRecipe
from loralign.runs.output import ADAPTER, RUN_FILE

logger = logging.getLogger(__name__)

_TRACE = "error.txt"
_RECIPE = "recipe.yaml"
_LONGEST_ERROR = 400


@dataclass(frozen=True)
class Launcher:
    """How cells are run.

    Attributes:
        accelerate: the words after ``accelerate launch``, such as ``--num_processes 4``; ``None`` runs cells in this
            process.
        retry: run cells again that failed before.
    """

    accelerate: tuple[str, ...] | None = None
    retry: bool = False


def run_cell(store: CellStore, cell: Cell, launcher: Launcher | None = None) -> CellRecord:
    """Run a cell unless it is finished, and measure what is missing; two workers never have the same one at once.

    An interrupted cell goes on from its last whole checkpoint. Any fault, of ours, of a library's or of memory, is
    recorded as the failure of the run or of the measurement. A run that is finished is trained again only where
    something is to be measured and its adapter is gone. Where a worker was killed whose launch still trains the cell,
    this waits until that has ended, and uses what it leaves.

    Args:
        store: where cells are kept.
        cell: to be run.
        launcher: how; in this process by default.

    Raises:
        CellFailed: it failed now, or before and is not to be tried again.
        StateError: a record is damaged, or the cell's directory was removed meanwhile.
    """
    launcher = launcher or Launcher()
    with store.locked(cell):
        await_launch(store.place(cell))
        known = store.record(cell)
        if known is not None and (known.finished or not launcher.retry):
            if not known.finished:
                raise CellFailed(known.error)
            return known
        place, trained = store.place(cell), store.trained(cell)
        if trained is None or not trained.finished:
            _attempt(place, lambda: _train(cell, place, launcher), partial(store.keep, cell))
        for one in cell.measures:
            done = store.measured(cell, one)
            if done is None or done.status != "finished":
                act, keep = partial(_measure, store, cell, one, launcher), partial(store.keep_measured, cell, one)
                _attempt(measure_place(place, one), act, keep)
        known = store.record(cell)
    if known is None:
        raise StateError("is not there any more", place=str(place), fix="repeat the command")
    return known


def _attempt(place: Path, act: Callable[[], None], keep: Callable[..., object]) -> None:
    """Do a part of a cell's work and keep what became of it."""
    _free_memory()
    began = time.monotonic()
    try:
        act()
    except Exception as error:
        reason = str(error) if isinstance(error, LoralignError) else f"{type(error).__name__}: {error}"
        reason = " ".join(reason.split())[:_LONGEST_ERROR]
        write_text(place / _TRACE, traceback.format_exc())
        keep("failed", time.monotonic() - began, reason)
        raise CellFailed(reason) from error
    keep("finished", time.monotonic() - began)


def _measure(store: CellStore, cell: Cell, one: Measurement, launcher: Launcher) -> None:
    # The adapter may have been removed since, to save space.
    _train(cell, store.place(cell), launcher)
    measure_cell(store, cell, one)


def _train(cell: Cell, place: Path, launcher: Launcher) -> None:
    if not _trained(place / RUN_DIRECTORY):
        _run(cell, place, launcher)
    _tidy(place)


def _run(cell: Cell, place: Path, launcher: Launcher) -> None:
    directory = place / RUN_DIRECTORY
    if launcher.accelerate is not None:
        recipe_file = place / _RECIPE
        write_text(recipe_file, recipe_text(cell, str(directory)))
        words = [*launcher.accelerate, "-m", "loralign", cell.command, "--config", str(recipe_file)]
        launch(words, place)
        return
    recipe = recipe_of(cell, str(directory))
    if isinstance(recipe, AdaptRecipe):
        run_adaptation(recipe)
    else:
        run_alignment(recipe)


def _trained(directory: Path) -> bool:
    try:
        status = json.loads((directory / RUN_FILE).read_text(encoding="utf-8")).get("status")
    except (OSError, ValueError):
        return False
    return bool(status == "finished") and (directory / ADAPTER).is_dir()


def _free_memory() -> None:
    """Let go of the cell before, whose failure may have held its model until now."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _tidy(place: Path) -> None:
    """What only resuming needs is many times what the results take."""
    for checkpoint in (place / RUN_DIRECTORY).glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
