"""Prompts with their responses as token ids, and batches of them with labels on the response alone."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from trl.data_utils import common_prefix_length, is_conversational

from loralign.data.batching import pad_sequences, padded_length
from loralign.data.rendering import closed, encode, render, template_options
from loralign.errors import DataError

logger = logging.getLogger(__name__)

IGNORED = -100
"""The label of a token that no loss is taken on, as in PyTorch and transformers."""


@dataclass(frozen=True)
class Completion:
    """Token ids of a prompt and the response to it.

    Args:
        ids: of prompt and response together.
        prompt_length: how many of them are the prompt's; those from there on are the response.
        label: the row's label, or empty.
        row: the row's index in the data it came from.
    """

    ids: list[int]
    prompt_length: int
    label: str = ""
    row: int = 0

    @property
    def response_length(self) -> int:
        """Response tokens that have a token before them, by which they can be predicted."""
        return len(self.ids) - max(self.prompt_length, 1)


def openings(completions: Iterable[Completion], tokens: int | None) -> list[Completion]:
    """Completions cut after the first tokens of their responses, where a refusal and an answer part ways.

    Args:
        completions: with prompts of any length.
        tokens: response tokens to keep; ``None`` keeps all.

    Raises:
        DataError: fewer than one token is asked for.
    """
    if tokens is None:
        return list(completions)
    if tokens < 1:
        raise DataError(f"{tokens} response tokens", place="openings", fix="keep at least one, or None for all")
    return [replace(one, ids=one.ids[: max(one.prompt_length, 1) + tokens]) for one in completions]


@dataclass(frozen=True)
class CompletionBatch:
    """Completions padded on the right to one length.

    Args:
        input_ids: ``(rows, length)`` int64.
        attention_mask: ``(rows, length)`` int64, 1 on tokens and 0 on padding.
        labels: ``(rows, length)`` int64, the token itself where it belongs to a response and -100 elsewhere; not
            shifted, as transformers' models expect it. The first token of a sequence is predicted by nothing and
            never labelled.
        rows: which of the completions given to :func:`completion_batches` each row is, counted from 0.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    rows: list[int]

    def to(self, device: torch.device | str) -> CompletionBatch:
        """The same batch on ``device``."""
        return CompletionBatch(
            self.input_ids.to(device), self.attention_mask.to(device), self.labels.to(device), self.rows
        )


def tokenise_completions(
    dataset: Iterable[Mapping[str, Any]], tokenizer: Any, max_length: int | None = None
) -> list[Completion]:
    """Tokenise prompts with responses as TRL's ``SFTTrainer`` does.

    Messages are rendered by the chat template, the prompt with the generation prompt; texts are taken as they are and
    closed by the end-of-text token. The response starts where the tokens of the prompt and of prompt and response
    part ways. Rows of ``text`` are responses without a prompt.

    Args:
        dataset: rows with ``prompt`` and ``completion`` (both text, or both messages), or with ``text``; a ``label`` if
            it is text, and ``tools`` and ``chat_template_kwargs`` for the template.
        tokenizer: of the model that will see the ids.
        max_length: tokens beyond this many are cut off. A row that has no response token left is dropped, and the log
            says how many are.

    Raises:
        DataError: the data has no rows, lacks a column, has no response token within ``max_length``, or has roles that
            the chat template refuses.
        ModelError: the tokenizer has no chat template for messages, or no end-of-text token for texts.
    """
    if max_length is not None and max_length < 1:
        raise DataError(f"a limit of {max_length} tokens", place="max_length", fix="use a positive number")
    kept: list[Completion] = []
    count = diverging = 0
    for row, example in enumerate(dataset):
        count += 1
        prompt, whole = _sequences(example, tokenizer)
        start = common_prefix_length(prompt, whole)
        diverging += start < len(prompt)
        label = example.get("label")
        completion = Completion(whole[:max_length], start, label if isinstance(label, str) else "", row)
        if completion.response_length > 0:
            kept.append(completion)
    if not count:
        raise DataError("there are no rows", place="completions", fix="name data that has some")
    if not kept:
        limit = "" if max_length is None else f" within max_length {max_length}"
        raise DataError(
            f"none of {count} rows has a response token{limit}",
            place="completions",
            fix="raise max_length, or shorten the prompts",
        )
    if len(kept) < count:
        logger.warning(
            "%d of %d rows have no response token within max_length and are dropped", count - len(kept), count
        )
    if diverging:
        logger.warning(
            "In %d of %d rows the tokens of the prompt alone are not the start of prompt + response; "
            "there the response begins where they diverge.",
            diverging,
            count,
        )
    return kept


def completion_batches(
    completions: Sequence[Completion], batch_size: int, pad_id: int, limit: int | None = None
) -> list[CompletionBatch]:
    """Batches of completions of similar length, the longest first, so that one that is too big shows at once.

    Args:
        completions: every one of them is in exactly one batch.
        batch_size: rows of a batch; only the last may have fewer.
        pad_id: the token to pad with.
        limit: most positions that the model knows; padding does not go beyond it.

    Raises:
        DataError: ``batch_size`` is not positive.
    """
    if batch_size < 1:
        raise DataError(f"a batch of {batch_size} rows", place="batch_size", fix="use a positive number")
    order = sorted(range(len(completions)), key=lambda index: -len(completions[index].ids))
    return [
        _batch(completions, order[start : start + batch_size], pad_id, limit)
        for start in range(0, len(order), batch_size)
    ]


def _batch(completions: Sequence[Completion], rows: list[int], pad_id: int, limit: int | None) -> CompletionBatch:
    members = [completions[row] for row in rows]
    length = padded_length(max(1, *(len(member.ids) for member in members)), limit)
    input_ids, attention_mask = pad_sequences([member.ids for member in members], length, pad_id=pad_id)
    labels = input_ids.masked_fill(attention_mask == 0, IGNORED)
    for index, member in enumerate(members):
        labels[index, : max(member.prompt_length, 1)] = IGNORED
    return CompletionBatch(input_ids, attention_mask, labels, rows)


def _sequences(example: Mapping[str, Any], tokenizer: Any) -> tuple[list[int], list[int]]:
    """Token ids of the prompt, and of prompt and response."""
    prompt, completion = example.get("prompt"), example.get("completion")
    if prompt is None and completion is None and example.get("text") is not None:
        return [], encode(closed(example["text"], tokenizer), tokenizer)
    if prompt is None or completion is None:
        missing = "prompt" if prompt is None else "completion"
        raise DataError(
            f"a row has no {missing}, only {', '.join(example) or 'nothing'}",
            place="completions",
            fix="give every row prompt and completion, or text",
        )
    if is_conversational({"prompt": prompt}):
        options = template_options(example)
        return (
            render(prompt, tokenizer, add_generation_prompt=True, **options),
            render(prompt + completion, tokenizer, **options),
        )
    return encode(prompt, tokenizer), encode(prompt + closed(completion, tokenizer), tokenizer)
