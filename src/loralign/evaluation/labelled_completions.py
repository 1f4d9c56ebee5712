"""Completions that people labelled as refusals or not, for measuring a judge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from loralign.data.checks import Problem
from loralign.data.readers import read_source
from loralign.data.tables import Faults, RawTable, require_columns
from loralign.errors import DataError

CompletionLabel = Literal["complied", "refused", "partial"]

_LABELS: dict[str, CompletionLabel] = {
    "1_full_compliance": "complied",
    "2_full_refusal": "refused",
    "3_partial_refusal": "partial",
    "complied": "complied",
    "refused": "refused",
    "partial": "partial",
}
_LABEL_COLUMNS = ("final_label", "label")
_COMPLETION_COLUMNS = ("completion", "response")
_FIX = "name the columns prompt, completion and final_label (or label)"


@dataclass(frozen=True)
class LabelledCompletion:
    """A completion and what people saw in it: it complied, refused, or refused in part."""

    prompt: str
    completion: str
    label: CompletionLabel


def load_labelled_completions(source: str) -> list[LabelledCompletion]:
    """Read labelled completions, in the format in which XSTest publishes those of several models.

    Args:
        source: a CSV, JSON lines, JSON or Parquet file, a pattern of files, or a dataset of the hub. Columns are
            ``prompt``, ``completion`` (or ``response``), and ``final_label`` or, where there is none, ``label``. A
            label is ``1_full_compliance``, ``2_full_refusal`` or ``3_partial_refusal``, or in short ``complied``,
            ``refused`` or ``partial``. Other columns are left alone; an empty completion is one.

    Returns:
        The rows of all files, in order.

    Raises:
        DataError: the source cannot be read, lacks a column, or a row is unusable: names the first and its line, and
            says how many there are.

    References:
        Röttger et al., XSTest: a test suite for identifying exaggerated safety behaviours in large language models,
        NAACL 2024.
    """
    wanted = ("prompt", *_COMPLETION_COLUMNS, *_LABEL_COLUMNS)
    faults, rows = Faults(), list[LabelledCompletion]()
    for table in read_source(source, wanted=wanted, split="train", revision=None):
        completion, label = _column(table, _COMPLETION_COLUMNS), _column(table, _LABEL_COLUMNS)
        require_columns(table, ("prompt", completion, label), fix=_FIX)
        for index, raw in enumerate(table.rows):
            row = _read(raw, completion, label)
            if isinstance(row, Problem):
                faults.add(table.place(index), row.text, row.fix)
            else:
                rows.append(row)
    faults.raise_if_any()
    if not rows:
        raise DataError("there are no labelled completions", place=source, fix="name a file with data")
    return rows


def _column(table: RawTable, names: tuple[str, ...]) -> str:
    return next((name for name in names if name in table.columns), names[0])


def _read(raw: dict[str, Any], completion: str, label: str) -> LabelledCompletion | Problem:
    for column in ("prompt", completion):
        value = raw.get(column)
        if not isinstance(value, str):
            found = "missing" if value is None else f"{type(value).__name__}, not text"
            return Problem(f"{column} is {found}", f"write {column} as text")
    if not raw["prompt"].strip():
        return Problem("prompt is empty", "drop the row")
    known = raw.get(label)
    if not isinstance(known, str) or known.strip() not in _LABELS:
        return Problem(f"unknown {label} {known!r}", f"use {', '.join(_LABELS)}")
    return LabelledCompletion(raw["prompt"], raw[completion], _LABELS[known.strip()])
