"""Finished cells on disk: each in a directory named by its fingerprint, so that no work is done twice.

What was measured of a cell lies beside its run, every measurement in a directory named by its own fingerprint, so that
more may be measured later of what is trained already.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from loralign.errors import StateError
from loralign.experiments.cell import Cell
from loralign.experiments.measurement import Kind, Measurement
from loralign.files import write_json

CELL_FILE = "cell.json"
RUN_DIRECTORY = "run"
MEASURES_DIRECTORY = "measures"
MEASURE_FILE = "measure.json"
CHECK_DIRECTORY = "check"
TASKS_FILE = "tasks.json"
LANGUAGE_FILE = "language.parquet"

Status = Literal["finished", "failed"]
_VERSION = 2


@dataclass(frozen=True)
class CellRecord:
    """What became of a cell.

    Attributes:
        fingerprint: of the cell.
        command: ``align`` or ``adapt``.
        status: ``finished`` or ``failed``.
        settings: the whole recipe.
        measures: what was asked of the adapter beside the run's own scores, and has been measured where the cell is
            finished; not written, since another experiment may ask for something else.
        seconds: that it took with these, interruptions left out.
        error: why it, or one of these, failed, in one line.
        directory: of the cell; not written, since a store may be moved.
    """

    fingerprint: str
    command: str
    status: Status
    settings: Mapping[str, Any] = field(repr=False)
    measures: tuple[Measurement, ...] = ()
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

    def measured(self, kind: Kind) -> list[Path]:
        """Directories of what was asked of one kind."""
        return [measure_place(self.directory, one) for one in self.measures if one.kind == kind]

    @property
    def seed(self) -> int:
        """Of the run."""
        return int(self.settings["seed"])


@dataclass(frozen=True)
class MeasureRecord:
    """What became of a measurement.

    Attributes:
        fingerprint: of the measurement.
        status: ``finished`` or ``failed``.
        settings: of the measurement.
        seconds: that it took.
        error: why it failed, in one line.
    """

    fingerprint: str
    status: Status
    settings: Mapping[str, Any] = field(repr=False)
    seconds: float = 0.0
    error: str | None = None


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
        """What became of the cell and of all that is to be measured of it, or ``None`` where something is still to do.

        Raises:
            StateError: a record is damaged, or that of another cell or measurement.
        """
        trained = self.trained(cell)
        if trained is None or not trained.finished:
            return trained
        found = [self.measured(cell, one) for one in cell.measures]
        known = [one for one in found if one is not None]
        seconds = trained.seconds + sum(one.seconds for one in known)
        whole = replace(trained, measures=cell.measures, seconds=seconds)
        failed = next((one for one in known if one.status == "failed"), None)
        if failed is not None:
            return replace(whole, status="failed", error=failed.error)
        return whole if len(known) == len(found) else None

    def trained(self, cell: Cell) -> CellRecord | None:
        """What became of the cell's run alone, or ``None`` where nothing has yet.

        Raises:
            StateError: the record is damaged, or that of another cell.
        """
        return load_record(self.place(cell), cell.fingerprint)

    def keep(self, cell: Cell, status: Status, seconds: float, error: str | None = None) -> CellRecord:
        """Write down what became of the cell's run."""
        place = self.place(cell)
        found = CellRecord(cell.fingerprint, cell.command, status, cell.settings, (), seconds, error, place)
        written = {key: value for key, value in asdict(found).items() if key not in ("measures", "directory")}
        write_json(place / CELL_FILE, {"version": _VERSION, "kind": "cell", **written})
        return found

    def measured(self, cell: Cell, one: Measurement) -> MeasureRecord | None:
        """What became of a measurement of the cell, or ``None`` where nothing has yet.

        Raises:
            StateError: the record is damaged, or that of another measurement.
        """
        file = measure_place(self.place(cell), one) / MEASURE_FILE
        content = _read(file, "measure", one.fingerprint, "remove its directory to measure it again")
        return None if content is None else MeasureRecord(**content)

    def keep_measured(
        self, cell: Cell, one: Measurement, status: Status, seconds: float, error: str | None = None
    ) -> MeasureRecord:
        """Write down what became of a measurement of the cell."""
        found = MeasureRecord(one.fingerprint, status, one.settings, seconds, error)
        file = measure_place(self.place(cell), one) / MEASURE_FILE
        write_json(file, {"version": _VERSION, "kind": "measure", **asdict(found)})
        return found

    @contextmanager
    def locked(self, cell: Cell) -> Iterator[None]:
        """Have the cell to oneself, whatever is measured of it; the operating system frees it when its owner dies."""
        place = self.place(cell)
        place.mkdir(parents=True, exist_ok=True)
        with FileLock(place.with_suffix(".lock")):
            yield


def measure_place(place: Path, one: Measurement) -> Path:
    """The directory of a measurement in the cell's directory ``place``."""
    return place / MEASURES_DIRECTORY / one.key


def load_record(place: Path, fingerprint: str | None = None) -> CellRecord | None:
    """Read the record of a cell's run.

    Args:
        place: the cell's directory.
        fingerprint: that it must have.

    Raises:
        StateError: the record is damaged, or that of another cell.
    """
    content = _read(place / CELL_FILE, "cell", fingerprint, "remove the cell's directory to run it again")
    return None if content is None else CellRecord(**content, directory=place)


_FIELDS = {
    "cell": {one.name for one in fields(CellRecord)} - {"measures", "directory"},
    "measure": {one.name for one in fields(MeasureRecord)},
}


def _read(file: Path, kind: str, fingerprint: str | None, fix: str) -> dict[str, Any] | None:
    """The fields of a record of this kind; ``None`` where there is no file."""
    if not file.exists():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        version, found = content.pop("version"), content.pop("kind")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise StateError(f"cannot be read: {error}", place=str(file), fix=fix) from error
    if (version, found, content.keys()) != (_VERSION, kind, _FIELDS[kind]) or (
        fingerprint not in (None, content["fingerprint"])
    ):
        raise StateError(f"is not the record of this {kind}", place=str(file), fix=fix)
    return dict(content)
