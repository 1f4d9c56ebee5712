"""Loading preference pairs of several objectives into one dataset, with every fault named before training begins."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets

from loralign.data.builtin import BUILTIN_OBJECTIVES, is_builtin
from loralign.data.checks import Format, Problem, check_pair
from loralign.data.objectives import check_objective_list, merge_objectives
from loralign.data.sources import Source, parse_sources, read_tables
from loralign.data.tables import Faults, RawTable, require_columns
from loralign.errors import DataError


@dataclass(frozen=True)
class Preferences:
    """Preference pairs that passed every check.

    Args:
        dataset: a ``datasets.Dataset`` with the columns prompt, chosen, rejected and objective (text); the first three
            are texts, or lists of messages with role and content.
        objectives: the objectives in a stable order; an objective's position is its id.
        counts: number of pairs per objective.
        fingerprint: SHA-256 over the rows, in hexadecimal.
        sources: the sources as the user named them.
    """

    dataset: Any = field(repr=False)
    objectives: tuple[str, ...]
    counts: dict[str, int]
    fingerprint: str
    sources: tuple[str, ...]

    @property
    def format(self) -> Format:
        """Whether the pairs are conversational or plain."""
        return "plain" if isinstance(self.dataset[0]["prompt"], str) else "conversational"

    def __len__(self) -> int:
        return len(self.dataset)


def load_preferences(
    sources: Sequence[str] | str,
    *,
    label_column: str = "objective",
    split: str = "train",
    objectives: Sequence[str] | None = None,
    revision: str | None = None,
    check: bool = True,
) -> Preferences:
    """Load preference pairs, each labelled with the objective it serves.

    Args:
        sources: each ``objective=PLACE`` or ``PLACE``; the latter has a label column. A place is a file (.jsonl,
            .json, .csv, .parquet), a pattern of files, a directory of a dataset, a hub name ``owner/name`` with an
            optional ``:config``, or ``builtin``. Rows are in TRL's explicit-prompt or implicit-prompt form,
            conversational or plain, but all the same of the last two.
        label_column: the column that labels the rows of sources without a given objective.
        split: which split to read where there are several.
        objectives: the objectives to expect, which also sets their order. None takes those that the data has: given
            names in the order of the sources, labels sorted.
        revision: revision of hub datasets.
        check: whether texts are checked for emptiness and equality; the form of the data always is.

    Raises:
        DataError: names the first bad row and its file, says how many are bad, and what to do.
    """
    expected = None if objectives is None else check_objective_list(objectives)
    parsed = parse_sources(sources)
    wanted = ("prompt", "chosen", "rejected", label_column)
    faults, rows, found = Faults(), _Rows(), []
    for source in parsed:
        labels: set[str] = set()
        for table in read_tables(source, wanted=wanted, split=split, revision=revision):
            labels |= rows.add_table(table, source, label_column, expected, faults, texts=check)
        own_order = BUILTIN_OBJECTIVES if is_builtin(source.location) else ()
        found.append([*(name for name in own_order if name in labels), *sorted(labels - set(own_order))])
    faults.raise_if_any()
    names = expected or check_objective_list(merge_objectives(*found), place=", ".join(map(str, parsed)))
    return make_preferences(rows.rows, names, tuple(str(source) for source in parsed))


def make_preferences(
    rows: Sequence[dict[str, Any]], objectives: tuple[str, ...], sources: tuple[str, ...]
) -> Preferences:
    """Put checked rows together.

    Raises:
        DataError: an objective has no rows.
    """
    found = Counter(row["objective"] for row in rows)
    counts = {name: found[name] for name in objectives}
    for name, count in counts.items():
        if count == 0:
            raise DataError(
                f"the objective {name!r} has no rows", place=", ".join(sources), fix="add data for it, or leave it out"
            )
    dataset = datasets.Dataset.from_list(list(rows), features=_features(rows[0]))
    return Preferences(dataset, objectives, counts, fingerprint_rows(rows), sources)


def fingerprint_rows(rows: Sequence[dict[str, Any]]) -> str:
    """SHA-256 over the rows in their order, each as JSON with sorted keys."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True).encode("utf-8") + b"\n")
    return digest.hexdigest()


class _Rows:
    """The rows collected so far, and the format that the first of them had."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._format: Format | None = None
        self._first_place = ""

    def add_table(
        self,
        table: RawTable,
        source: Source,
        label_column: str,
        expected: tuple[str, ...] | None,
        faults: Faults,
        *,
        texts: bool,
    ) -> set[str]:
        """Check a table's rows, keep the good ones, note the bad ones; return the labels seen."""
        require_columns(table, ("chosen", "rejected"), fix="rename the columns to prompt, chosen and rejected")
        if source.objective is None:
            require_columns(table, (label_column,), fix="name the label column, or write objective=FILE")
        explicit, labels = "prompt" in table.columns, set()
        for index, row in enumerate(table.rows):
            place = table.place(index)
            label = source.objective if source.objective is not None else row.get(label_column)
            problem = _label_problem(label, label_column, expected)
            pair = check_pair(row, explicit_prompt=explicit, texts=texts)
            if problem is None and isinstance(pair, Problem):
                problem = pair
            if problem is None and not isinstance(pair, Problem):
                problem = self._format_problem(pair.format, place)
            if problem is not None:
                faults.add(place, problem.text, problem.fix)
            elif isinstance(label, str) and not isinstance(pair, Problem):
                labels.add(label)
                self.rows.append(
                    {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected, "objective": label}
                )
        return labels

    def _format_problem(self, found: Format, place: str) -> Problem | None:
        if self._format is None:
            self._format, self._first_place = found, place
        if found == self._format:
            return None
        return Problem(
            f"this pair is {found}, but {self._first_place} is {self._format}", "write all data in the same format"
        )


def _label_problem(label: Any, column: str, expected: tuple[str, ...] | None) -> Problem | None:
    if label is None or (isinstance(label, str) and not label.strip()):
        return Problem(f"the label column {column!r} is empty", "label every row")
    if not isinstance(label, str):
        return Problem(f"the label {label!r} in {column!r} is not text", "write labels as text")
    if expected is not None and label not in expected:
        return Problem(f"unknown objective {label!r}", f"expected one of {', '.join(expected)}")
    return None


def _features(row: dict[str, Any]) -> Any:
    text = datasets.Value("string")
    part = text if isinstance(row["prompt"], str) else datasets.List({"role": text, "content": text})
    return datasets.Features({"prompt": part, "chosen": part, "rejected": part, "objective": text})
