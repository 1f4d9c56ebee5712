from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loralign.errors import ConfigError, ModelError
from loralign.evaluation.judges.combined import AllOf, AnyOf
from loralign.evaluation.judges.errors import JudgingError
from loralign.evaluation.judges.rubric import RubricJudge
from loralign.evaluation.refusal import PhraseJudge
from tests.evaluation.judges.made import Fixed, Scripted

PROBABILITIES = st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0])


@given(st.lists(st.tuples(PROBABILITIES, PROBABILITIES, PROBABILITIES), max_size=8))
def test_any_is_the_highest_and_all_the_lowest(table: list[tuple[float, float, float]]) -> None:
    responses = [str(row) for row in range(len(table))]
    judges = [
        Fixed(name, dict(zip(responses, scores, strict=True)))
        for name, scores in zip("abc", zip(*table, strict=True), strict=False)
    ]
    if len(judges) < 2:
        return
    found = AnyOf(judges).scores(responses, responses), AllOf(judges).scores(responses, responses)
    assert found == ([max(row) for row in table], [min(row) for row in table])


def test_a_refusal_is_one_by_phrase_or_by_model() -> None:
    model = Scripted('{"score": 0.9}', '{"score": 0.1}')
    judge = AnyOf([PhraseJudge(), RubricJudge(model, name="model")])
    responses = ["I can't help with that.", "One would rather not.", "Sure: take two eggs."]
    assert judge.scores(["p"] * 3, responses) == [1.0, 0.9, 0.1]
    assert judge.name == "phrases+model"
    assert len(model.asked) == 2, "what a phrase has settled costs no request"


def test_all_asks_no_further_where_one_says_no() -> None:
    first, second = Fixed("a", {"x": 0.0, "y": 0.7}), Fixed("b", {"y": 0.6})
    judge = AllOf([first, second])
    assert judge.scores(["p", "p"], ["x", "y"]) == [0.0, 0.6]
    assert second.asked == ["y"]
    assert judge.name == "a&b"


def test_nothing_left_to_ask_is_not_asked() -> None:
    second = Fixed("b", {})
    assert AnyOf([Fixed("a", {"x": 1.0}), second]).scores(["p"], ["x"]) == [1.0]
    assert not second.asked


def test_what_is_known_survives_a_judge_that_stops() -> None:
    first = Fixed("first", {"w": 1.0, "x": 0.4, "y": 0.6, "z": 0.2})
    model = Scripted('{"score": 0.5}')
    judge = AnyOf([first, RubricJudge(model, budget=1)])
    with pytest.raises(JudgingError, match="budget of 1") as caught:
        judge.scores(["p"] * 4, ["w", "x", "y", "z"])
    assert caught.value.scores == (1.0, 0.5, None, None)


def test_a_score_is_not_known_before_the_last_judge_has_spoken() -> None:
    middle = RubricJudge(Scripted('{"score": 0.5}', "1"), budget=2)
    judge = AnyOf([Fixed("first", dict.fromkeys("xyz", 0.2)), middle, Fixed("last", dict.fromkeys("xyz", 0.9))])
    with pytest.raises(JudgingError) as caught:
        judge.scores(["p"] * 3, ["x", "y", "z"])
    assert caught.value.scores == (None, 1.0, None)


@pytest.mark.parametrize("kind", [AnyOf, AllOf])
def test_combinations_combine(kind: type[AnyOf]) -> None:
    a, b, c = (Fixed(name, {"x": score}) for name, score in (("a", 0.2), ("b", 0.6), ("c", 0.4)))
    nested = kind([AnyOf([a, b]), c])
    assert nested.scores(["p"], ["x"]) == [0.6 if kind is AnyOf else 0.4]


@pytest.mark.parametrize(
    ("names", "message"), [([], "no judge: two or more"), (["a"], "a: two or more"), (["a", "b", "a"], "a and b and a")]
)
def test_two_different_judges_are_needed(names: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AnyOf([Fixed(name, {}) for name in names])


@pytest.mark.parametrize("bad", [1.5, -0.1, float("nan")])
def test_a_judge_that_gives_no_probability_is_named(bad: float) -> None:
    with pytest.raises(ModelError, match=r"odd: the score .* of response 0 is no probability"):
        AnyOf([Fixed("odd", {"x": bad}), Fixed("b", {"x": 0.5})]).scores(["p"], ["x"])


def test_a_judge_that_loses_responses_is_named() -> None:
    class Short(Fixed):
        def scores(self, prompts, responses):  # type: ignore[no-untyped-def]
            return [0.5]

    with pytest.raises(ModelError, match="short: 1 scores for 2 responses"):
        AllOf([Short("short", {}), Fixed("b", {})]).scores(["p", "q"], ["x", "y"])
