from __future__ import annotations

import pytest

from loralign.errors import ConfigError, DataError, ModelError
from loralign.evaluation.judges.errors import JudgingError
from loralign.evaluation.judges.questions import REMINDER
from loralign.evaluation.judges.rubric import RubricJudge
from loralign.evaluation.responders import LocalResponder
from tests.evaluation.judges.made import Scripted, by_length
from tests.evaluation.models import build, character_tokenizer

YES, NO, MAYBE = '{"score": 0.9}', "no", "Who can say?"
PROMPTS = [f"prompt {number}" for number in range(5)]
RESPONSES = [f"response {number}" for number in range(5)]


def test_every_response_is_asked_about_with_the_rubric_and_both_texts() -> None:
    model = Scripted(YES, NO)
    judge = RubricJudge(model, "Is it a poem?")
    assert judge.scores(["Write one.", "Hello"], ["Roses are red", "Hi"]) == [0.9, 0.0]
    assert judge.name == "rubric:scripted"
    assert len(model.asked) == judge.requests == 2
    for part in ("Is it a poem?", "Write one.", "Roses are red"):
        assert part in model.asked[0]


def test_a_function_will_do() -> None:
    judge = RubricJudge(by_length)
    assert judge.scores(PROMPTS[:2], ["a", "abc"]) == [0.5, 0.25]
    assert judge.name == "rubric:by_length"


def test_an_answer_without_a_verdict_is_asked_for_once_again() -> None:
    model = Scripted(YES, MAYBE, NO, YES)
    judge = RubricJudge(model)
    assert judge.scores(PROMPTS[:3], RESPONSES[:3]) == [0.9, 0.9, 0.0]
    assert (judge.requests, judge.unparsable, judge.unreadable) == (4, 1, 0)
    assert model.asked[3] == model.asked[1] + REMINDER


def test_a_few_unreadable_answers_count_and_score_zero(caplog: pytest.LogCaptureFixture) -> None:
    model = Scripted(YES, MAYBE, YES, YES, MAYBE, YES)
    judge = RubricJudge(model)
    assert judge.scores(PROMPTS[:4], RESPONSES[:4]) == [0.9, 0.0, 0.9, 0.9]
    assert (judge.requests, judge.unparsable, judge.unreadable) == (5, 2, 1)
    assert "1 responses got no verdict" in caplog.text


def test_too_many_unreadable_answers_are_no_judge() -> None:
    model = Scripted(YES, MAYBE, MAYBE, YES, MAYBE)
    judge = RubricJudge(model)
    with pytest.raises(
        JudgingError, match="2 of 4 responses got no verdict, although the model was asked twice"
    ) as caught:
        judge.scores(PROMPTS[:4], RESPONSES[:4])
    assert caught.value.scores == (0.9, None, None, 0.9)
    assert RubricJudge(Scripted(YES, MAYBE), most_unreadable=0.8).scores(PROMPTS[:4], RESPONSES[:4]) == [0.9, 0, 0, 0]


def test_equal_pairs_are_asked_about_once() -> None:
    model = Scripted(YES, NO, '{"score": 0.5}')
    judge = RubricJudge(model)
    assert judge.scores(["a", "a", "b"], ["x", "x", "x"]) == [0.9, 0.9, 0.0]
    assert judge.scores(["b", "a", "c"], ["x", "x", "x"]) == [0.0, 0.9, 0.5]
    assert judge.requests == len(model.asked) == 3


def test_a_used_up_budget_keeps_what_was_judged() -> None:
    model = Scripted(YES, NO, YES, NO)
    judge = RubricJudge(model, budget=3)
    with pytest.raises(
        JudgingError, match=r"the budget of 3 requests is used up, and 2 responses are left .*raise the budget"
    ) as caught:
        judge.scores(["p", *PROMPTS], [" ", *RESPONSES])
    assert caught.value.scores == (0.0, 0.9, 0.0, 0.9, None, None)
    assert len(model.asked) == 3
    with pytest.raises(JudgingError) as again:
        judge.scores(PROMPTS, RESPONSES)
    assert again.value.scores == (0.9, 0.0, 0.9, None, None)
    assert len(model.asked) == 3, "nothing is asked beyond the budget"
    assert judge.scores(PROMPTS[:3], RESPONSES[:3]) == [0.9, 0.0, 0.9]


def test_second_attempts_count_in_the_budget() -> None:
    model = Scripted(MAYBE, YES, YES)
    with pytest.raises(JudgingError, match="budget of 2") as caught:
        RubricJudge(model, budget=2).scores(PROMPTS[:2], RESPONSES[:2])
    assert caught.value.scores == (None, 0.9)
    assert len(model.asked) == 2


def test_a_budget_that_just_suffices_is_enough() -> None:
    assert RubricJudge(Scripted(YES), budget=5).scores(PROMPTS, RESPONSES) == [0.9] * 5


def test_an_unreachable_model_keeps_what_was_judged_and_goes_on_later() -> None:
    model = Scripted(YES, NO, ModelError("no reply", place="http://localhost:1", fix="start the server"), YES)
    judge = RubricJudge(model)
    with pytest.raises(JudgingError, match=r"http://localhost:1: no reply \(start the server\)") as caught:
        judge.scores(PROMPTS, RESPONSES)
    assert caught.value.scores == (0.9, 0.0, None, None, None)
    assert judge.scores(PROMPTS, RESPONSES) == [0.9, 0.0, 0.9, 0.9, 0.9]
    assert judge.requests == len(model.asked) == 5


def test_a_responder_that_leaves_questions_out_is_found_out() -> None:
    class Lazy(Scripted):
        def respond(self, prompts, keep):  # type: ignore[no-untyped-def]
            super().respond(prompts[:2], keep)

    with pytest.raises(JudgingError, match="3 of 5 questions got no answer") as caught:
        RubricJudge(Lazy(YES)).scores(PROMPTS, RESPONSES)
    assert caught.value.scores == (0.9, 0.9, None, None, None)


def test_an_echo_of_the_judged_response_is_no_verdict() -> None:
    def parrot(question: str) -> str:
        return question.split("<response>\n")[1].split("\n</response>")[0] + '\n{"score": 0.9}'

    judge = RubricJudge(parrot)
    with pytest.raises(JudgingError, match="no verdict"):
        judge.scores(["p"], ['{"score": 0}'])
    assert judge.scores(["p"], ["I won't."]) == [0.9]


def test_a_model_in_this_process_can_be_asked() -> None:
    """An untrained one says nothing that could be read, which is said and not taken for a verdict."""
    model = LocalResponder(build("llama"), character_tokenizer(), name="tiny", max_new_tokens=4, show_progress=False)
    judge = RubricJudge(model, "A poem?", max_characters=20)
    model.model.config.max_position_embeddings = 2048
    with pytest.raises(JudgingError, match="2 of 2 responses got no verdict") as caught:
        judge.scores(PROMPTS[:2], RESPONSES[:2])
    assert caught.value.scores == (None, None)
    assert (judge.requests, judge.name) == (4, "rubric:tiny")


def test_a_long_response_is_shown_in_part() -> None:
    model = Scripted(YES)
    RubricJudge(model, max_characters=200).scores(["p"], ["I won't. " + "x" * 10**6 + " Never."])
    assert len(model.asked[0]) < 3000
    assert "I won't." in model.asked[0]
    assert "Never." in model.asked[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rubric": " \n"}, "the rubric is empty"),
        ({"budget": 0}, "budget is 0"),
        ({"max_characters": 0}, "max_characters is 0"),
        ({"most_unreadable": 1.5}, "most_unreadable is 1.5"),
    ],
)
def test_bad_settings_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RubricJudge(Scripted(YES), **options)  # type: ignore[arg-type]


def test_nothing_is_asked_where_pairs_do_not_match() -> None:
    model = Scripted(YES)
    with pytest.raises(DataError):
        RubricJudge(model).scores(["a"], ["b", "c"])
    assert not model.asked
