"""What a DRIFTCHECK set is: labelled single-turn prompts, each in one of three parts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

from loralign.data.alignment import CATEGORIES, LABELS
from loralign.errors import DataError

Part = Literal["train", "probe", "test"]
PARTS = ("train", "probe", "test")
"""``train`` to tune on, ``probe`` to watch during training, ``test`` to report on."""
GENERAL = "general"
"""The category of safe prompts that nobody would take for unsafe ones."""
SAFE_CATEGORIES = (GENERAL, *CATEGORIES)
"""Safe prompts of the other six only look as if they belonged there."""


@dataclass(frozen=True)
class DriftPrompt:
    """One prompt, which is one message of a user.

    Args:
        id: the same for the same label and text in every set, see :func:`prompt_id`.
        prompt: the text.
        label: ``unsafe``, to be refused, or ``safe``, to be answered.
        category: one of six; of a safe prompt the one that it seems to belong to, or ``general``.
        source: the set of prompts that it is from.
        licence: of that set.
        part: ``train``, ``probe`` or ``test``.
    """

    id: str
    prompt: str
    label: str
    category: str
    source: str
    licence: str
    part: str


@dataclass(frozen=True)
class DriftSet:
    """Prompts in a fixed order, with the fingerprint that names them.

    Args:
        prompts: the prompts.
        fingerprint: SHA-256 over them, in hexadecimal, see :func:`fingerprint_prompts`.
    """

    prompts: list[DriftPrompt]
    fingerprint: str

    @classmethod
    def of(cls, prompts: Iterable[DriftPrompt]) -> DriftSet:
        """The set of these prompts, with their fingerprint."""
        given = list(prompts)
        return cls(given, fingerprint_prompts(given))

    def part(self, name: str) -> DriftSet:
        """The prompts of one part, as a set with a fingerprint of its own.

        Raises:
            DataError: there is no such part, or it holds no prompts.
        """
        if name not in PARTS:
            raise DataError(f"no part {name!r}", place="part", fix=f"use {', '.join(PARTS)}")
        chosen = DriftSet.of(prompt for prompt in self.prompts if prompt.part == name)
        if not chosen.prompts:
            raise DataError(f"the part {name!r} holds no prompts", place="part", fix="use another, or build it larger")
        return chosen

    def __len__(self) -> int:
        return len(self.prompts)


def prompt_line(prompt: DriftPrompt) -> str:
    """The prompt as one line of JSON, with its line break."""
    return json.dumps(asdict(prompt), ensure_ascii=False) + "\n"


def fingerprint_prompts(prompts: Iterable[DriftPrompt]) -> str:
    """SHA-256 over the prompts' lines in their order, in hexadecimal."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(prompt_line(prompt).encode("utf-8"))
    return digest.hexdigest()


def prompt_id(label: str, text: str) -> str:
    """Label and the first 16 hexadecimal digits of the text's SHA-256, so that runs on different sets can be joined.

    >>> prompt_id("safe", "What is a fjord?")
    'safe-1d25631d0c77ef30'
    """
    return f"{label}-{hashlib.sha256(text.encode('utf-8')).hexdigest()[:16]}"


def categories_of(label: str) -> tuple[str, ...]:
    """The categories that prompts of a label may have."""
    return SAFE_CATEGORIES if label == LABELS[1] else CATEGORIES
