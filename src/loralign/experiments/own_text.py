"""Text that a start writes itself, for forgetting where nothing else is known to be its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from loralign.data.completions import Completion
from loralign.errors import ModelError, StateError
from loralign.files import write_json
from loralign.guard.modes import evaluating
from loralign.guard.responses import sample_responses
from loralign.models.dtype import DtypeName
from loralign.runs.opening import open_local

OWN = "own"
"""In place of a file: what the start of each run samples."""
_TOKENS = 96
_TOGETHER = 32


def write_own_text(
    target: Path,
    samples: int,
    model: str | None,
    adapter: str | None = None,
    *,
    revision: str | None = None,
    dtype: DtypeName = "auto",
    seed: int = 0,
) -> None:
    """Sample texts from a model, which nobody knows better, and keep their token ids as JSON, whole or not at all.

    Each begins where a document does, is drawn from the whole distribution and ends with an end-of-text token or after
    96 tokens. So the mean over texts of the rise of their summed loss estimates KL(start‖now) of unconditional text,
    which no training can make negative; token ids are kept, since decoded text may be tokenised otherwise.

    Args:
        target: the file.
        samples: how many.
        model: as :func:`~loralign.runs.opening.open_local` takes it.
        adapter: on top of it.
        revision: of a model on the hub.
        dtype: of its weights.
        seed: of the draws, each of which has a stream of its own.

    Raises:
        ModelError: the tokenizer knows no token that a text begins or ends with.
        LoralignError: the model cannot be loaded.
    """
    local = open_local(model, adapter, dtype, revision)
    beginning = Completion([_beginning(local.tokenizer, model or "the default model")], 1)
    pad, drawn = local.tokenizer.pad_token_id, []
    with (
        evaluating(local.model),
        tqdm(total=samples, desc="sampling text", unit="text") as bar,
    ):
        for first in range(0, samples, _TOGETHER):
            rows = range(first, min(first + _TOGETHER, samples))
            drawn += sample_responses(
                local.model,
                [beginning] * len(rows),
                rows,
                max_length=1 + _TOKENS,
                max_new_tokens=_TOKENS,
                pad_id=beginning.ids[0] if pad is None else pad,
                seed=seed,
            )
            bar.update(len(rows))
    write_json(target, {"ids": [one.ids for one in drawn]})


def read_own_text(file: Path) -> list[Completion]:
    """Texts of :func:`write_own_text`; all but their first token count.

    Raises:
        StateError: the file is damaged.
    """
    try:
        texts = json.loads(file.read_text(encoding="utf-8"))["ids"]
        return [Completion([int(token) for token in ids], 1, row=row) for row, ids in enumerate(texts)]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StateError(f"cannot be read: {error}", place=str(file), fix="remove it, and it is drawn again") from error


def _beginning(tokenizer: Any, name: str) -> int:
    """The token before a text: the one that begins it, or that which ends the one before."""
    for found in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if found is not None:
            return int(found)
    raise ModelError(
        "the tokenizer has no token that a text begins or ends with", place=name, fix="name files of text instead"
    )
