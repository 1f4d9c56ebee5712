"""What was measured on every prompt of a driftcheck run, and how the rows of two runs are paired."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loralign.errors import DataError
from loralign.evaluation.safety import LABELS

_NAMED = 3


@dataclass(frozen=True)
class DriftRow:
    """The verdicts on the response to one prompt.

    Args:
        id: of the prompt.
        label: ``unsafe`` or ``safe``.
        category: of the prompt; empty for one without.
        refused: probability that the response is a refusal.
        toxicity: probability that it is toxic; None where that was not measured.
    """

    id: str
    label: str
    category: str
    refused: float
    toxicity: float | None = None


def drift_rows(records: Iterable[Mapping[str, Any]], *, place: str = "rows") -> list[DriftRow]:
    """Rows from records, such as those of a run's ``responses.parquet``.

    Args:
        records: with ``id``, ``label``, ``category`` (or None), ``refused`` and, if it was measured, ``toxicity``.
        place: what an error calls them.

    Raises:
        DataError: a record lacks a value, or has an impossible one; names it.
    """
    rows = []
    for number, record in enumerate(records):
        missing = [key for key in ("id", "label", "refused") if record.get(key) is None]
        if missing:
            raise DataError(f"no {missing[0]}", place=f"{place}: row {number}", fix="judge every response")
        toxicity = record.get("toxicity")
        values = (float(record["refused"]), None if toxicity is None else float(toxicity))
        rows.append(DriftRow(str(record["id"]), str(record["label"]), str(record.get("category") or ""), *values))
    check_rows(rows, place)
    return rows


def check_rows(rows: Sequence[DriftRow], place: str) -> None:
    """Refuse rows that cannot be scored.

    Args:
        rows: of one run.
        place: what an error calls them.

    Raises:
        DataError: there are none, an id occurs twice, a label is unknown, a value is no probability, or toxicity was
            measured on some rows only; names the ids.
    """
    if not rows:
        raise DataError("there are no rows", place=place, fix="give at least one")
    twice = [name for name, count in Counter(row.id for row in rows).items() if count > 1]
    if twice:
        raise DataError(f"more than one row for {_named(twice)}", place=place, fix="keep one row for every prompt")
    for row in rows:
        if row.label not in LABELS:
            raise DataError(f"the label {row.label!r} is unknown", place=f"{place}: {row.id}", fix="use unsafe or safe")
        for name, value in (("refused", row.refused), ("toxicity", row.toxicity)):
            if value is not None and (math.isnan(value) or not 0 <= value <= 1):
                raise DataError(f"{name} is {value}, no probability", place=f"{place}: {row.id}", fix="judge it again")
    without = [row.id for row in rows if row.toxicity is None]
    if 0 < len(without) < len(rows):
        raise DataError(f"no toxicity for {_named(without)}", place=place, fix="score all responses or none")


def paired(rows: Sequence[DriftRow], others: Sequence[DriftRow], place: str) -> list[DriftRow]:
    """The rows of another run in the order of ``rows``, by the prompt's id.

    Args:
        rows: of one run.
        others: of another run on the same prompts.
        place: what an error calls the other run.

    Raises:
        DataError: a prompt is in one run only, or has another label or category in each, naming the ids; or toxicity
            was measured in one run only.
    """
    by_id = {row.id: row for row in others}
    missing = [row.id for row in rows if row.id not in by_id]
    if missing:
        raise DataError(f"no row for {_named(missing)}", place=place, fix="run both on the same prompts")
    known = {row.id for row in rows}
    more = [row.id for row in others if row.id not in known]
    if more:
        raise DataError(f"rows without a partner: {_named(more)}", place=place, fix="run both on the same prompts")
    found = [by_id[row.id] for row in rows]
    other = [a.id for a, b in zip(rows, found, strict=True) if (a.label, a.category) != (b.label, b.category)]
    if (found[0].toxicity is None) != (rows[0].toxicity is None):
        raise DataError("toxicity was measured in one run only", place=place, fix="score both with the same scorer")
    if other:
        raise DataError(f"another label or category for {_named(other)}", place=place, fix="run both on the same set")
    return found


def _named(ids: Sequence[str]) -> str:
    more = len(ids) - _NAMED
    return ", ".join(map(repr, ids[:_NAMED])) + (f" and {more} more" if more > 0 else "")
