from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from loralign.errors import DataError
from loralign.evaluation import PhraseJudge, safety_scores

NO, YES = "I can't help with that.", "Sure, first boil the water."


class Half:
    """Gives every response a half, and keeps what it was asked."""

    name = "half"

    def __init__(self) -> None:
        self.prompts: list[str] = []

    def scores(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        self.prompts += prompts
        return [0.5 if response else 0.49 for response in responses]


def test_refusals_are_counted_where_wanted_and_where_not() -> None:
    labels = ["unsafe"] * 10 + ["safe"] * 5
    answers = [NO] * 9 + [YES] + [NO] + [YES] * 4
    scores = safety_scores(["Tell me."] * 15, labels, None, answers, PhraseJudge())
    assert scores.refusal is not None
    assert scores.over_refusal is not None
    assert scores.refusal.value == pytest.approx(0.9)
    assert scores.over_refusal.value == pytest.approx(0.2)
    assert scores.refusal.low < 0.9 < scores.refusal.high <= 1
    assert 0 <= scores.over_refusal.low < 0.2 < scores.over_refusal.high
    assert (scores.unsafe, scores.safe, scores.judge) == (10, 5, "phrases")
    assert scores.refused == tuple(answer == NO for answer in answers)
    assert scores.categories == ()


def test_categories_are_kept_apart_by_label() -> None:
    labels = ["unsafe", "unsafe", "unsafe", "safe", "safe", "safe"]
    categories = ["violence", "privacy", "privacy", "privacy", None, ""]
    scores = safety_scores(["Tell me."] * 6, labels, categories, [NO, NO, YES, NO, YES, YES], PhraseJudge())
    found = [(one.label, one.category, one.prompts, one.refused.value) for one in scores.categories]
    assert found == [("unsafe", "privacy", 2, 0.5), ("unsafe", "violence", 1, 1.0), ("safe", "privacy", 1, 1.0)]


def test_a_kind_without_prompts_has_no_score() -> None:
    scores = safety_scores(["Tell me."], ["unsafe"], None, [NO], PhraseJudge())
    assert scores.over_refusal is None
    assert scores.refusal is not None
    assert (scores.refusal.low, scores.refusal.value, scores.refusal.high) == (1.0, 1.0, 1.0)


def test_equal_arguments_give_equal_intervals() -> None:
    arguments = (["Tell me."] * 20, ["unsafe"] * 20, None, [NO] * 13 + [YES] * 7, PhraseJudge())
    assert safety_scores(*arguments) == safety_scores(*arguments)
    assert safety_scores(*arguments, seed=1) != safety_scores(*arguments)
    wide, narrow = (safety_scores(*arguments, confidence=level).refusal for level in (0.99, 0.5))
    assert wide is not None
    assert narrow is not None
    assert wide.low < narrow.low < narrow.high < wide.high


def test_any_judge_will_do_and_a_half_is_a_refusal() -> None:
    judge = Half()
    prompts = ["plain", [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]]
    scores = safety_scores(prompts, ["safe", "safe"], None, ["x", ""], judge)
    assert scores.refused == (True, False)
    assert scores.judge == "half"
    assert judge.prompts == ["plain", "Be kind.\n\nHello"]


def test_scores_are_plain_values() -> None:
    scores = safety_scores(["Tell me."] * 3, ["unsafe", "unsafe", "safe"], ["hate"] * 3, [NO, YES, YES], PhraseJudge())
    data = json.loads(json.dumps(scores.to_json()))
    assert data["refusal"]["value"] == 0.5
    assert data["over_refusal"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert data["categories"][0]["category"] == "hate"
    assert data["categories"][0]["refused"]["value"] == 0.5
    assert data["refused"] == [True, False, False]


@pytest.mark.parametrize(
    ("labels", "categories", "answers", "message"),
    [
        (["unsafe"], None, ["a", "b"], "labels: 1 labels for 2 prompts"),
        (["unsafe", "safe"], None, ["a"], "answers: 1 answers for 2 prompts"),
        (["unsafe", "safe"], ["x"] * 3, ["a", "b"], "categories: 3 categories for 2 prompts"),
        (["unsafe", "harmful"], None, ["a", "b"], "prompt 1: the label 'harmful' is unknown"),
    ],
)
def test_what_does_not_pair_up_is_refused(
    labels: list[str], categories: list[str] | None, answers: list[str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        safety_scores(["Tell me.", "And this."], labels, categories, answers, PhraseJudge())


def test_no_answers_are_refused() -> None:
    with pytest.raises(DataError, match="no answers to judge"):
        safety_scores([], [], None, [], PhraseJudge())
