from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from loralign.data import load_preferences, load_prompts
from loralign.errors import DataError
from tests.data.preference_rows import message, pair, plain_pair

Write = Callable[..., str]
TALK = [message("user", "Hi"), message("assistant", "Hello")]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "Once"}, {"text": "Once"}),
        ({"text": "Once", "prompt": "other"}, {"text": "Once"}),
        ({"prompt": TALK[:1]}, {"messages": TALK[:1]}),
        ({"messages": TALK, "source": "x"}, {"messages": TALK}),
    ],
)
def test_each_form_of_prompts(write: Write, row: dict[str, Any], expected: dict[str, Any]) -> None:
    assert load_prompts(write(row, row)).to_list() == [expected, expected]


def test_prompts_of_the_preference_data_come_with_their_chosen_completions(write: Write) -> None:
    chat = load_preferences(write(pair(0), name="chat.jsonl"))
    plain = load_preferences(write(plain_pair(0), name="plain.jsonl"))
    assert load_prompts("preferences", preferences=chat).to_list() == [
        {"messages": [message("user", "question 0"), message("assistant", "good 0")]}
    ]
    assert load_prompts("preferences", preferences=plain).to_list() == [{"text": "Q 0 A: good 0"}]


def test_the_bundled_prompts() -> None:
    assert len(load_prompts("builtin:validation")) == 96


@pytest.mark.parametrize(
    ("rows", "place", "problem"),
    [
        ([{"text": "a"}, {"text": " "}], ":2", "text is empty"),
        ([{"text": "a"}, {"text": None}], ":2", "text is missing"),
        ([{"text": TALK}], ":1", "text is list, not text"),
        ([{"messages": "a"}], ":1", "messages is str, not a list of messages"),
        ([{"messages": []}], ":1", "messages is empty"),
        ([{"messages": None}], ":1", "messages is missing"),
        ([{"messages": [{"role": "user"}]}], ":1", "message 1 of messages has no content"),
        ([{"prompt": 3}], ":1", "prompt is 3 (int), not text or messages"),
        ([{"prompt": "a"}, {"prompt": TALK}, {"prompt": TALK}], ":2", "this prompt is messages, but "),
        ([{"prompt": ""}, {"prompt": ""}], ":1", "prompt is empty; 2 rows are bad, this is the first"),
        ([{"question": "a"}], "", "no column of prompts among: question"),
    ],
)
def test_every_fault_is_named(write: Write, rows: list[dict[str, Any]], place: str, problem: str) -> None:
    path = write(*rows)
    with pytest.raises(DataError) as caught:
        load_prompts(path)
    assert caught.value.place == path + place
    assert caught.value.problem.startswith(problem)
    assert caught.value.fix


def test_preferences_must_be_there_to_take_prompts_from() -> None:
    with pytest.raises(DataError, match="no preference data"):
        load_prompts("preferences")


def test_prompts_serve_no_objective(write: Write) -> None:
    with pytest.raises(DataError, match="prompts serve no objective"):
        load_prompts(f"kind={write({'text': 'a'})}")
