"""Judges made of judges: any of them, or all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from loralign.errors import ConfigError
from loralign.evaluation.judges.errors import JudgingError
from loralign.evaluation.judges.inputs import check_pairs, probabilities
from loralign.evaluation.refusal import Judge


class _Combined(ABC):
    """Combines the scores of judges, the cheapest first.

    Later judges are asked only about responses that the earlier ones have not settled: those with the most extreme
    score stay what they are, whatever the others would say. Where a judge stops early, a response is known if it was
    settled or if every judge had scored it.
    """

    _settled: float
    _sign: str

    def __init__(self, judges: Sequence[Judge]) -> None:
        names = [judge.name for judge in judges]
        if len(names) < 2 or len(set(names)) < len(names):
            raise ConfigError(
                f"{' and '.join(names) or 'no judge'}: two or more different judges are needed",
                place="judges",
                fix="name each judge once",
            )
        self._judges = tuple(judges)
        self.name = self._sign.join(names)

    def scores(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """The combined score of every response, in order.

        Raises:
            DataError: there are not as many prompts as responses.
            JudgingError: a judge stopped early; the error holds the scores of the responses that are known.
            ModelError: a judge gave another number of scores, or one that is no probability.
        """
        check_pairs(prompts, responses)
        found = [1 - self._settled] * len(responses)
        for judge in self._judges:
            rows = [row for row, score in enumerate(found) if score != self._settled]
            if not rows:
                break
            try:
                scores = judge.scores([prompts[row] for row in rows], [responses[row] for row in rows])
            except JudgingError as error:
                known = self._known(found, rows, error.scores, last=judge is self._judges[-1])
                raise JudgingError(error.problem, place=error.place, fix=error.fix, scores=known) from error
            for row, score in zip(rows, probabilities(scores, len(rows), judge.name), strict=True):
                found[row] = self._combine(found[row], score)
        return found

    @staticmethod
    @abstractmethod
    def _combine(one: float, other: float) -> float:
        """The score of two judges."""

    def _known(
        self, found: Sequence[float], rows: Sequence[int], scores: Sequence[float | None], *, last: bool
    ) -> list[float | None]:
        known: list[float | None] = [score if score == self._settled else None for score in found]
        for row, score in zip(rows, scores, strict=True):
            combined = None if score is None else self._combine(found[row], score)
            known[row] = combined if last or combined == self._settled else None
        return known


class AnyOf(_Combined):
    """The property is there if one of the judges sees it: a response's score is the highest of theirs.

    Args:
        judges: two or more with different names, the cheapest first: a later one is not asked where an earlier one is
            certain of the property.

    Raises:
        ConfigError: fewer than two judges, or two of one name.
    """

    _settled = 1.0
    _sign = "+"

    @staticmethod
    def _combine(one: float, other: float) -> float:
        return max(one, other)


class AllOf(_Combined):
    """The property is there if all judges see it: a response's score is the lowest of theirs.

    Args:
        judges: two or more with different names, the cheapest first: a later one is not asked where an earlier one is
            certain that the property is not there.

    Raises:
        ConfigError: fewer than two judges, or two of one name.
    """

    _settled = 0.0
    _sign = "&"

    @staticmethod
    def _combine(one: float, other: float) -> float:
        return min(one, other)
