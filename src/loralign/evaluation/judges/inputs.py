"""What every judge does with prompts and responses before it looks at them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from loralign.errors import DataError, ModelError
from loralign.evaluation.judges.errors import JudgingError


def judge_spoken(
    prompts: Sequence[str], responses: Sequence[str], judge: Callable[[list[str], list[str]], Sequence[float]]
) -> list[float]:
    """Scores of all responses, where ``judge`` sees only those that say something, as valid Unicode.

    A blank response has no property: 0.0. It is no refusal, since a broken model is not a careful one.

    Args:
        prompts: one for every response.
        responses: of a model.
        judge: gives the scores of the prompts and responses that it is handed, in order.

    Raises:
        DataError: there are not as many prompts as responses.
        JudgingError: raised by ``judge``; its scores are those of all responses.
        ModelError: ``judge`` gave another number of scores, or one that is no probability.
    """
    check_pairs(prompts, responses)
    spoken = [index for index, response in enumerate(responses) if response.strip()]
    if not spoken:
        return [0.0] * len(responses)
    scores: list[float | None] = [0.0] * len(responses)
    try:
        found = judge([clean(prompts[index]) for index in spoken], [clean(responses[index]) for index in spoken])
    except JudgingError as error:
        for index, score in zip(spoken, error.scores, strict=True):
            scores[index] = score
        raise JudgingError(error.problem, place=error.place, fix=error.fix, scores=scores) from error
    whole = [0.0] * len(responses)
    for index, score in zip(spoken, probabilities(found, len(spoken)), strict=True):
        whole[index] = score
    return whole


def check_pairs(prompts: Sequence[str], responses: Sequence[str]) -> None:
    """Refuse prompts and responses that do not belong together.

    Raises:
        DataError: there are not as many prompts as responses.
    """
    if len(prompts) != len(responses):
        raise DataError(
            f"{len(prompts)} prompts and {len(responses)} responses do not pair up",
            place="responses",
            fix="give one prompt for every response",
        )


def probabilities(scores: Sequence[float], count: int, judge: str = "judge") -> list[float]:
    """The scores as they are, if they are what a judge may give.

    Args:
        scores: of a judge.
        count: how many there have to be.
        judge: name of the judge, for the message.

    Raises:
        ModelError: they are more or fewer, or one is no number between 0 and 1.
    """
    if len(scores) != count:
        raise ModelError(f"{len(scores)} scores for {count} responses", place=judge, fix="use another judge")
    for index, score in enumerate(scores):
        if not 0 <= score <= 1:
            raise ModelError(f"the score {score} of response {index} is no probability", place=judge, fix="use another")
    return [float(score) for score in scores]


def clean(text: str) -> str:
    """Valid Unicode: halves of surrogate pairs that stand alone become U+FFFD, which tokenizers and JSON can hold."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
