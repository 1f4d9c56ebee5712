"""What a judge says when it had to stop before the last response."""

from __future__ import annotations

from collections.abc import Sequence

from loralign.errors import LoralignError


class JudgingError(LoralignError):
    """A judge stopped before every response was judged; what it had found by then is kept.

    Args:
        problem: what is wrong.
        place: where it stands.
        fix: what to do about it.
        scores: one for every response, in order; None for those that were not judged.
    """

    def __init__(
        self, problem: str, *, place: str | None = None, fix: str | None = None, scores: Sequence[float | None] = ()
    ) -> None:
        super().__init__(problem, place=place, fix=fix)
        self.scores = tuple(scores)
