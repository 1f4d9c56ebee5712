"""What an engine that answers prompts has to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from loralign.evaluation.answers import Prompt

Keep = Callable[[int, str], None]
"""Takes the index of a prompt and its answer as soon as the answer is there."""


class Responder(Protocol):
    """Answers prompts, whether the model runs here or on a server."""

    @property
    def name(self) -> str:
        """What reports call the model that answers."""

    def respond(self, prompts: Sequence[Prompt], keep: Keep) -> None:
        """Answer every prompt, in any order.

        Args:
            prompts: plain texts or conversations that end with the user's turn.
            keep: called once for every prompt as soon as its answer is there, never twice at the same time, so that
                an interrupted run keeps what was answered.
        """
