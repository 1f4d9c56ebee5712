"""The preference data that comes with loralign: three objectives, described in ``builtin/DATASHEET.md``."""

from __future__ import annotations

import glob
from collections.abc import Collection
from pathlib import Path

from loralign.data.readers import read_source
from loralign.data.tables import RawTable
from loralign.errors import DataError

BUILTIN_OBJECTIVES = ("helpful", "honest", "harmless")
BUILTIN_SPLITS = ("train", "validation")

_DIRECTORY = Path(__file__).with_name("builtin")


def is_builtin(location: str) -> bool:
    """Whether a location is the word ``builtin``, alone or with a split behind a colon."""
    return location == "builtin" or location.startswith("builtin:")


def read_builtin(location: str, *, wanted: Collection[str], split: str) -> list[RawTable]:
    """Read the bundled pairs.

    Args:
        location: ``builtin``, ``builtin:train`` or ``builtin:validation``.
        wanted: the columns to read.
        split: the split if ``location`` names none.

    Raises:
        DataError: there is no such split.
    """
    _, _, named = location.partition(":")
    chosen = named or split
    if chosen not in BUILTIN_SPLITS:
        raise DataError(f"the bundled data has no split {chosen!r}", place=location, fix="use train or validation")
    pattern = f"{glob.escape(str(_DIRECTORY))}/*_{chosen}.jsonl"
    return read_source(pattern, wanted=wanted, split=chosen, revision=None)
