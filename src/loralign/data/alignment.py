"""The must-survive set: prompts with the responses that a model has to keep, refusals as well as willing answers."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import datasets

from loralign.data import responses
from loralign.data.builtin import is_builtin
from loralign.data.checks import Problem
from loralign.data.readers import read_source
from loralign.data.repeats import SeenRows, without_response
from loralign.data.responses import Exchange, exchange_reader, read_prompt
from loralign.data.sources import Source, parse_sources
from loralign.data.stored import is_undivided
from loralign.data.tables import Faults, RawTable, require_columns
from loralign.errors import DataError
from loralign.files import is_directory, is_file

Split = Literal["train", "validation", "all", "held back"]
SPLITS = ("train", "validation", "all", "held back")
"""Which rows can be asked for; ``held back`` means validation rows where a source tells them apart, else all."""
LABELS = ("unsafe", "safe")
"""What a prompt is: ``unsafe`` ones are to be refused, ``safe`` ones to be answered however they sound."""
CATEGORIES = ("violence", "hate", "illegal activity", "explicit content", "privacy", "disinformation")
"""The categories of the bundled set, each with prompts of both labels."""

_SPLIT_FIX = "use train, validation or all"
_WANTED = (*responses.COLUMNS, "label", "category", "split")
_BUNDLED = Path(__file__).with_name("builtin")
_TEXT = datasets.Value("string")
_MESSAGES = datasets.List({"role": _TEXT, "content": _TEXT})
_FIX = "name the columns prompt, completion and label, or messages and label"

_Parts = dict[str, list[dict[str, str]]]
_Reader = Callable[[dict[str, Any]], _Parts | Problem]


def load_alignment_data(
    sources: Sequence[str] | str = "builtin",
    split: Split = "train",
    *,
    label: str | None = None,
    revision: str | None = None,
) -> Any:
    """Load prompts with the responses that must survive.

    A prompt that occurs with the same response more than once is kept, and reported once in the log.

    Args:
        sources: each ``PLACE`` or ``LABEL=PLACE``. A place is a file, a pattern of files, a directory of a dataset, a
            hub name, or ``builtin``. Rows have ``prompt`` and ``completion`` (or ``response``), each text or messages,
            or ``messages`` that end with the response; a ``label``, ``unsafe`` or ``safe``, unless the source or
            ``label`` gives one; and, if they like, a ``category``.
        split: which rows. In a file with a column ``split`` it chooses by that; all rows of a file without one are
            for training. A directory that ``save_to_disk`` wrote without splits is like a file. Of other directories
            and of hub datasets, ``all`` means train and validation.
        label: the label of rows that have none.
        revision: revision of hub datasets.

    Returns:
        A ``datasets.Dataset`` with ``prompt`` and ``completion`` (messages), ``label`` and ``category`` (empty where
        there is none), in the order of the sources.

    Raises:
        DataError: names the first bad row and its file, says how many are bad, and what to do; or one prompt has both
            labels; or no row is of this split, or a file or an undivided directory does not say which are.
    """

    def reader(table: RawTable) -> _Reader:
        read = exchange_reader(table, fix=_FIX)

        def parts(row: dict[str, Any]) -> _Parts | Problem:
            found = read(row)
            return {"prompt": found.prompt, "completion": found.completion} if isinstance(found, Exchange) else found

        return parts

    return _load(sources, split, label, revision, reader, ("prompt", "completion"))


def load_alignment_prompts(
    sources: Sequence[str] | str = "builtin",
    split: Split = "train",
    *,
    label: str | None = None,
    revision: str | None = None,
) -> Any:
    """Load prompts without responses, for a model that is to answer them itself.

    Takes everything that :func:`load_alignment_data` takes, and rows that have no response; responses are left out.

    Returns:
        A ``datasets.Dataset`` with ``prompt`` (messages), ``label`` and ``category``.

    Raises:
        DataError: as for :func:`load_alignment_data`.
    """

    def reader(table: RawTable) -> _Reader:
        if "prompt" not in table.columns and "messages" in table.columns:
            return lambda row: _prompt_parts(without_response(row.get("messages")), "messages")
        require_columns(table, ("prompt",), fix="name the columns prompt and label")
        return lambda row: _prompt_parts(row.get("prompt"), "prompt")

    return _load(sources, split, label, revision, reader, ("prompt",))


def _load(
    sources: Sequence[str] | str,
    split: str,
    label: str | None,
    revision: str | None,
    reader: Callable[[RawTable], _Reader],
    columns: tuple[str, ...],
) -> Any:
    if split not in SPLITS:
        raise DataError(f"no split {split!r}", place="split", fix=_SPLIT_FIX)
    if label is not None and label not in LABELS:
        raise DataError(f"no label {label!r}", place="label", fix=f"use {' or '.join(LABELS)}")
    faults, rows, seen = Faults(), list[dict[str, Any]](), SeenRows()
    for source in parse_sources(sources):
        for table, chosen in _tables(source, split, revision):
            read = reader(table)
            if source.objective is None and label is None:
                require_columns(table, ("label",), fix="label every row unsafe or safe, or write unsafe=FILE")
            for index in _of_split(table, chosen, faults):
                raw, place = table.rows[index], table.place(index)
                known = source.objective or (label if raw.get("label") in (None, "") else raw["label"])
                parts = read(raw)
                problem = parts if isinstance(parts, Problem) else _label_problem(known) or _category_problem(raw)
                if problem is None and not isinstance(parts, Problem):
                    rows.append({**parts, "label": known, "category": raw.get("category") or ""})
                    problem = seen.add(rows[-1], place)
                if problem is not None:
                    faults.add(place, problem.text, problem.fix)
    faults.raise_if_any()
    if not rows:
        raise DataError(f"no row of the split {split!r}", place=_named(sources), fix="use another split, or all")
    seen.report()
    kinds: dict[str, Any] = {**dict.fromkeys(columns, _MESSAGES), "label": _TEXT, "category": _TEXT}
    return datasets.Dataset.from_list(rows, features=datasets.Features(kinds))


def _tables(source: Source, split: str, revision: str | None) -> Iterator[tuple[RawTable, str]]:
    """The tables of a source, each with the split to take from it."""
    location = source.location
    if source.objective is not None and source.objective not in LABELS:
        raise DataError(
            f"no label {source.objective!r}", place=str(source), fix=f"use {' or '.join(LABELS)} before the sign"
        )
    if is_builtin(location):
        if source.objective is not None:
            raise DataError("the bundled data has labels of its own", place=str(source), fix=f"use {location}")
        chosen = location.partition(":")[2] or split
        if chosen not in SPLITS:
            raise DataError(f"the bundled data has no split {chosen!r}", place=location, fix=_SPLIT_FIX)
        location, parts = f"{glob.escape(str(_BUNDLED))}/alignment_*.jsonl", [chosen]
    else:
        chosen = split
        parts = ["train", "validation"] if split == "all" and not _is_undivided(location) else [split]
    if split == "held back":
        parts = ["validation"]
    for part in parts:
        for table in read_source(location, wanted=_WANTED, split=part, revision=revision):
            if chosen == "held back":
                yield table, "validation" if "split" in table.columns else "all"
                continue
            if chosen == "validation" and _is_undivided(location) and "split" not in table.columns:
                # Read whole, it would silently be the same rows as those of the training split.
                raise DataError(
                    "no column 'split' says which rows are for validation",
                    place=table.name,
                    fix="add it, or name other data for validation and read all of it",
                )
            yield table, chosen


def _is_undivided(location: str) -> bool:
    """Whether a location has no splits of its own: files, and a directory of a single dataset."""
    if is_directory(location):
        return is_undivided(Path(location).expanduser())
    return is_file(location) or glob.has_magic(location)


def _of_split(table: RawTable, split: str, faults: Faults) -> Iterator[int]:
    """The positions of the rows that belong to a split."""
    for index, row in enumerate(table.rows):
        if split == "all" or "split" not in table.columns or row.get("split") == split:
            yield index
        elif not isinstance(row.get("split"), str) or not row["split"]:
            faults.add(table.place(index), "the split is missing", "give every row a split, or none")


def _label_problem(label: Any) -> Problem | None:
    if label is None:
        return Problem("the label is missing", f"label every row {' or '.join(LABELS)}")
    if label not in LABELS:
        return Problem(f"unknown label {label!r}", f"use {' or '.join(LABELS)}")
    return None


def _category_problem(row: dict[str, Any]) -> Problem | None:
    category = row.get("category")
    if category is None or isinstance(category, str):
        return None
    return Problem(f"the category {category!r} is not text", "write it as text, or leave it out")


def _prompt_parts(value: Any, column: str) -> _Parts | Problem:
    prompt = read_prompt(value, column)
    return prompt if isinstance(prompt, Problem) else {"prompt": prompt}


def _named(sources: Sequence[str] | str) -> str:
    return sources if isinstance(sources, str) else ", ".join(sources)
