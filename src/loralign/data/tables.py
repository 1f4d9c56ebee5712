"""Raw rows as a source holds them, each with the place that an error can point to."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from loralign.errors import DataError


@dataclass(frozen=True)
class RawTable:
    """The rows of one file or one split, unchecked.

    Args:
        name: the file, directory or hub name.
        columns: names of all columns, also of those that were not read.
        rows: one dictionary per row.
        numbers: for every row its line in the file (from 1) or its position (from 1), see ``unit``.
        unit: ``"line"`` if ``numbers`` are lines of a text file, ``"row"`` if they count rows.
    """

    name: str
    columns: tuple[str, ...]
    rows: Sequence[dict[str, Any]]
    numbers: Sequence[int]
    unit: str = "row"

    def place(self, index: int) -> str:
        """Where row ``index`` (from 0) stands, for an error message."""
        number = self.numbers[index]
        return f"{self.name}:{number}" if self.unit == "line" else f"{self.name}: row {number}"


class Faults:
    """Collects what is wrong with single rows, so that one error can name the first and say how many there are."""

    def __init__(self) -> None:
        self._first: tuple[str, str, str] | None = None
        self._places: set[str] = set()

    def add(self, place: str, problem: str, fix: str) -> None:
        """Note one fault. Several faults of one row count once."""
        if self._first is None:
            self._first = (place, problem, fix)
        self._places.add(place)

    def raise_if_any(self) -> None:
        """Raise what was collected.

        Raises:
            DataError: at least one fault was added.
        """
        if self._first is None:
            return
        place, problem, fix = self._first
        others = len(self._places) - 1
        if others:
            problem += f"; {len(self._places)} rows are bad, this is the first"
        raise DataError(problem, place=place, fix=fix)


def columns_of(rows: Iterable[dict[str, Any]]) -> tuple[str, ...]:
    """All keys of the rows, in the order in which they first appear."""
    return tuple(dict.fromkeys(key for row in rows for key in row))


def require_columns(table: RawTable, wanted: Iterable[str], *, fix: str) -> None:
    """Refuse a table that lacks a column, naming the column that its author may have meant.

    Raises:
        DataError: a wanted column is missing.
    """
    missing = [column for column in wanted if column not in table.columns]
    if not missing:
        return
    near = difflib.get_close_matches(missing[0], table.columns, n=1, cutoff=0.6)
    hint = f"; is it {near[0]!r}?" if near else ""
    has = ", ".join(table.columns) or "none"
    raise DataError(f"no column {missing[0]!r} among: {has}{hint}", place=table.name, fix=fix)
