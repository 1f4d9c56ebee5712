"""Batches of similar length, padded to a few fixed shapes.

Matrix libraries prepare a kernel for every new shape they meet, so ever-changing shapes cost more than some padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch


def padded_length(length: int, limit: int | None = None, step: int = 32) -> int:
    """Smallest allowed length that holds ``length`` tokens.

    Allowed are the multiples of ``step`` up to 128 and above that 2ᵏ and 1.5·2ᵏ, so that no sequence grows by more than
    half and, with steps of 32, all lengths up to 4096 need 14 shapes.

    Args:
        length: number of tokens, at least 1.
        limit: most positions that the model knows; the result stays below it unless ``length`` itself does not.
        step: a divisor of 128; a small one where most sequences are short and padding would be most of the work.
    """
    if length <= 128:
        padded = -(-length // step) * step
    else:
        power = 1 << (length - 1).bit_length()
        padded = power * 3 // 4 if length <= power * 3 // 4 else power
    return padded if limit is None else max(length, min(padded, limit))


def plan_batches(
    lengths: Sequence[int], batch_tokens: int, limit: int | None = None, step: int = 32
) -> Iterator[tuple[npt.NDArray[np.int64], int]]:
    """Group sequences of similar length, the longest first, so that a batch that does not fit in memory shows at once.

    Args:
        lengths: tokens of each sequence.
        batch_tokens: most tokens of one batch, padding included; a single longer sequence is a batch of its own.
        limit: most positions that the model knows.
        step: of short lengths, see :func:`padded_length`.

    Yields:
        The indices of a batch's sequences and the length to pad them to. Every index comes exactly once, and all
        batches of one length but the last of all hold the same number of sequences.
    """
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    start = 0
    while start < len(order):
        length = padded_length(lengths[order[start]], limit, step)
        count = max(1, batch_tokens // length)
        yield order[start : start + count], length
        start += count


def pad_sequences(
    sequences: Sequence[Sequence[int]], length: int, side: Literal["left", "right"] = "right", pad_id: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids ``(batch, length)`` and attention mask ``(batch, length)``, both int64, padded on ``side``."""
    ids = torch.full((len(sequences), length), pad_id, dtype=torch.long)
    mask = torch.zeros((len(sequences), length), dtype=torch.long)
    for index, sequence in enumerate(sequences):
        place = slice(0, len(sequence)) if side == "right" else slice(length - len(sequence), length)
        ids[index, place] = torch.tensor(sequence, dtype=torch.long)
        mask[index, place] = 1
    return ids, mask


@dataclass(frozen=True)
class Batch:
    """Padded sequences and the positions whose next token is to be scored.

    Args:
        input_ids: ``(batch, length)`` int64, padded on the right.
        attention_mask: ``(batch, length)`` int64.
        sequence: ``(rows,)`` which sequence of the batch a row belongs to.
        position: ``(rows,)`` the position whose hidden state predicts the label.
        labels: ``(rows,)`` the token to be predicted.
        count: how many rows are real; those after them repeat the last, to keep the number of rows a fixed multiple.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    sequence: torch.Tensor
    position: torch.Tensor
    labels: torch.Tensor
    count: int

    def to(self, device: torch.device) -> Batch:
        """The same batch on ``device``."""
        return Batch(
            self.input_ids.to(device),
            self.attention_mask.to(device),
            self.sequence.to(device),
            self.position.to(device),
            self.labels.to(device),
            self.count,
        )


def make_batch(sequences: Sequence[Sequence[int]], prompts: Sequence[int], length: int, row_multiple: int) -> Batch:
    """Pad ``sequences`` to ``length`` and list the rows that predict a response token.

    Args:
        sequences: token ids of prompt + response.
        prompts: tokens of each prompt. The very first token of a sequence is predicted by nothing and never scored.
        length: length to pad to.
        row_multiple: the number of rows is filled up to a multiple of it.
    """
    input_ids, attention_mask = pad_sequences(sequences, length)
    scored = attention_mask.bool()
    for index, prompt in enumerate(prompts):
        scored[index, : max(prompt, 1)] = False
    sequence, target = scored.nonzero(as_tuple=True)
    labels = input_ids[sequence, target]
    count = len(labels)
    filling = torch.arange(-(-count // row_multiple) * row_multiple).clamp(max=max(count - 1, 0))
    return Batch(input_ids, attention_mask, sequence[filling], target[filling] - 1, labels[filling], count)
