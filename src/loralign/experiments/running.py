"""Running a cell: the same code as ``loralign align`` and ``adapt``, here or under accelerate, and what is measured."""

from __future__ import annotations

import gc
import json
import logging
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from loralign.errors import LoralignError, StateError
from loralign.experiments.cell import Cell, recipe_of, recipe_text
from loralign.experiments.failure import CellFailed
from loralign.experiments.measuring import measure_cell
from loralign.experiments.store import RUN_DIRECTORY, CellRecord, CellStore
from loralign.files import write_text
from loralign.runs import run_adaptation, run_alignment
from loralign.runs.adapt_recipe import AdaptRecipe
from loralign.runs.output import ADAPTER, RUN_FILE

logger = logging.getLogger(__name__)

_LOG = "log.txt"
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
    """Run a cell unless it is finished; two workers never run the same one at the same time.

    An interrupted cell goes on from its last whole checkpoint. Any fault, of ours, of a library's or of memory, is
    recorded as the cell's failure.

    Args:
        store: where cells are kept.
        cell: to be run.
        launcher: how; in this process by default.

    Raises:
        CellFailed: it failed now, or before and is not to be tried again.
    """
    launcher = launcher or Launcher()
    with store.locked(cell):
        known = store.record(cell)
        if known is not None and (known.finished or not launcher.retry):
            if not known.finished:
                raise CellFailed(known.error)
            return known
        _free_memory()
        place, began = store.place(cell), time.monotonic()
        try:
            _train(cell, place, launcher)
            measure_cell(cell, place, store.directory)
        except Exception as error:
            reason = str(error) if isinstance(error, LoralignError) else f"{type(error).__name__}: {error}"
            reason = " ".join(reason.split())[:_LONGEST_ERROR]
            write_text(place / _TRACE, traceback.format_exc())
            store.keep(cell, "failed", time.monotonic() - began, reason)
            raise CellFailed(reason) from error
        _tidy(place)
        return store.keep(cell, "finished", time.monotonic() - began)


def _train(cell: Cell, place: Path, launcher: Launcher) -> None:
    directory = place / RUN_DIRECTORY
    if _trained(directory):
        return
    if launcher.accelerate is not None:
        recipe_file = place / _RECIPE
        write_text(recipe_file, recipe_text(cell, str(directory)))
        words = [*launcher.accelerate, "-m", "loralign", cell.command, "--config", str(recipe_file)]
        _launch(words, place / _LOG)
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


def _launch(words: Sequence[str], log: Path) -> None:
    """Run under accelerate; the command's own last line is the reason where it fails."""
    command = [sys.executable, "-m", "accelerate.commands.launch", *words]
    earlier = log.stat().st_size if log.exists() else 0
    with log.open("a", encoding="utf-8") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode  # noqa: S603
    if code:
        told = log.read_bytes()[earlier:].decode("utf-8", errors="replace")
        lines = [line.strip() for line in told.splitlines()]
        own = [line for line in lines if line.startswith("error:")] or [line for line in lines if line] or ["no output"]
        raise StateError(f"ended with status {code}: {own[-1]}", place=str(log), fix="see there")


def _free_memory() -> None:
    """Let go of the cell before, whose failure may have held its model until now."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _tidy(place: Path) -> None:
    """What only resuming needs is many times what the results take."""
    for checkpoint in (place / RUN_DIRECTORY).glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
