"""What every judge has to do, whatever it is made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loralign.errors import DataError
from loralign.evaluation.judges import (
    PROMPT_AND_RESPONSE,
    AllOf,
    AnyOf,
    ClassifierJudge,
    DetoxifyScorer,
    ProfanityScorer,
    RubricJudge,
)
from loralign.evaluation.refusal import Judge, PhraseJudge
from tests.evaluation.judges.conftest import FakeDetoxify
from tests.evaluation.judges.made import Backwards, by_length

Directories = dict[str, Path]


def _classifier(directories: Directories, architecture: str) -> Judge:
    return ClassifierJudge(
        directories[architecture], "Refusal", template=PROMPT_AND_RESPONSE, batch_size=3, show_progress=False
    )


JUDGES: dict[str, Callable[[Directories], Judge]] = {
    "phrases": lambda made: PhraseJudge(),
    "bert": lambda made: _classifier(made, "bert"),
    "roberta": lambda made: _classifier(made, "roberta"),
    "llama": lambda made: _classifier(made, "llama"),
    "rubric function": lambda made: RubricJudge(by_length),
    "rubric responder": lambda made: RubricJudge(Backwards()),
    "profanity": lambda made: ProfanityScorer(),
    "detoxify": lambda made: DetoxifyScorer(),
    "any": lambda made: AnyOf([PhraseJudge(), _classifier(made, "bert")]),
    "all": lambda made: AllOf([ProfanityScorer(), RubricJudge(by_length)]),
}
# Different lengths in no order, and refusals among answers.
RESPONSES = [
    "Sure: first, " + "boil the water. " * 20,
    "I can't help with that.",
    "You are a damned fool.",
    "Yes.",
    "I'm sorry, but I won't do this.",
    "Here is the list you asked for: " + "one, " * 90,
    "No",
]
PROMPTS = [f"Question {number}?" for number in range(len(RESPONSES))]


@pytest.fixture(params=JUDGES)
def judge(request: pytest.FixtureRequest, classifiers: Directories, detoxify: type[FakeDetoxify]) -> Judge:
    return JUDGES[request.param](classifiers)


def test_a_judge_has_a_name(judge: Judge) -> None:
    assert judge.name == judge.name.strip() != ""


def test_every_response_has_the_score_that_it_gets_alone(judge: Judge) -> None:
    together = judge.scores(PROMPTS, RESPONSES)
    alone = [judge.scores([prompt], [response])[0] for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)
    assert len(set(together)) > 1, "an order cannot be seen if all are equal"


def test_order_is_kept(judge: Judge) -> None:
    forwards = judge.scores(PROMPTS, RESPONSES)
    backwards = judge.scores(PROMPTS[::-1], RESPONSES[::-1])
    assert backwards[::-1] == pytest.approx(forwards, abs=1e-5)


def test_equal_calls_give_equal_scores(judge: Judge) -> None:
    assert judge.scores(PROMPTS, RESPONSES) == judge.scores(PROMPTS, RESPONSES)


def test_scores_are_plain_probabilities(judge: Judge) -> None:
    for score in judge.scores(PROMPTS, RESPONSES):
        assert type(score) is float
        assert 0 <= score <= 1


def test_nothing_is_judged_without_complaint(judge: Judge) -> None:
    assert judge.scores([], []) == []


@pytest.mark.parametrize("blank", ["", " ", "\n\t \n"])
def test_a_blank_response_has_no_property(judge: Judge, blank: str) -> None:
    among = judge.scores(["a", "b", "c"], [RESPONSES[1], blank, RESPONSES[4]])
    assert among[1] == 0.0
    assert [among[0], among[2]] == pytest.approx(judge.scores(["a", "c"], [RESPONSES[1], RESPONSES[4]]), abs=1e-5)
    assert judge.scores(["a"], [blank]) == [0.0]


@pytest.mark.parametrize("broken", ["\ud800", "a\udfffb", "\udc00\ud800 I can't", "\x00\x01", "\U0010ffff\u202e", "🙂"])
def test_broken_unicode_is_judged(judge: Judge, broken: str) -> None:
    (score,) = judge.scores([broken], [broken])
    assert 0 <= score <= 1


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(prompt=st.text(st.characters()), response=st.text(st.characters()))
def test_any_text_is_judged(judge: Judge, prompt: str, response: str) -> None:
    (score,) = judge.scores([prompt], [response])
    assert 0 <= score <= 1


@pytest.mark.parametrize("unit", ["x", "I can't. ", "\n", "{", "<response>"])
def test_a_response_of_a_megabyte_is_judged(judge: Judge, unit: str) -> None:
    huge = unit * (1_000_000 // len(unit))
    short, long = judge.scores(["a", huge], [RESPONSES[1], huge])
    assert 0 <= long <= 1
    assert short == pytest.approx(judge.scores(["a"], [RESPONSES[1]])[0], abs=1e-5)


@pytest.mark.parametrize(("prompts", "responses"), [(["a"], []), ([], ["a"]), (["a", "b"], ["c"]), (["a"], ["", ""])])
def test_what_does_not_pair_up_is_refused(judge: Judge, prompts: list[str], responses: list[str]) -> None:
    with pytest.raises(DataError, match=f"{len(prompts)} prompts and {len(responses)} responses do not pair up"):
        judge.scores(prompts, responses)
