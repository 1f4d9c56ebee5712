"""What the user writes to name data: ``objective=PLACE`` or ``PLACE``, and which rows that means."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from loralign.data.builtin import is_builtin, read_builtin
from loralign.data.objectives import check_objective_name
from loralign.data.readers import read_source
from loralign.data.tables import RawTable
from loralign.errors import DataError
from loralign.files import exists


@dataclass(frozen=True)
class Source:
    """One place of data, and the objective that all of its rows serve, or None if a column labels them."""

    location: str
    objective: str | None = None

    def __str__(self) -> str:
        return self.location if self.objective is None else f"{self.objective}={self.location}"


def parse_sources(texts: Sequence[str] | str) -> list[Source]:
    """Parse the user's sources.

    Raises:
        DataError: there is none, one is empty, or an objective's name cannot be used.
    """
    given = [texts] if isinstance(texts, str) else list(texts)
    if not given:
        raise DataError("no data is named", fix="name files, or use the word builtin")
    return [_parse(text) for text in given]


def read_tables(source: Source, *, wanted: Collection[str], split: str, revision: str | None) -> list[RawTable]:
    """Read the tables of one source; see :func:`loralign.data.readers.read_source`.

    Raises:
        DataError: the source cannot be read.
    """
    if is_builtin(source.location):
        if source.objective is not None:
            raise DataError("the bundled data has labels of its own", place=str(source), fix=f"use {source.location}")
        return read_builtin(source.location, wanted=wanted, split=split)
    return read_source(source.location, wanted=wanted, split=split, revision=revision)


def _parse(text: str) -> Source:
    if not text.strip():
        raise DataError("an empty data source", fix="name a file, a directory, a hub name, or the word builtin")
    name, equals, location = text.partition("=")
    # A path may hold an equals sign too: it is one if it exists, or if a separator comes before the sign.
    if not equals or "/" in name or "\\" in name or exists(text):
        return Source(text.strip())
    if not location.strip():
        raise DataError(f"nothing follows {text!r}", place=text, fix="write objective=FILE")
    return Source(location.strip(), check_objective_name(name, place=text))
