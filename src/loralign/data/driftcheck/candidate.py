"""A prompt on its way into a set."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """A prompt with everything but its part.

    Args:
        prompt: the text.
        label: ``unsafe`` or ``safe``.
        category: one that its label allows.
        source: the set of prompts that it is from.
        licence: of that set.
        origin: position of the user's source that it was read from.
        family: the template that it was made of, if it was; prompts of one template stay in one part.
    """

    prompt: str
    label: str
    category: str
    source: str
    licence: str
    origin: int
    family: str | None = None
