"""Reading the user's sources into candidates, with a count of what was read, and of what was left out and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loralign.data.alignment import LABELS
from loralign.data.builtin import is_builtin
from loralign.data.checks import Problem, check_text
from loralign.data.driftcheck.candidate import Candidate
from loralign.data.driftcheck.categories import names_minors, unsafe_category
from loralign.data.driftcheck.formats import COLUMNS, FORMATS, PLAIN, Draft, Format, Omission, Reading, format_of
from loralign.data.driftcheck.hub import read_public_set
from loralign.data.driftcheck.prompt import GENERAL, categories_of
from loralign.data.driftcheck.templates import builtin_candidates
from loralign.data.readers import read_source
from loralign.data.sources import Source, parse_sources
from loralign.data.tables import Faults, RawTable
from loralign.errors import DataError

MOST_CHARACTERS = 2000
"""Longer prompts are left out: a set is for models with short windows too."""
UNKNOWN_LICENCE = "unknown"
_NAMES = {one.name: one for one in FORMATS}


@dataclass
class Origin:
    """One source as the user wrote it, and what became of its rows.

    Args:
        source: the user's words.
        read: rows, or prompts made.
        dropped: how many were left out, by reason.
    """

    source: str
    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)


def read_origins(sources: Sequence[str] | str) -> tuple[list[Candidate], list[Origin]]:
    """Read all sources.

    Args:
        sources: each ``builtin``; the name of a public set (``mmlu``, ``hh-rlhf``, ``advbench``, ``harmbench``), which
            is then taken from the hub; a file, pattern, directory or hub name; or ``KIND=PLACE``, where the kind is a
            public set, whose form the rows have, or a label, ``safe`` or ``unsafe``, for rows that have none. Without
            a kind the columns tell the form. A hub name may end in ``:config`` and, after that, in ``#split``, which is
            ``train`` otherwise.

    Returns:
        The candidates in the order of the sources, and one origin for each source.

    Raises:
        DataError: a source cannot be read or is named twice, or rows are not what their form demands.
    """
    candidates, origins, faults = list[Candidate](), list[Origin](), Faults()
    for number, source in enumerate(parse_sources(sources)):
        origin = Origin(str(source))
        if any(other.source == origin.source for other in origins):
            raise DataError("this source is named twice", place=origin.source, fix="name it once")
        origins.append(origin)
        if is_builtin(source.location):
            if source.objective is not None or source.location != "builtin":
                raise DataError("the bundled prompts have no other form", place=str(source), fix="write builtin")
            made = builtin_candidates(number)
            origin.read = len(made)
            candidates += made
            continue
        for table, form in _tables(source):
            for index, row in enumerate(table.rows):
                origin.read += 1
                label = source.objective if source.objective in LABELS else None
                finished = _finish(form.read(row), form, label, number, table.name)
                if isinstance(finished, Problem):
                    faults.add(table.place(index), finished.text, finished.fix)
                elif isinstance(finished, Omission):
                    origin.dropped[finished.reason] += 1
                else:
                    candidates.append(finished)
    faults.raise_if_any()
    return candidates, origins


def _tables(source: Source) -> Iterator[tuple[RawTable, Format]]:
    """The tables of a source, each with the form of its rows."""
    kind, location = source.objective, source.location
    if kind is not None and kind not in LABELS and kind not in _NAMES:
        raise DataError(
            f"no kind of source {kind!r}", place=str(source), fix=f"use {', '.join((*LABELS, *_NAMES))} before the sign"
        )
    if location in _NAMES and not Path(location).exists():
        form = _NAMES[location]
        if kind not in (None, form.label):
            raise DataError(f"{location} is {form.label}", place=str(source), fix=f"write {location}")
        yield read_public_set(form, COLUMNS), form
        return
    place, split = location, "train"
    if not Path(location).expanduser().exists():
        place, mark, named = location.rpartition("#")
        place, split = (place, named) if mark and place and named else (location, "train")
    for table in read_source(place, wanted=COLUMNS, split=split, revision=None):
        # The hub's copies of some public sets have plain rows, with the prompts of the set they are named after.
        found = format_of(table)
        form = _NAMES.get(kind or "", found)
        if form is not found:
            if found is not PLAIN:
                raise DataError(
                    f"the columns are those of {found.name}, not of {form.name}", place=table.name, fix="name it so"
                )
            form = Format(form.name, PLAIN.columns, PLAIN.read, form.label, form.licence)
        yield table, form


def _finish(
    reading: Reading, form: Format, label: str | None, origin: int, name: str
) -> Candidate | Omission | Problem:
    """Complete a draft by what the source and the form say, and check it."""
    if not isinstance(reading, Draft):
        return reading
    checked = check_text(reading.prompt, "prompt")
    if isinstance(checked, Problem):
        return checked
    known = label or form.label or reading.label
    if known not in LABELS:
        if known is None:
            return Problem("the label is missing", "label every row unsafe or safe, or write unsafe=PLACE")
        return Problem(f"unknown label {known!r}", f"use {' or '.join(LABELS)}")
    if len(reading.prompt) > MOST_CHARACTERS:
        return Omission(f"longer than {MOST_CHARACTERS} characters")
    if known == "safe":
        given = (reading.category or "").casefold()
        category = given if given in categories_of(known) else GENERAL
    else:
        found = unsafe_category(reading.prompt, reading.category)
        if found is None:
            return Omission("no category fits")
        category = found
        if names_minors(reading.prompt, category):
            return Omission("sexual and about minors")
    source = form.name or reading.source or Path(name).stem
    licence = reading.licence or form.licence or UNKNOWN_LICENCE
    return Candidate(reading.prompt, known, category, source, licence, origin)
