"""A row as a prompt and the response to it, in whichever of the usual forms its table is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from loralign.data.checks import Problem, Text, check_messages, check_text
from loralign.data.tables import RawTable, require_columns

Messages = list[dict[str, str]]

COLUMNS = ("prompt", "completion", "response", "messages")
"""The columns in which a prompt and its response may stand."""

_ASKING = ("user", "tool")
_ANSWERING = ("assistant", "tool")


@dataclass(frozen=True)
class Exchange:
    """A prompt and the response to it, both as messages with role and content."""

    prompt: Messages
    completion: Messages


Reader = Callable[[dict[str, Any]], Exchange | Problem]
"""Makes an exchange of a raw row, or says what is wrong with it."""


def exchange_reader(table: RawTable, *, fix: str) -> Reader:
    """How the rows of a table become exchanges.

    With a column ``completion`` or ``response``, prompt and response stand in columns of their own, each as text or
    messages. Otherwise ``messages`` holds both: its last turn is the response, the turns before are the prompt.

    Raises:
        DataError: the table has neither form.
    """
    named = next((name for name in ("completion", "response") if name in table.columns), None)
    if named is None and "messages" in table.columns:
        return lambda row: read_conversation(row.get("messages"))
    column = named or "completion"
    require_columns(table, ("prompt", column), fix=fix)
    return lambda row: read_pair(row.get("prompt"), row.get(column), column)


def read_pair(prompt: Any, response: Any, column: str) -> Exchange | Problem:
    """An exchange from two cells, the second of the named column; a text is one message of its usual speaker."""
    asked = read_prompt(prompt)
    if isinstance(asked, Problem):
        return asked
    checked = check_text(response, column)
    if isinstance(checked, Problem):
        return checked
    answered = _as_messages(checked, "assistant")
    if any(message["role"] not in _ANSWERING for message in answered) or answered[-1]["role"] != "assistant":
        return Problem(
            f"{column} is not the assistant's answer: its roles are {_roles(answered)}",
            "leave the turns of others to the prompt",
        )
    return Exchange(asked, answered)


def read_prompt(value: Any, column: str = "prompt") -> Messages | Problem:
    """A prompt from one cell, as messages that wait for the assistant's answer."""
    checked = check_text(value, column)
    if isinstance(checked, Problem):
        return checked
    messages = _as_messages(checked, "user")
    if messages[-1]["role"] not in _ASKING:
        return Problem(
            f"{column} ends with a message of role {messages[-1]['role']!r} instead of the user's",
            "end it with what is to be answered",
        )
    return messages


def read_conversation(value: Any) -> Exchange | Problem:
    """An exchange from a whole conversation, of which the last turn is the response."""
    if value is not None and not isinstance(value, list):
        return Problem(f"messages is {type(value).__name__}, not a list of messages", "write role and content")
    if value is None:
        return Problem("messages is missing", "give every row messages")
    messages = check_messages(value, "messages")
    if isinstance(messages, Problem):
        return messages
    if messages[-1]["role"] != "assistant":
        return Problem(
            f"messages ends with a message of role {messages[-1]['role']!r} instead of the assistant's answer",
            "end the conversation with the response, or remove the row",
        )
    if len(messages) == 1:
        return Problem("messages holds no prompt before the response", "put the user's message first")
    prompt = read_prompt(messages[:-1], "messages before the response")
    return prompt if isinstance(prompt, Problem) else Exchange(prompt, messages[-1:])


def _as_messages(checked: Text, role: str) -> Messages:
    return [{"role": role, "content": checked}] if isinstance(checked, str) else checked


def _roles(messages: Sequence[dict[str, str]]) -> str:
    return ", ".join(message["role"] for message in messages)
