"""Reference preservation as one more objective (docs/concepts.md): KL to the reference on a stream of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from loralign.errors import DataError


class PreservationStream:
    """Batches of tokenised texts, the same for a given seed and batch number on every process count and resume.

    Args:
        texts: token ids of each text, at least two tokens long.
        batch_size: texts per process and batch.
        pad_token_id: right padding.
        multiple: lengths are padded to multiples of this, so that few shapes occur.
        seed: of the order.
    """

    def __init__(
        self, texts: Sequence[Sequence[int]], batch_size: int, pad_token_id: int, *, multiple: int = 32, seed: int = 0
    ) -> None:
        self.texts = [list(text) for text in texts if len(text) > 1]
        if not self.texts:
            raise DataError("the preservation texts are empty", fix="pass texts of at least two tokens")
        self.batch_size = batch_size
        self.pad_token_id = pad_token_id
        self.multiple = multiple
        self.seed = seed

    def batch(self, number: int, rank: int = 0, world: int = 1) -> dict[str, Tensor]:
        """Batch ``number`` of process ``rank``: ``input_ids`` and ``attention_mask``, each ``(batch, length)``."""
        rows = []
        for position in range(self.batch_size):
            index = (number * world + rank) * self.batch_size + position
            epoch, place = divmod(index, len(self.texts))
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            rows.append(self.texts[int(torch.randperm(len(self.texts), generator=generator)[place])])
        longest = max(map(len, rows))
        length = -(-longest // self.multiple) * self.multiple
        ids = torch.full((len(rows), length), self.pad_token_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, text in enumerate(rows):
            ids[row, : len(text)] = torch.tensor(text)
            mask[row, : len(text)] = 1
        return {"input_ids": ids, "attention_mask": mask}


def tokenise_texts(dataset: Any, tokenizer: Any, max_length: int | None) -> list[list[int]]:
    """Token ids of a data set with a ``messages`` or a ``text`` column, cut at ``max_length``."""
    texts = []
    for row in dataset:
        if "messages" in row:
            ids = tokenizer.apply_chat_template(row["messages"], return_dict=True)["input_ids"]
        else:
            ids = tokenizer(row["text"])["input_ids"]
        texts.append(list(ids[:max_length]))
    return texts


def preservation_loss(policy: Tensor, reference: Tensor, mask: Tensor, direction: str) -> Tensor:
    """KL divergence between next-token distributions, in nats, mean over tokens of each text, then over texts.

    Args:
        policy: logits ``(batch, length, vocabulary)``.
        reference: logits of the reference, the same shape, without gradient.
        mask: ``(batch, length)``; the prediction made at a position counts where the next position holds a token.
        direction: ``"policy_reference"`` for ``KL(π‖π_ref)``, ``"reference_policy"`` for ``KL(π_ref‖π)``.
    """
    log_policy = policy[:, :-1].float().log_softmax(dim=-1)
    log_reference = reference[:, :-1].float().log_softmax(dim=-1)
    first, second = (log_policy, log_reference) if direction == "policy_reference" else (log_reference, log_policy)
    per_token = (first.exp() * (first - second)).sum(dim=-1)
    counted = mask[:, 1:].to(per_token.dtype)
    per_text: Tensor = (per_token * counted).sum(dim=1) / counted.sum(dim=1).clamp_min(1)
    return per_text.mean()
