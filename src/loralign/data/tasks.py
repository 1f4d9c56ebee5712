"""Task data for supervised fine-tuning, brought into the form that TRL's ``SFTTrainer`` trains on responses only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import datasets

from loralign.data import responses
from loralign.data.builtin import is_builtin
from loralign.data.builtin_task import builtin_task
from loralign.data.checks import Problem, check_text
from loralign.data.responses import Exchange, exchange_reader, read_pair
from loralign.data.sources import parse_sources, read_tables
from loralign.data.tables import Faults, RawTable
from loralign.errors import DataError

_WANTED = (*responses.COLUMNS, "instruction", "input", "output", "text")
_FIX = "name the columns messages, prompt and completion, instruction and output, or text"

_Row = dict[str, Any]


def load_task(source: str, split: str = "train", limit: int | None = None, *, revision: str | None = None) -> Any:
    """Load the rows of a task.

    Rows have one of these forms, looked for in this order: ``prompt`` and ``completion`` (or ``response``), each text
    or messages; ``messages``, of which the last turn is the response; ``instruction``, ``output`` and perhaps
    ``input``; or ``text``. All but the last become a conversation, so that a model needs a chat template and the loss
    is that of the response alone; ``text`` is trained on whole.

    Args:
        source: a file (.jsonl, .json, .csv, .parquet), a pattern of files, a directory of a dataset, a hub name, or
            ``builtin``: orders to write down as JSON, for demonstrations.
        split: which split of a directory or a hub dataset; a file is one split and is read whole, and so is a
            directory that ``save_to_disk`` wrote without splits.
        limit: take the first so many rows and look at no others.
        revision: revision of a hub dataset.

    Returns:
        A ``datasets.Dataset`` with ``prompt`` and ``completion`` (messages), or with ``text``: TRL's prompt-completion
        and language-modelling formats.

    Raises:
        DataError: names the first bad row and its file, says how many are bad, and what to do; or ``limit`` is not
            positive.
    """
    if limit is not None and limit < 1:
        raise DataError(f"a limit of {limit} rows", place="limit", fix="use a positive number")
    (parsed,) = parse_sources(source)
    if parsed.objective is not None:
        raise DataError("task data serves no objective", place=source, fix=f"write {parsed.location}")
    if is_builtin(parsed.location):
        rows = builtin_task(parsed.location.partition(":")[2] or split)[:limit]
        return datasets.Dataset.from_list(rows, features=_features(rows[0]))
    faults, rows, first = Faults(), list[_Row](), ""
    for table in read_tables(parsed, wanted=_WANTED, split=split, revision=revision):
        read = _reader(table)
        for index in range(min(len(table.rows), len(table.rows) if limit is None else limit - len(rows))):
            place, row = table.place(index), read(table.rows[index])
            if isinstance(row, Problem):
                faults.add(place, row.text, row.fix)
                continue
            first = first or place
            if rows and row.keys() != rows[0].keys():
                kinds = ("text", "a prompt with its response")
                here, there = kinds if "text" in row else reversed(kinds)
                faults.add(place, f"this row is {here}, but {first} is {there}", "write all alike")
                continue
            rows.append(row)
    faults.raise_if_any()
    return datasets.Dataset.from_list(rows, features=_features(rows[0]))


def _reader(table: RawTable) -> Callable[[_Row], _Row | Problem]:
    columns = table.columns
    explicit = "prompt" in columns and ("completion" in columns or "response" in columns)
    if not explicit and "messages" not in columns:
        if "instruction" in columns and "output" in columns:
            return lambda row: _parts(_read_instruction(row))
        if "text" in columns:
            return _read_text
    read = exchange_reader(table, fix=_FIX)
    return lambda row: _parts(read(row))


def _parts(found: Exchange | Problem) -> _Row | Problem:
    return found if isinstance(found, Problem) else {"prompt": found.prompt, "completion": found.completion}


def _read_instruction(row: _Row) -> Exchange | Problem:
    """Instruction and input make one message, with an empty line between them."""
    instruction, context = row.get("instruction"), row.get("input")
    for column, value in (("instruction", instruction), ("input", context), ("output", row.get("output"))):
        if value is not None and not isinstance(value, str):
            return Problem(f"{column} is {type(value).__name__}, not text", "write it as text")
    checked = check_text(instruction, "instruction")
    if isinstance(checked, Problem):
        return checked
    return read_pair(f"{checked}\n\n{context}" if context and context.strip() else checked, row.get("output"), "output")


def _read_text(row: _Row) -> _Row | Problem:
    text = row.get("text")
    if text is not None and not isinstance(text, str):
        return Problem(f"text is {type(text).__name__}, not text", "put messages into a column named messages")
    checked = check_text(text, "text")
    return checked if isinstance(checked, Problem) else {"text": checked}


def _features(row: _Row) -> Any:
    text = datasets.Value("string")
    messages = datasets.List({"role": text, "content": text})
    return datasets.Features({column: text if column == "text" else messages for column in row})
