"""What a preference pair must be, row by row: texts or messages, not empty, chosen and rejected not the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from trl import extract_prompt

Format = Literal["conversational", "plain"]
Text = str | list[dict[str, str]]

ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})


@dataclass(frozen=True)
class Problem:
    """What is wrong with a row, and how to mend it."""

    text: str
    fix: str


@dataclass(frozen=True)
class Pair:
    """A preference pair in TRL's explicit-prompt form, each part a text or a list of messages."""

    prompt: Text
    chosen: Text
    rejected: Text

    @property
    def format(self) -> Format:
        """Conversational if the parts are messages, plain if they are texts."""
        return "plain" if isinstance(self.prompt, str) else "conversational"


def check_pair(row: dict[str, Any], *, explicit_prompt: bool, texts: bool = True) -> Pair | Problem:
    """Check one row and bring it into explicit-prompt form.

    Args:
        row: the raw row.
        explicit_prompt: whether its table has a ``prompt`` column. As in TRL, a plain prompt beside conversational
            completions is a copy of what they begin with, and is ignored.
        texts: whether emptiness and equality are checked too; the form always is.

    Returns:
        The pair, or the first problem found.
    """
    columns = ("prompt", "chosen", "rejected") if explicit_prompt else ("chosen", "rejected")
    parts: dict[str, Text] = {}
    for column in columns:
        part = check_text(row.get(column), column, texts=texts)
        if isinstance(part, Problem):
            return part
        parts[column] = part
    chosen, rejected = parts["chosen"], parts["rejected"]
    if isinstance(chosen, str) != isinstance(rejected, str):
        return Problem("one of chosen and rejected is text, the other messages", "write both the same way")
    if texts and _stripped(chosen) == _stripped(rejected):
        return Problem("chosen and rejected are identical", "remove the pair")
    prompt = parts.get("prompt")
    if prompt is None or (isinstance(prompt, str) and not isinstance(chosen, str)):
        return _extract(chosen, rejected, texts=texts)
    if isinstance(prompt, str) != isinstance(chosen, str):
        return Problem("prompt is messages, but chosen and rejected are text", "write all three the same way")
    return _complete(prompt, chosen, rejected)


def check_text(value: Any, column: str, *, texts: bool = True) -> Text | Problem:
    """Check that a value is text or a list of messages; the messages are reduced to role and content."""
    if value is None:
        return Problem(f"{column} is missing", f"give every row a {column}")
    if isinstance(value, str):
        if texts and not value.strip():
            return Problem(f"{column} is empty", "fill it or remove the row")
        return value if _is_unicode(value) else Problem(f"{column} holds half a surrogate pair", "repair the text")
    if isinstance(value, list):
        return check_messages(value, column, texts=texts)
    kind = type(value).__name__
    return Problem(f"{column} is {_shown(value)} ({kind}), not text or messages", "write it as text")


def check_messages(value: list[Any], column: str, *, texts: bool = True) -> list[dict[str, str]] | Problem:
    """Check a list of messages; keys other than role and content are left out."""
    if not value:
        return Problem(f"{column} is empty", "give it at least one message, or remove the row")
    messages = []
    for number, message in enumerate(value, start=1):
        where = f"message {number} of {column}"
        if not isinstance(message, dict):
            return Problem(f"{where} is {_shown(message)}, not a message", 'use {"role": …, "content": …}')
        for key in ("role", "content"):
            if message.get(key) is None:
                return Problem(f"{where} has no {key}", 'use {"role": …, "content": …}')
            if not isinstance(message[key], str):
                return Problem(f"{where} has a {key} that is not text: {_shown(message[key])}", "write it as text")
        if message["role"] not in ROLES:
            return Problem(f"{where} has the unknown role {message['role']!r}", f"use {', '.join(sorted(ROLES))}")
        if texts and not message["content"].strip():
            return Problem(f"{where} is empty", "fill it, or remove the message or the row")
        if not _is_unicode(message["content"]):
            return Problem(f"{where} holds half a surrogate pair", "repair the text")
        messages.append({"role": message["role"], "content": message["content"]})
    return messages


def _extract(chosen: Text, rejected: Text, *, texts: bool) -> Pair | Problem:
    # TRL's function reads past the start if nothing is shared, so that case is settled before it is called.
    if not chosen or not rejected or chosen[0] != rejected[0]:
        return Problem(
            "there is no prompt: chosen and rejected do not begin alike",
            "add a prompt column, or begin both with the prompt",
        )
    parts = extract_prompt({"chosen": chosen, "rejected": rejected})
    for column, part in parts.items():
        if texts and not _stripped(part):
            return Problem(f"{column} is empty once the shared prompt is taken off", "remove the pair")
    return _complete(parts["prompt"], parts["chosen"], parts["rejected"])


def _complete(prompt: Text, chosen: Text, rejected: Text) -> Pair | Problem:
    for column, completion in (("chosen", chosen), ("rejected", rejected)):
        if isinstance(completion, list) and completion and completion[0]["role"] not in ("assistant", "tool"):
            return Problem(
                f"{column} begins with a message of role {completion[0]['role']!r} instead of the assistant's answer",
                "leave the prompt out of chosen and rejected, or leave out the prompt column",
            )
    return Pair(prompt, chosen, rejected)


def _is_unicode(text: str) -> bool:
    """JSON can spell half of a surrogate pair, which no UTF-8 file or tokenizer can hold."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _stripped(text: Text) -> Any:
    if isinstance(text, str):
        return text.strip()
    return [(message["role"], message["content"].strip()) for message in text]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
