"""The rows that tasks on local files are made of, checked before the harness sees them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loralign.data.checks import Problem, check_messages
from loralign.data.readers import read_source
from loralign.data.tables import Faults
from loralign.errors import DataError

Row = dict[str, Any]

_MOST_CHOICES = 10  # the letters A to J of the template
_MARKED = re.compile(r"####\s*\$?\s*-?\d[\d,]*(\.\d+)?\s*")


def read_rows(name: str, path: str | Path) -> list[Row]:
    """Read a task's file and check every row.

    Args:
        name: ``sst2``, ``gsm8k`` or ``mmlu``.
        path: a ``.jsonl`` file, or a ``.json`` file with a list.

    Raises:
        DataError: the file is not there or of another kind, or a row is not what the task needs; names the first bad
            row and says how many are bad.
    """
    if not Path(path).expanduser().is_file():
        raise DataError("no such file", place=str(path), fix=f"name the file of {name}")
    if Path(path).suffix.lower() not in (".jsonl", ".json"):
        raise DataError("not a file of JSON", place=str(path), fix="use .jsonl, one object a line")
    (table,) = read_source(str(path), wanted=(), split="test", revision=None)
    check, faults = ROW_CHECKS[name], Faults()
    for index, row in enumerate(table.rows):
        problem = check(row)
        if problem is not None:
            faults.add(table.place(index), problem.text, problem.fix)
    faults.raise_if_any()
    return list(table.rows)


def _check_sst2(row: Row) -> Problem | None:
    exchange = _exchange(row)
    if isinstance(exchange, Problem):
        return exchange
    question, answer = exchange
    if question.isdigit():
        return Problem("the text is digits alone, which the harness takes for a number", "remove the row")
    if answer.strip().lower() not in ("positive", "negative"):
        return Problem(f"the answer is {answer[:20]!r}", "use positive or negative")
    return None


def _check_gsm8k(row: Row) -> Problem | None:
    exchange = _exchange(row)
    if isinstance(exchange, Problem):
        return exchange
    if _MARKED.fullmatch(exchange[1][max(exchange[1].rfind("####"), 0) :]) is None:
        return Problem("the answer does not end with #### and a number", "end it so: #### 18")
    return None


def _check_mmlu(row: Row) -> Problem | None:
    for column in ("subject", "question"):
        if not isinstance(row.get(column), str) or not row[column].strip():
            return Problem(f"{column} is missing or not text", f"give every row a {column}")
    choices, answer = row.get("choices"), row.get("answer")
    texts = isinstance(choices, list) and all(isinstance(choice, str) for choice in choices)
    if not texts or not 2 <= len(choices or ()) <= _MOST_CHOICES:
        return Problem("choices is not a list of texts", f"give 2 to {_MOST_CHOICES} of them")
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices or ()):
        return Problem(f"the answer is {answer!r}", "give the number of the right choice, from 0")
    return None


def _exchange(row: Row) -> tuple[str, str] | Problem:
    """A question and its answer: a user's message and the assistant's."""
    messages = row.get("messages")
    checked = check_messages(messages, "messages") if isinstance(messages, list) else None
    if isinstance(checked, Problem):
        return checked
    if checked is None or [message["role"] for message in checked] != ["user", "assistant"]:
        return Problem("messages is not one message of the user and one of the assistant", "write it so")
    return checked[0]["content"], checked[1]["content"]


ROW_CHECKS: dict[str, Callable[[Row], Problem | None]] = {
    "sst2": _check_sst2,
    "gsm8k": _check_gsm8k,
    "mmlu": _check_mmlu,
}
"""By task, what is wrong with a row, or None."""
