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
OWN_TOKENS = 96
_TOGETHER = 32
_AGAIN = "remove it, and it is drawn again"


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

    Each is 96 tokens drawn one after the other from the whole distribution, after the token that the tokenizer begins
    with (of a chat model that may be the one that opens a turn) and beyond any that ends a text. So the mean rise of
    their loss per token estimates KL(start‖now) / 96 of what the start would write there, which no training can make
    negative. Were a text to stop where it ends, short ones would weigh more than their tokens, and a model that learns
    to be brief would seem to gain. Token ids are kept, since decoded text may be tokenised otherwise.

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
                max_length=1 + OWN_TOKENS,
                max_new_tokens=OWN_TOKENS,
                pad_id=beginning.ids[0] if pad is None else pad,
                seed=seed,
                endless=True,
            )
            bar.update(len(rows))
    write_json(target, {"ids": [one.ids for one in drawn]})


def read_own_text(file: Path) -> list[Completion]:
    """Texts of :func:`write_own_text`, all of one length; all but their first token count.

    Raises:
        StateError: the file is damaged.
    """
    try:
        texts = json.loads(file.read_text(encoding="utf-8"))["ids"]
        found = [Completion([int(token) for token in ids], 1, row=row) for row, ids in enumerate(texts)]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StateError(f"cannot be read: {error}", place=str(file), fix=_AGAIN) from error
    if not found or {len(one.ids) for one in found} != {1 + OWN_TOKENS}:
        raise StateError(f"does not hold texts of {1 + OWN_TOKENS} tokens", place=str(file), fix=_AGAIN)
    return found


def _beginning(tokenizer: Any, name: str) -> int:
    """The token before a text: the one that begins it, or that which ends the one before."""
    for found in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if found is not None:
            return int(found)
    raise ModelError(
        "the tokenizer has no token that a text begins or ends with", place=name, fix="name files of text instead"
    )
