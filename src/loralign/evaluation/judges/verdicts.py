"""Reading the verdict in what a judging language model wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

_KEYS = ("score", "verdict")
_WORDS = {"yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
_LONGEST = 4000
_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL | re.IGNORECASE)
_LINE = re.compile(
    r"(?:final )?(?:(?:score|verdict|answer|probability|rating) ?[:=]? ?)?(?:is )?"
    r"(?:(?P<number>\d+(?:\.\d*)?|\.\d+)\.?|(?P<word>yes|no|true|false)(?:[.,;:!].*| ?[\u2013\u2014-] .*)?)"
)


def read_verdict(answer: str) -> float | None:
    """The probability that an answer states, or None where it states none.

    An answer may be JSON with the key ``score`` or ``verdict``, alone or among other text, or its first or last line
    may be a number from 0 to 1, or yes or no. What stands between ``<think>`` tags is not looked at. An answer with two
    different verdicts states none: one of them may be quoted from what was judged.

    Args:
        answer: as the model wrote it; of a long one the last 4000 characters count.
    """
    text = _THOUGHT.sub("", answer)[-_LONGEST:].strip()
    found = list(_from_json(text)) or list(_from_lines(text))
    return found[0] if found and found.count(found[0]) == len(found) else None


def _from_json(text: str) -> Iterator[float | None]:
    decoder = json.JSONDecoder()
    start = text.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            end = start + 1
        else:
            yield from (_number(value[key]) for key in _KEYS if key in value)
        start = text.find("{", end)


def _from_lines(text: str) -> Iterator[float]:
    lines = [re.sub(r"[*_`#\"']+", "", line).strip().lower() for line in text.splitlines()]
    lines = [line for line in lines if line]
    for line in lines[:1] + lines[1:][-1:]:
        match = _LINE.fullmatch(line)
        if match is not None:
            number = _number(float(match["number"])) if match["number"] else _WORDS[match["word"]]
            if number is not None:
                yield number


def _number(value: Any) -> float | None:
    """A verdict as JSON has it: a number, true or false, or a text of one of these or of yes or no."""
    if isinstance(value, str):
        word = value.strip().lower()
        if word in _WORDS:
            return _WORDS[word]
        try:
            value = float(word)
        except ValueError:
            return None
    return float(value) if isinstance(value, int | float) and 0 <= value <= 1 else None
