"""Prompts that occur more than once, within a data set or in two of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from loralign.data.checks import Problem, Text
from loralign.errors import DataError

logger = logging.getLogger(__name__)


def overlap(first: Iterable[Mapping[str, Any]], second: Iterable[Mapping[str, Any]]) -> int:
    """How many different prompts occur in both of two data sets.

    White space, case and system messages do not count. A row's prompt is its ``prompt``, or its ``messages`` without
    the response at the end, or its ``text``.

    Args:
        first: rows, such as a ``datasets.Dataset``.
        second: likewise.

    Raises:
        DataError: a row has none of these columns.
    """
    return len({prompt_key(_prompt_of(row)) for row in first} & {prompt_key(_prompt_of(row)) for row in second})


def prompt_key(prompt: Text) -> str:
    """A prompt's text without what makes no difference to a reader: white space, case, and system messages."""
    if isinstance(prompt, str):
        return " ".join(prompt.split()).casefold()
    spoken = (message for message in prompt if message.get("role") not in ("system", "developer"))
    # Rows that no reader of this library has checked may have content that is empty or made of parts.
    return " ".join(" ".join(str(message.get("content") or "") for message in spoken).split()).casefold()


def without_response(messages: Any) -> Any:
    """A conversation without the assistant's turn at its end, if it has one and more; anything else as it is."""
    if isinstance(messages, list) and len(messages) > 1 and isinstance(messages[-1], dict):
        return messages[:-1] if messages[-1].get("role") == "assistant" else messages
    return messages


class SeenRows:
    """The rows so far: which label each prompt has, and which prompts came with the same response before."""

    def __init__(self) -> None:
        self._labels: dict[str, tuple[str, str]] = {}
        self._places: dict[tuple[str, str], str] = {}
        self._repeated: list[tuple[str, str]] = []

    def add(self, row: dict[str, Any], place: str) -> Problem | None:
        """Note a row with prompt, label and perhaps completion; a problem if its prompt had another label before."""
        prompt = prompt_key(row["prompt"])
        label, where = self._labels.setdefault(prompt, (row["label"], place))
        if label != row["label"]:
            return Problem(f"this prompt is {row['label']}, but at {where} it is {label}", "give it one label")
        whole = (prompt, prompt_key(row.get("completion", "")))
        before = self._places.setdefault(whole, place)
        if before != place:
            self._repeated.append((place, before))
        return None

    def report(self) -> None:
        """Say in the log how many rows occurred before."""
        if self._repeated:
            place, before = self._repeated[0]
            logger.warning("%d rows occur more than once: %s is the same as %s", len(self._repeated), place, before)


def _prompt_of(row: Mapping[str, Any]) -> Text:
    prompt: Text | None = row.get("prompt")
    if prompt is None:
        prompt = without_response(row.get("messages"))
    if prompt is None:
        prompt = row.get("text")
    if prompt is None:
        has = ", ".join(row) or "none"
        raise DataError(f"no column of prompts among: {has}", place="overlap", fix="name it prompt, messages or text")
    return prompt
