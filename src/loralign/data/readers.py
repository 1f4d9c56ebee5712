"""Reading rows from local files: JSON lines, JSON, CSV and Parquet, with the line or row of whatever cannot be read."""

from __future__ import annotations

import csv
import difflib
import glob
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from loralign.data.stored import is_hub_name, read_directory, read_hub
from loralign.data.tables import RawTable, columns_of
from loralign.errors import DataError
from loralign.files import is_directory, is_file


def read_source(location: str, *, wanted: Collection[str], split: str, revision: str | None) -> list[RawTable]:
    """Read a file, a pattern of files, a directory of a dataset, or a dataset of the hub.

    Args:
        location: path, glob pattern, or hub name ``owner/name`` with an optional ``:config``.
        wanted: the columns to read; others are only named.
        split: which split of a directory or hub dataset; a file is one split and is read whole.
        revision: hub revision.

    Returns:
        One table per file, or one for the split.

    Raises:
        DataError: nothing is there, or it cannot be read; names the file and, where it has one, the line.
    """
    path = Path(location).expanduser()
    if is_file(path):
        return [_read_file(path, location, wanted)]
    if is_directory(path):
        return [read_directory(path, wanted=wanted, split=split)]
    if glob.has_magic(location):
        matches = sorted(Path(name) for name in glob.glob(str(path), recursive=True))  # noqa: PTH207 - absolute too
        files = [file for file in matches if file.is_file()]
        if not files:
            raise DataError("no file matches this pattern", place=location, fix="check the path")
        return [_read_file(file, str(file), wanted) for file in files]
    if is_hub_name(location):
        return [read_hub(location, wanted=wanted, split=split, revision=revision)]
    raise DataError("no such file or directory", place=location, fix=_nearest(path))


def _read_file(path: Path, name: str, wanted: Collection[str]) -> RawTable:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"files ending in {path.suffix or 'nothing'!r} are not read", place=name, fix=f"use {', '.join(_READERS)}"
        )
    try:
        table = reader(path, name, wanted)
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 text: {error.reason}", place=name, fix="save the file as UTF-8") from error
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", place=name, fix="check the file") from error
    if not table.rows:
        raise DataError("the file holds no rows", place=name, fix="name a file with data")
    return table


def _read_jsonl(path: Path, name: str, wanted: Collection[str]) -> RawTable:
    rows, numbers = [], []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            place = f"{name}:{number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise DataError("not UTF-8 text", place=place, fix="save the file as UTF-8") from error
            if text:
                rows.append(_parse_object(text, place))
                numbers.append(number)
    return RawTable(name, columns_of(rows), rows, numbers, "line")


def _parse_object(text: str, place: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not valid JSON: {error}", place=place, fix="one JSON object per line") from error
    if not isinstance(value, dict):
        raise DataError(
            f"a JSON {type(value).__name__} where an object is expected", place=place, fix="one JSON object per line"
        )
    return value


def _read_json(path: Path, name: str, wanted: Collection[str]) -> RawTable:
    text = path.read_text(encoding="utf-8-sig")
    if not text.lstrip().startswith("["):
        # Many programs call JSON lines .json.
        return _read_jsonl(path, name, wanted)
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not valid JSON: {error}", place=name, fix="a list of JSON objects") from error
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(
                f"a JSON {type(row).__name__} where an object is expected",
                place=f"{name}: row {number}",
                fix="a list of JSON objects",
            )
    return RawTable(name, columns_of(rows), rows, range(1, len(rows) + 1))


def _read_csv(path: Path, name: str, wanted: Collection[str]) -> RawTable:
    rows, numbers = [], []
    number = 1  # a quoted cell may span lines: the first one is named
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            columns = tuple(reader.fieldnames or ())
            number = reader.line_num + 1
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(
                        f"this row has another number of cells than the header ({len(columns)})",
                        place=f"{name}:{number}",
                        fix="quote cells that hold commas or line breaks",
                    )
                place = f"{name}:{number}"
                rows.append({key: _decode_cell(row[key], key, place) for key in columns if key in wanted})
                numbers.append(number)
                number = reader.line_num + 1
        except csv.Error as error:
            raise DataError(f"not valid CSV: {error}", place=f"{name}:{number}", fix="quote cells") from error
    return RawTable(name, columns, rows, numbers, "line")


def _decode_cell(cell: str, column: str, place: str) -> Any:
    """A cell as text, or as the list of messages that is written in it as JSON."""
    compact = "".join(cell[:40].split())
    if compact.startswith(("[{'role'", "[{'content'")):
        raise DataError(
            f"{column} holds messages in Python's notation", place=place, fix="write them as JSON, with double quotes"
        )
    if not compact.startswith("[{"):
        return cell
    try:
        value = json.loads(cell)
    except ValueError:
        return cell  # a text that happens to begin so
    is_messages = all(isinstance(message, dict) and "role" in message for message in value)
    return value if is_messages else cell


def _read_parquet(path: Path, name: str, wanted: Collection[str]) -> RawTable:
    try:
        columns = tuple(pq.read_schema(path).names)
        rows = pq.read_table(path, columns=[column for column in columns if column in wanted]).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"not a whole Parquet file: {error}", place=name, fix="write or copy it again") from error
    return RawTable(name, columns, rows, range(1, len(rows) + 1))


def _nearest(path: Path) -> str:
    if path.parent.is_dir():
        near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
        if near:
            return f"did you mean {path.parent / near[0]}?"
    return "give a file, a directory, a hub name owner/name, or the word builtin"


_READERS: dict[str, Callable[[Path, str, Collection[str]], RawTable]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
