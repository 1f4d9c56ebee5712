"""The public sets that the literature takes its prompts from: how their rows look, and where they are on the hub.

A row becomes a :class:`Draft`, or a reason to leave it out, or a problem that its author has to mend.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from loralign.data.checks import Problem
from loralign.data.tables import RawTable, require_columns

Row = Mapping[str, Any]

COLUMNS = (
    "prompt", "label", "category", "source", "licence", "license", "question", "choices", "chosen", "goal",
    "behaviour", "behavior", "Behavior", "SemanticCategory", "FunctionalCategory", "ContextString",
)  # fmt: skip
"""All columns that any of the formats reads."""
EMPTY = "empty"
_HUMAN, _ASSISTANT = "Human:", "Assistant:"


@dataclass(frozen=True)
class Draft:
    """What a row says of a prompt; None where it says nothing."""

    prompt: str
    label: str | None = None
    category: str | None = None
    source: str | None = None
    licence: str | None = None


@dataclass(frozen=True)
class Omission:
    """Why a row that is as it should be is not used."""

    reason: str


Reading = Draft | Omission | Problem


@dataclass(frozen=True)
class HubPlace:
    """Where a public set is on the hub."""

    path: str
    config: str | None = None
    data_dir: str | None = None
    split: str = "train"


@dataclass(frozen=True)
class Format:
    """A form of rows.

    Args:
        name: what the user writes, and the ``source`` of its prompts; empty for plain rows.
        columns: sets of columns; a table that has all of one set is of this form.
        read: makes a draft of a row.
        label: of all its prompts, or None if the rows say.
        licence: of the set, or None if it has no single one.
        hub: where it is.
    """

    name: str
    columns: tuple[tuple[str, ...], ...]
    read: Callable[[Row], Reading]
    label: str | None = None
    licence: str | None = None
    hub: HubPlace | None = None


def read_mmlu(row: Row) -> Reading:
    """A question with its choices, lettered, as one message."""
    question, choices = row.get("question"), row.get("choices")
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        return Problem(f"choices is {type(choices).__name__}, not a list of texts", "write it as a list")
    text = _text(question, "question")
    if not isinstance(text, str):
        return text
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    if len(choices) > len(letters):
        return Problem(f"{len(choices)} choices", f"give at most {len(letters)}")
    lines = [f"{letter}. {choice.strip()}" for letter, choice in zip(letters, choices, strict=False)]
    return Draft("\n".join([text, *lines]))


def read_hh_rlhf(row: Row) -> Reading:
    """The first human turn of a transcript, given as text or as messages."""
    chosen = row.get("chosen")
    talk = row.get("prompt") if isinstance(row.get("prompt"), list) else chosen
    if isinstance(talk, list):
        for message in talk:
            if isinstance(message, dict) and message.get("role") == "user":
                text = _text(message.get("content"), "the user's first message")
                return Draft(text) if isinstance(text, str) else text
        return Omission("no human turn")
    text = _text(chosen, "chosen")
    if not isinstance(text, str):
        return text
    _, human, rest = f"\n\n{text}".partition(f"\n\n{_HUMAN}")
    turn = rest.partition(f"\n\n{_ASSISTANT}")[0].partition(f"\n\n{_HUMAN}")[0].strip()
    return Draft(turn) if human and turn else Omission("no human turn")


def read_advbench(row: Row) -> Reading:
    """The goal, which newer copies of the set call behaviour."""
    column = next((name for name in ("goal", "behaviour", "behavior") if row.get(name) is not None), "goal")
    text = _text(row.get(column), column)
    return Draft(text, category=_optional(row, "category")) if isinstance(text, str) else text


def read_harmbench(row: Row) -> Reading:
    """The behaviour, after its context where it has one; those about copyright are none of DRIFTCHECK's categories."""
    kind, category = _optional(row, "FunctionalCategory"), _optional(row, "SemanticCategory")
    if "copyright" in (kind, category):
        return Omission("copyright is no category")
    text = _text(row.get("Behavior"), "Behavior")
    if not isinstance(text, str):
        return text
    context = _optional(row, "ContextString")
    return Draft(f"{context.strip()}\n\n{text}" if context else text, category=category)


def read_plain(row: Row) -> Reading:
    """A prompt with whatever else its row says: label, category, source and licence."""
    text = _text(row.get("prompt"), "prompt")
    if not isinstance(text, str):
        return text
    for column in ("label", "category", "source", "licence", "license"):
        if not isinstance(row.get(column), str | None):
            return Problem(f"{column} is {row[column]!r}, not text", "write it as text, or leave it out")
    category = _optional(row, "category")
    if category == "copyright":
        return Omission("copyright is no category")
    licence = _optional(row, "licence") or _optional(row, "license")
    return Draft(text, _optional(row, "label"), category, _optional(row, "source"), licence)


FORMATS = (
    Format(
        "mmlu", (("question", "choices"),), read_mmlu, "safe", "MIT", HubPlace("cais/mmlu", config="all", split="test")
    ),
    Format(
        "hh-rlhf", (("chosen", "rejected"),), read_hh_rlhf, "unsafe", "MIT",
        HubPlace("Anthropic/hh-rlhf", data_dir="harmless-base"),
    ),
    Format(
        "advbench", (("goal",), ("behaviour",), ("behavior",)), read_advbench, "unsafe", "MIT",
        HubPlace("walledai/AdvBench"),
    ),
    Format(
        "harmbench", (("Behavior",),), read_harmbench, "unsafe", "MIT",
        HubPlace("walledai/HarmBench", config="standard"),
    ),
)  # fmt: skip
"""The public sets, in the order in which their columns are looked for."""
PLAIN = Format("", (("prompt",),), read_plain)
"""Rows with a prompt, and perhaps label, category, source and licence."""


def format_of(table: RawTable) -> Format:
    """Recognise a table by its columns.

    Raises:
        DataError: it is of no form.
    """
    for one in FORMATS:
        if any(set(columns) <= set(table.columns) for columns in one.columns):
            return one
    require_columns(table, ("prompt",), fix="name the columns prompt, label and category, or those of a public set")
    return PLAIN


def _text(value: Any, column: str) -> str | Omission | Problem:
    if value is None or (isinstance(value, str) and not value.strip()):
        return Omission(EMPTY)
    if not isinstance(value, str):
        return Problem(f"{column} is {type(value).__name__}, not text", "write it as text")
    return value.strip()


def _optional(row: Row, column: str) -> str | None:
    value = row.get(column)
    return value.strip() or None if isinstance(value, str) else None
