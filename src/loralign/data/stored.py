"""Reading datasets that the datasets library keeps: directories of save_to_disk, of the hub's layout, and the hub."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetNotFoundError

from loralign.data.tables import RawTable
from loralign.errors import DataError

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:[^/\s:]+)?")
_FILE_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".txt", ".arrow", ".tsv", ".gz", ".xlsx")


def is_hub_name(location: str) -> bool:
    """Whether a location has the form ``owner/name`` or ``owner/name:config`` and does not look like a file."""
    return _HUB_NAME.fullmatch(location) is not None and not location.lower().endswith(_FILE_SUFFIXES)


def is_undivided(path: Path) -> bool:
    """Whether a directory is what ``save_to_disk`` makes of one dataset: it has no splits and is read whole."""
    return (path / "state.json").is_file() and (path / "dataset_info.json").is_file()


def read_directory(path: Path, *, wanted: Collection[str], split: str) -> RawTable:
    """Read one split of a ``save_to_disk`` directory or of a directory in the hub's layout.

    A ``save_to_disk`` directory without splits is read whole, whatever the split; see :func:`is_undivided`.

    Raises:
        DataError: the directory is damaged or has no such split.
    """
    name = str(path)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        try:
            stored = datasets.load_from_disk(name)
        except Exception as error:
            # pyarrow, json and the datasets library each have errors of their own for a damaged directory.
            raise _unreadable(name, error) from error
        return _table(_choose_split(stored, split, name), name, wanted)
    return _load(name, name, None, wanted, split, None)


def read_hub(location: str, *, wanted: Collection[str], split: str, revision: str | None) -> RawTable:
    """Read one split of a dataset of the hub, ``owner/name`` or ``owner/name:config``.

    Raises:
        DataError: the hub has no such dataset, configuration or split, or cannot be reached.
    """
    path, _, config = location.partition(":")
    return _load(path, location, config or None, wanted, split, revision)


def _load(
    path: str, name: str, config: str | None, wanted: Collection[str], split: str, revision: str | None
) -> RawTable:
    try:
        loaded = datasets.load_dataset(path, config, split=split, revision=revision)
    except (ConnectionError, DatasetNotFoundError) as error:
        raise DataError(
            f"no such file or directory, and not available on the hub either: {_first_line(error)}",
            place=name,
            fix="check the name and the connection, or give a local file",
        ) from error
    except Exception as error:
        # Unknown split or configuration, scripts that are not run, damaged files: as many classes as causes.
        raise _unreadable(name, error) from error
    return _table(loaded, name, wanted)


def _choose_split(stored: Any, split: str, name: str) -> Any:
    if not isinstance(stored, Mapping):
        return stored
    if split not in stored:
        raise DataError(f"no split named {split!r}", place=name, fix=f"it has {', '.join(stored)}")
    return stored[split]


def _table(dataset: Any, name: str, wanted: Collection[str]) -> RawTable:
    columns = tuple(dataset.column_names)
    if len(dataset) == 0:
        raise DataError("the dataset holds no rows", place=name, fix="name a split with data")
    kept = dataset.select_columns([column for column in columns if column in wanted])
    rows = kept.to_list()
    for column, feature in kept.features.items():
        if isinstance(feature, datasets.ClassLabel):
            for row in rows:
                row[column] = None if row[column] in (None, -1) else feature.int2str(row[column])
    return RawTable(name, columns, rows, range(1, len(rows) + 1))


def _unreadable(name: str, error: Exception) -> DataError:
    return DataError(
        f"cannot be read as a dataset: {_first_line(error)}", place=name, fix="check the directory, split and config"
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
