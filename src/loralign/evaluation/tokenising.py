"""Turning preference pairs into token ids exactly as TRL's ``DPOTrainer`` does."""

from __future__ import annotations

import logging
from typing import Any

from datasets import Dataset, Features, Sequence, Value
from transformers import PreTrainedTokenizerBase
from trl.data_utils import common_prefix_length, is_conversational

from loralign.data.rendering import closed, encode, render, template_options
from loralign.errors import DataError

logger = logging.getLogger(__name__)

_COLUMNS = ("prompt", "chosen", "rejected", "objective")
_FEATURES = Features(
    {
        "row": Value("int64"),
        "prompt_ids": Sequence(Value("int64")),
        "chosen_ids": Sequence(Value("int64")),
        "rejected_ids": Sequence(Value("int64")),
        "truncated": Value("bool"),
        "objective": Value("string"),
    }
)


def tokenise_pairs(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None) -> Dataset:
    """Tokenise explicit-prompt preference pairs, conversational or plain, as TRL's ``DPOTrainer`` does.

    The prompt is rendered with the generation prompt (conversational) or taken as it is (plain, where the end-of-text
    token closes both responses); the responses start where the tokens of prompt and prompt + response diverge.

    Args:
        dataset: columns ``prompt``, ``chosen``, ``rejected`` and ``objective`` (text).
        tokenizer: of the model that will score the pairs; conversational data need its chat template.
        max_length: longest prompt + response in tokens. What lies beyond is cut off at the end, and a pair whose
            prompt leaves no room for a response is left out, as in TRL; ``len(dataset) - len(result)`` counts those.

    Returns:
        A dataset with ``row`` (the pair's index in ``dataset``), ``prompt_ids``, ``chosen_ids``, ``rejected_ids``,
        ``truncated`` (whether a response lost tokens) and ``objective``.

    Raises:
        DataError: a column is missing, or no pair is left within ``max_length``.
        ModelError: the tokenizer has no chat template for conversational data or no end-of-text token for plain data.
    """
    missing = [column for column in _COLUMNS if column not in dataset.column_names]
    if missing:
        raise DataError(
            f"the pairs have no column {', '.join(missing)}",
            place="preference pairs",
            fix="give prompt, chosen, rejected and objective",
        )
    columns: dict[str, list[Any]] = {name: [] for name in _FEATURES}
    diverging = 0
    for row, example in enumerate(dataset):
        prompt, chosen, rejected = _sequences(example, tokenizer)
        start = min(common_prefix_length(prompt, chosen), common_prefix_length(prompt, rejected))
        diverging += start < len(prompt)
        if max_length is not None and start >= max_length:
            continue
        longest = max(len(chosen), len(rejected))
        values = (
            row,
            prompt[:start],
            chosen[start:max_length],
            rejected[start:max_length],
            max_length is not None and longest > max_length,
            example["objective"],
        )
        for name, value in zip(_FEATURES, values, strict=True):
            columns[name].append(value)
    if diverging:
        logger.warning(
            "In %d of %d pairs the tokens of the prompt alone are not the start of prompt + response; "
            "there the response is scored from where they diverge.",
            diverging,
            len(dataset),
        )
    if not columns["row"]:
        raise DataError(
            f"no preference pair has a prompt shorter than max_length {max_length}",
            place="preference pairs",
            fix="raise max_length or shorten the prompts",
        )
    return Dataset.from_dict(columns, features=_FEATURES)


def _sequences(example: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int], list[int]]:
    """Token ids of the prompt, of prompt + chosen and of prompt + rejected."""
    if is_conversational(example):
        options = template_options(example)
        return (
            prompt_ids(example["prompt"], tokenizer, **options),
            render(example["prompt"] + example["chosen"], tokenizer, **options),
            render(example["prompt"] + example["rejected"], tokenizer, **options),
        )
    prompt = example["prompt"]
    chosen, rejected = (closed(text, tokenizer) for text in (example["chosen"], example["rejected"]))
    return (
        prompt_ids(prompt, tokenizer),
        prompt_ids(prompt + chosen, tokenizer),
        prompt_ids(prompt + rejected, tokenizer),
    )


def prompt_ids(
    prompt: str | list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, **template_options: Any
) -> list[int]:
    """Token ids of one prompt: plain text as it is, messages through the chat template with the generation prompt.

    Raises:
        ModelError: the prompt is a list of messages and the tokenizer has no chat template.
    """
    if isinstance(prompt, str):
        return encode(prompt, tokenizer)
    return render(prompt, tokenizer, add_generation_prompt=True, **template_options)
