"""Reading the answers that a driftcheck run keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from loralign.report.coerce import clean_text, number
from loralign.report.runs.records import Answer, Answers, Ground

_COLUMNS = ("id", "prompt", "label", "category", "response", "refused", "refusal_margin")
_NEEDED = ("id", "label")


def read_answers(path: Path, ground: Ground, notes: list[str]) -> Answers | None:
    """Read a file of responses; ``None`` where there is none or it is damaged, which ``notes`` then says.

    Args:
        path: a Parquet file; columns that it lacks count as empty.
        ground: what the answers were given on.
        notes: gets a sentence for whatever is missing.
    """
    what = f"{path.parent.name}/{path.name}"
    try:
        with pq.ParquetFile(path) as file:
            columns = [name for name in _COLUMNS if name in file.schema_arrow.names]
            table = file.read(columns=columns)
    except FileNotFoundError:
        notes.append(f"There is no {what}, so its answers are not compared.")
        return None
    except (OSError, pa.ArrowException) as error:
        notes.append(f"{what} cannot be read ({clean_text(str(error))[:200]}), so its answers are not compared.")
        return None
    if missing := [name for name in _NEEDED if name not in columns]:
        notes.append(f"{what} has no column {missing[0]}, so its answers are not compared.")
        return None
    texts = {name: _texts(table.column(name)) for name in columns if name not in ("refused", "refusal_margin")}
    numbers = {name: table.column(name).to_pylist() for name in columns if name in ("refused", "refusal_margin")}
    found = {}
    for row, key in enumerate(texts["id"]):
        text = {name: texts[name][row] if name in texts else "" for name in ("prompt", "response", "label", "category")}
        refused, margin = (
            _number(numbers[name][row]) if name in numbers else None for name in ("refused", "refusal_margin")
        )
        found[key] = Answer(text["prompt"], text["response"], text["label"], text["category"], refused, margin)
    return Answers(ground, found)


def _texts(column: Any) -> list[str]:
    """The texts of a column; Parquet does not check that bytes called text are valid UTF-8, so this does."""
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        raw = column.cast(pa.large_binary()).to_pylist()
        return ["" if one is None else clean_text(one.decode("utf-8", "replace")) for one in raw]
    return ["" if one is None else clean_text(str(one)) for one in column.to_pylist()]


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, bool) else number(value)
