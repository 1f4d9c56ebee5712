"""Texts and conversations as token ids, the way TRL's trainers make them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from loralign.errors import DataError, ModelError


def encode(text: str, tokenizer: Any) -> list[int]:
    """Token ids of a text as it is."""
    return list(tokenizer(text=text)["input_ids"])


def closed(text: str, tokenizer: Any) -> str:
    """A response with the end-of-text token behind it, unless it is there already.

    Raises:
        ModelError: the tokenizer has no such token.
    """
    end: str | None = tokenizer.eos_token
    if end is None:
        raise ModelError(
            "the tokenizer has no end-of-text token, which closes every response that is text",
            place=str(tokenizer.name_or_path) or "tokenizer",
            fix="set tokenizer.eos_token, or write the data as messages",
        )
    return text if text.endswith(end) else text + end


def render(messages: list[dict[str, Any]], tokenizer: Any, **options: Any) -> list[int]:
    """Token ids of a conversation through the tokenizer's chat template.

    Args:
        messages: of role and content.
        tokenizer: with a chat template.
        **options: of ``apply_chat_template``.

    Raises:
        ModelError: there is no chat template.
        DataError: the template refuses the conversation.
    """
    if tokenizer.chat_template is None and options.get("chat_template") is None:
        raise ModelError(
            "the tokenizer has no chat template, which data written as messages need",
            place=str(tokenizer.name_or_path) or "tokenizer",
            fix="use an instruction-tuned model, set tokenizer.chat_template, or write the data as text",
        )
    try:
        rendered = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **options)
    except Exception as error:
        # A template is a program of the model's author: it may raise anything for roles it does not know.
        raise DataError(
            f"the chat template refuses the roles {[message['role'] for message in messages]}: {error}",
            fix="use the roles that the model's template knows",
        ) from error
    return list(rendered["input_ids"])


def template_options(example: Mapping[str, Any]) -> dict[str, Any]:
    """What a row says of its own rendering: its tools, and further arguments of the template."""
    tools = example.get("tools")
    return {
        "tools": json.loads(tools) if isinstance(tools, str) else tools,
        **(example.get("chat_template_kwargs") or {}),
    }
