"""What an OpenAI-compatible chat server says, as an answer or as a fault."""

from __future__ import annotations

import email.utils
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import httpx

_LONGEST_QUOTE = 200
_FIXES: dict[int, str] = {
    HTTPStatus.UNAUTHORIZED: "give the key that the server wants",
    HTTPStatus.FORBIDDEN: "give a key that may use this model",
    HTTPStatus.NOT_FOUND: "check the server's address and the name under which it serves the model",
}
_OTHER_FIX = "check the model's name, and whether the prompt fits into its window"


@dataclass(frozen=True)
class Fault:
    """Why there is no answer.

    Args:
        problem: what happened.
        fix: what to do about it.
        passing: whether the same request may succeed later.
        wait: seconds that the server asks to wait before.
    """

    problem: str
    fix: str
    passing: bool
    wait: float = 0.0


def read_reply(response: httpx.Response) -> str | Fault:
    """The answer of a chat completion, empty where the model said nothing, or what is wrong with the reply."""
    status = response.status_code
    if response.is_success:
        return _answer(response)
    problem = f"the server says {status}: {_message(response)}"
    if status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS) or response.is_server_error:
        return Fault(problem, "look into the server's log, or ask for less at once", True, _retry_after(response))
    if response.is_redirect:
        place = _quoted(response.headers.get("location", ""))
        return Fault(f"the server points to another address, {place}", "give that address", False)
    return Fault(problem, _FIXES.get(status, _OTHER_FIX), False)


def unreachable(error: Exception) -> Fault:
    """The fault of a request to which no whole reply came."""
    late = isinstance(error, TimeoutError | httpx.TimeoutException)
    problem = "no reply within the timeout" if late else f"no reply: {_quoted(str(error) or type(error).__name__)}"
    fix = "raise the timeout or ask for less at once" if late else "start the server, or check its address"
    return Fault(problem, fix, True)


def _answer(response: httpx.Response) -> str | Fault:
    try:
        message = response.json()["choices"][0]["message"]
        # A refusal may stand in a field of its own, beside no content.
        content = message["content"] if message["content"] is not None else message.get("refusal")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        content = 0
    if content is not None and not isinstance(content, str):
        problem = f"the reply is no chat completion: {_quoted(response.text)}"
        return Fault(problem, "name an OpenAI-compatible chat server", True)
    return (content or "").strip()


def _message(response: httpx.Response) -> str:
    """The words of an error reply, wherever servers put them."""
    try:
        found: Any = response.json()
    except (ValueError, RecursionError):
        return _quoted(response.text)
    for key in ("error", "detail", "message"):
        if isinstance(found, dict) and key in found:
            found = found[key]
    return _quoted(found if isinstance(found, str) else response.text)


def _quoted(text: str) -> str:
    """The beginning of foreign text without line breaks or control characters, which a terminal would obey."""
    plain = "".join(character if character.isprintable() else " " for character in text[: 4 * _LONGEST_QUOTE])
    plain = " ".join(plain.split())
    return plain if len(plain) <= _LONGEST_QUOTE else plain[:_LONGEST_QUOTE] + "…"


def _retry_after(response: httpx.Response) -> float:
    """Seconds to wait by the header Retry-After, which holds a number or a date; 0 without a readable one."""
    text = response.headers.get("retry-after", "").strip()
    try:
        seconds = float(text)
    except ValueError:
        try:
            until = email.utils.parsedate_to_datetime(text)
        except ValueError:
            return 0.0
        seconds = (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return seconds if 0 < seconds < float("inf") else 0.0
