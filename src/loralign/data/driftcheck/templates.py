"""The bundled prompts: templates whose slots are filled in every way, all written for this project."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loralign.data.driftcheck.candidate import Candidate

SOURCE = "builtin"
LICENCE = "Apache-2.0"
_DIRECTORY = Path(__file__).parents[1] / "builtin"
_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Template:
    """A prompt with slots, each with what may fill it.

    Args:
        label: ``unsafe`` or ``safe``.
        category: of every prompt made of it.
        text: with the names of slots in braces.
        slots: fillings by name, in the order in which the text names them.
    """

    label: str
    category: str
    text: str
    slots: dict[str, tuple[str, ...]]

    def prompts(self) -> Iterator[str]:
        """Every combination of fillings, the first letter in upper case."""
        for fillings in itertools.product(*self.slots.values()):
            text = self.text.format(**dict(zip(self.slots, fillings, strict=True)))
            yield text[0].upper() + text[1:]


def load_templates(label: str) -> list[Template]:
    """The bundled templates of one label, in the order of their file.

    The file holds ``shared``, fillings that several templates use, and ``templates`` by category: each a ``text`` and
    its ``slots``, the fillings of a slot as a list or as the name of a shared one.
    """
    document: dict[str, Any] = json.loads((_DIRECTORY / f"driftcheck_{label}.json").read_text(encoding="utf-8"))
    return [
        Template(label, category, row["text"], _slots(row["text"], row["slots"], document["shared"]))
        for category, rows in document["templates"].items()
        for row in rows
    ]


def builtin_candidates(origin: int) -> list[Candidate]:
    """Every prompt that the bundled templates make, unsafe ones first.

    Args:
        origin: position of the user's source that asks for them.
    """
    return [
        Candidate(prompt, template.label, template.category, SOURCE, LICENCE, origin, template.text)
        for label in ("unsafe", "safe")
        for template in load_templates(label)
        for prompt in template.prompts()
    ]


def _slots(text: str, given: dict[str, Any], shared: dict[str, list[str]]) -> dict[str, tuple[str, ...]]:
    fillings = {name: shared[value] if isinstance(value, str) else value for name, value in given.items()}
    return {name: tuple(fillings[name]) for name in dict.fromkeys(_SLOT.findall(text))}
