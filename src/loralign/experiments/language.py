"""What an adapter has forgotten of text that its start knew: the loss on single samples, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pyarrow import ArrowException

from loralign.data import tokenise_completions
from loralign.data.completions import Completion
from loralign.errors import DataError, StateError
from loralign.evaluation import completion_losses
from loralign.evaluation.parquet import write_columns
from loralign.models import inspect_adapter
from loralign.models.dtype import DtypeName
from loralign.runs.guarding import load_tasks
from loralign.runs.opening import open_local

COLUMNS = ("before", "after", "parameters")
"""Of the table of single samples: loss of the start and of the adapted model, nats per token, and the number of
parameters of the base, the same in every row."""


@dataclass(frozen=True)
class LanguageLosses:
    """Losses on text.

    Attributes:
        before: of the start, nats per token, a sample each.
        after: of the adapted model, likewise.
        parameters: of the base, embeddings included.
    """

    before: tuple[float, ...]
    after: tuple[float, ...]
    parameters: int


def language_rows(sources: Sequence[str], samples: int) -> Any:
    """The first rows of text, or of conversations whose responses are the text.

    Args:
        sources: as :func:`~loralign.data.load_task` takes them; of a directory the validation split.
        samples: most of all of them together.

    Raises:
        DataError: any fault of the data.
    """
    rows = load_tasks(list(sources), "validation")
    return rows.select(range(min(len(rows), samples)))


def score_language(
    adapter: Path, rows: Any, target: Path, *, max_length: int | None = None, dtype: DtypeName | None = None
) -> None:
    """Measure an adapter against its base, which the disabled adapter is, and write the table.

    Of rows of ``text`` the tokens of the text alone count. In training such a row is closed by the end-of-text token,
    but that a passage ends where it was cut says nothing of what was known of it, while fine-tuning on short answers
    changes the odds of that one token more than those of all others.

    Args:
        adapter: a PEFT LoRA directory that names its base.
        rows: of :func:`language_rows`, or texts as token ids, which are taken as they are.
        target: the Parquet file, whole or not at all.
        max_length: tokens of a sample, beyond which it is cut off.
        dtype: of the base weights; by default their own.

    Raises:
        LoralignError: any fault of adapter, base or data.
    """
    opened = open_local(None, adapter, dtype or "auto")
    model = opened.model
    if isinstance(rows, list):
        completions = _lasting([replace(one, ids=one.ids[:max_length]) for one in rows])
    else:
        completions = _as_written(rows, tokenise_completions(rows, opened.tokenizer, max_length), opened.tokenizer)
    pad = opened.tokenizer.pad_token_id
    with model.disable_adapter():
        before = completion_losses(model, completions, pad_id=pad)
    after = completion_losses(model, completions, pad_id=pad)
    # PEFT counts what quantised weights stand for, not the bytes that they are packed into.
    parameters = model.get_nb_trainable_parameters()[1] - inspect_adapter(adapter).parameters
    columns = (before.tolist(), after.tolist(), [float(parameters)] * len(completions))
    write_columns(target, dict(zip(COLUMNS, columns, strict=True)))


def _as_written(rows: Any, completions: Sequence[Completion], tokenizer: Any) -> list[Completion]:
    """Without the end-of-text token that texts are closed by, unless it stands in the text itself."""
    end, found = tokenizer.eos_token, list[Completion]()
    for one in completions:
        text = rows[one.row].get("text")
        added = isinstance(text, str) and not text.endswith(end) and one.ids[-1] == tokenizer.eos_token_id
        found.append(replace(one, ids=one.ids[:-1]) if added else one)
    return _lasting(found)


def _lasting(completions: Sequence[Completion]) -> list[Completion]:
    """Those with something to predict.

    Raises:
        DataError: there are none.
    """
    found = [one for one in completions if one.response_length > 0]
    if not found:
        raise DataError(
            "no text has a second token, which the first could predict", fix="give longer text, or raise --max_length"
        )
    return found


def read_language(file: Path) -> LanguageLosses:
    """Read the table of :func:`score_language`.

    Raises:
        StateError: it is damaged.
    """
    try:
        columns = pq.read_table(file, columns=list(COLUMNS)).to_pydict()
        before, after, parameters = (columns[name] for name in COLUMNS)
        return LanguageLosses(tuple(before), tuple(after), int(parameters[0]))
    except (ArrowException, OSError, KeyError, IndexError, TypeError) as error:
        raise StateError(
            f"cannot be read: {error}", place=str(file), fix="remove its directory to measure it again"
        ) from error
