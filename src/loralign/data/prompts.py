"""Prompts for the reference-preservation stream: texts on which the model should stay what it was."""

from __future__ import annotations

from typing import Any

import datasets

from loralign.data.checks import Problem, Text, check_messages, check_text
from loralign.data.preferences import Preferences
from loralign.data.sources import parse_sources, read_tables
from loralign.data.tables import Faults, RawTable
from loralign.errors import DataError

COLUMNS = ("messages", "text", "prompt")
"""The columns that may hold the prompts, in the order in which they are looked for."""


def load_prompts(
    source: str,
    *,
    preferences: Preferences | None = None,
    split: str = "train",
    revision: str | None = None,
) -> Any:
    """Load the prompts on which divergence from the reference model is measured.

    Args:
        source: a file, directory or hub name as for :func:`load_preferences`, whose rows have one of the columns
            ``messages``, ``text`` or ``prompt`` (text or messages); or the word ``preferences``, which means the
            prompts of the preference data with their chosen completions.
        preferences: the preference data, for the word ``preferences``.
        split: which split to read where there are several.
        revision: revision of a hub dataset.

    Returns:
        A ``datasets.Dataset`` with one column: ``messages`` (lists of role and content) or ``text``.

    Raises:
        DataError: names the first bad row and its file, says how many are bad, and what to do.
    """
    if source == "preferences":
        return _from_preferences(preferences)
    (parsed,) = parse_sources(source)
    if parsed.objective is not None:
        raise DataError("prompts serve no objective", place=source, fix=f"write {parsed.location}")
    faults = Faults()
    prompts: list[Text] = []
    first_place = ""
    for table in read_tables(parsed, wanted=COLUMNS, split=split, revision=revision):
        column = _column_of(table)
        for index, row in enumerate(table.rows):
            place, checked = table.place(index), _check(row.get(column), column)
            if isinstance(checked, Problem):
                faults.add(place, checked.text, checked.fix)
                continue
            first_place = first_place or place
            if prompts and isinstance(checked, str) != isinstance(prompts[0], str):
                kinds = ("text", "messages") if isinstance(checked, str) else ("messages", "text")
                faults.add(place, f"this prompt is {kinds[0]}, but {first_place} is {kinds[1]}", "write all alike")
                continue
            prompts.append(checked)
    faults.raise_if_any()
    return _dataset(prompts)


def _from_preferences(preferences: Preferences | None) -> Any:
    if preferences is None:
        raise DataError("there is no preference data to take prompts from", place="preferences", fix="name a file")
    return _dataset([row["prompt"] + row["chosen"] for row in preferences.dataset])


def _column_of(table: RawTable) -> str:
    for column in COLUMNS:
        if column in table.columns:
            return column
    has = ", ".join(table.columns) or "none"
    raise DataError(f"no column of prompts among: {has}", place=table.name, fix="name it messages, text or prompt")


def _check(value: Any, column: str) -> Text | Problem:
    if column == "text" and not isinstance(value, str | None):
        return Problem(f"text is {type(value).__name__}, not text", "put messages into a column named messages")
    if column == "messages" and value is not None:
        if not isinstance(value, list):
            return Problem(f"messages is {type(value).__name__}, not a list of messages", "use a column named text")
        return check_messages(value, column)
    return check_text(value, column)


def _dataset(prompts: list[Text]) -> Any:
    text = datasets.Value("string")
    if isinstance(prompts[0], str):
        return datasets.Dataset.from_dict({"text": prompts}, features=datasets.Features({"text": text}))
    features = datasets.Features({"messages": datasets.List({"role": text, "content": text})})
    return datasets.Dataset.from_dict({"messages": prompts}, features=features)
