"""Finished cells on disk: each in a directory named by its fingerprint, so that no work is done twice."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from loralign.errors import StateError
from loralign.experiments.cell import Cell
from loralign.files import write_json

CELL_FILE = "cell.json"
RUN_DIRECTORY = "run"
CHECK_DIRECTORY = "check"
TASKS_FILE = "tasks.json"
LANGUAGE_FILE = "language.parquet"

Status = Literal["finished", "failed"]
_VERSION = 1


@dataclass(frozen=True)
class CellRecord:
    """What became of a cell.

    Attributes:
        fingerprint: of the cell.
        command: ``align`` or ``adapt``.
        status: ``finished`` or ``failed``.
        settings: the whole recipe.
        measures: what was measured beside the run's own scores.
        seconds: that it took, interruptions left out.
        error: why it failed, in one line.
        directory: of the cell; not written, since a store may be moved.
    """

    fingerprint: str
    command: str
    status: Status
    settings: Mapping[str, Any] = field(repr=False)
    measures: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    error: str | None = None
    directory: Path = Path()

    @property
    def finished(self) -> bool:
        """Whether it has scores."""
        return self.status == "finished"

    @property
    def run(self) -> Path:
        """Directory of the run that the cell's command left."""
        return self.directory / RUN_DIRECTORY

    @property
    def seed(self) -> int:
        """Of the run."""
        return int(self.settings["seed"])


class CellStore:
    """Cells by fingerprint under one directory, which several workers may share.

    Args:
        directory: of the experiments; ``cells/`` inside it holds the cells of all of them.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def place(self, cell: Cell) -> Path:
        """The cell's directory."""
        return self.directory / "cells" / cell.key

    def record(self, cell: Cell) -> CellRecord | None:
        """What became of the cell, or ``None`` where nothing has yet.

        Raises:
            StateError: the record is damaged, or that of another cell.
        """
        return load_record(self.place(cell), cell.fingerprint)

    def keep(self, cell: Cell, status: Status, seconds: float, error: str | None = None) -> CellRecord:
        """Write down what became of the cell."""
        place = self.place(cell)
        found = CellRecord(cell.fingerprint, cell.command, status, cell.settings, cell.measures, seconds, error, place)
        written = {key: value for key, value in asdict(found).items() if key != "directory"}
        write_json(place / CELL_FILE, {"version": _VERSION, "kind": "cell", **written})
        return found

    @contextmanager
    def locked(self, cell: Cell) -> Iterator[None]:
        """Have the cell to oneself; the operating system frees it when its owner dies."""
        place = self.place(cell)
        place.mkdir(parents=True, exist_ok=True)
        with FileLock(place.with_suffix(".lock")):
            yield


def load_record(place: Path, fingerprint: str | None = None) -> CellRecord | None:
    """Read a cell's record.

    Args:
        place: the cell's directory.
        fingerprint: that it must have.

    Raises:
        StateError: the record is damaged, or that of another cell.
    """
    file = place / CELL_FILE
    if not file.exists():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        version, kind = content.pop("version"), content.pop("kind")
        found = CellRecord(**content, directory=place)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise StateError(
            f"cannot be read: {error}", place=str(file), fix="remove the cell's directory to run it again"
        ) from error
    if (version, kind) != (_VERSION, "cell") or fingerprint not in (None, found.fingerprint):
        raise StateError("is not the record of this cell", place=str(file), fix="remove the cell's directory")
    return found
