"""What an adapter has forgotten of text that its start knew: the loss on single samples, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pyarrow import ArrowException

from loralign.data import tokenise_completions
from loralign.data.completions import Completion
from loralign.errors import StateError
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

    Args:
        adapter: a PEFT LoRA directory that names its base.
        rows: of :func:`language_rows`.
        target: the Parquet file, whole or not at all.
        max_length: tokens of a sample, beyond which it is cut off.
        dtype: of the base weights; by default their own.

    Raises:
        LoralignError: any fault of adapter, base or data.
    """
    opened = open_local(None, adapter, dtype or "auto")
    model = opened.model
    completions: list[Completion] = tokenise_completions(rows, opened.tokenizer, max_length)
    pad = opened.tokenizer.pad_token_id
    with model.disable_adapter():
        before = completion_losses(model, completions, pad_id=pad)
    after = completion_losses(model, completions, pad_id=pad)
    # PEFT counts what quantised weights stand for, not the bytes that they are packed into.
    parameters = model.get_nb_trainable_parameters()[1] - inspect_adapter(adapter).parameters
    columns = (before.tolist(), after.tolist(), [float(parameters)] * len(completions))
    write_columns(target, dict(zip(COLUMNS, columns, strict=True)))


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
