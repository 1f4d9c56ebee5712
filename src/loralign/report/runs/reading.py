"""Finding out what was given to be reported, and reading it.

A place is the output directory of ``loralign adapt``, ``align``, ``repair`` or ``driftcheck run``, a file or directory
of task scores, or a directory that holds several of these.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from loralign.errors import StateError
from loralign.files import exists
from loralign.report.adaptation import ADAPT
from loralign.report.coerce import clean_text
from loralign.report.reading import ALIGN
from loralign.report.runs.files import read_object
from loralign.report.runs.from_adapt import read_adapt
from loralign.report.runs.from_align import read_align
from loralign.report.runs.from_driftcheck import RUN_FILE, SCORES_FILE, is_driftcheck, read_driftcheck
from loralign.report.runs.from_repair import REPAIR_FILE, read_repair
from loralign.report.runs.from_tasks import TASKS_FILE, read_tasks
from loralign.report.runs.records import Part

DEEPEST = 4
"""Levels of directories inside a given one that are looked into."""

_FIX = "give what loralign adapt, align, repair, driftcheck run or its task scores have written"


def read_runs(places: Sequence[str | Path]) -> list[Part]:
    """Read everything that the places hold.

    Args:
        places: files and directories; the order of the models in the report follows theirs.

    Raises:
        StateError: a place is absent or holds nothing that is known, or something in it is damaged.
    """
    parts: list[Part] = []
    for place in _unique(places):
        try:
            found = _read_file(place) if place.is_file() else _read_tree(place)
        except OSError as error:
            raise StateError(
                f"cannot be read: {error.strerror}", place=str(error.filename or place), fix=_FIX
            ) from error
        if not found:
            raise StateError("holds nothing that can be reported", place=str(place), fix=_FIX)
        parts += found
    return parts


def _unique(places: Sequence[str | Path]) -> list[Path]:
    """The places that exist, each once.

    Raises:
        StateError: one does not exist.
    """
    found: dict[str, Path] = {}
    for place in places:
        path = os.path.expanduser(place)  # noqa: PTH111 - pathlib raises on names that no file can have
        if not exists(path):
            raise StateError("does not exist", place=clean_text(str(place))[:200], fix=_FIX)
        found.setdefault(os.path.realpath(path), Path(path))
    return list(found.values())


def _read_file(path: Path) -> list[Part]:
    """A file of task scores, or the description inside a run's directory."""
    if path.name in (RUN_FILE, REPAIR_FILE, SCORES_FILE):
        return _read_directory(path.parent)
    return read_tasks(path)


def _read_tree(directory: Path, depth: int = 0) -> list[Part]:
    """What a directory is, or else what the directories in it are; links and hidden ones are passed over."""
    found = _read_directory(directory)
    if _is_run(directory) or depth == DEEPEST or not directory.is_dir():
        return found
    for child in sorted(directory.iterdir()):
        if child.is_dir() and not child.is_symlink() and not child.name.startswith("."):
            found += _read_tree(child, depth + 1)
    return found


def _is_run(directory: Path) -> bool:
    return (directory / RUN_FILE).is_file() or (directory / REPAIR_FILE).is_file()


def _read_directory(directory: Path) -> list[Part]:
    found: list[Part] = []
    if (directory / REPAIR_FILE).is_file():
        found += read_repair(directory)
    elif (directory / RUN_FILE).is_file():
        found += _read_run(directory)
    if (directory / TASKS_FILE).is_file():
        found += read_tasks(directory / TASKS_FILE)
    return found


def _read_run(directory: Path) -> list[Part]:
    about = read_object(directory / RUN_FILE, _FIX)
    if is_driftcheck(about):
        return read_driftcheck(directory)
    kind = about.get("kind", ALIGN)
    if kind == ADAPT:
        return read_adapt(directory)
    if kind == ALIGN:
        return read_align(directory)
    raise StateError(f"a run of kind {kind!r:.40} is unknown", place=str(directory / RUN_FILE), fix=_FIX)
