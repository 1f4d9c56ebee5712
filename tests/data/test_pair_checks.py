from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loralign.data.checks import Pair, Problem, check_pair, check_text

USER = {"role": "user", "content": "Hi"}
GOOD = {"role": "assistant", "content": "Hello"}
BAD = {"role": "assistant", "content": "Go away"}


def row(**changes: Any) -> dict[str, Any]:
    return {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD], **changes}


def test_an_explicit_conversation_passes_and_loses_other_keys() -> None:
    checked = check_pair(row(chosen=[{**GOOD, "name": "bot"}]), explicit_prompt=True)
    assert checked == Pair([USER], [GOOD], [BAD])
    assert isinstance(checked, Pair)
    assert checked.format == "conversational"


def test_an_explicit_plain_pair_passes_unchanged() -> None:
    checked = check_pair({"prompt": "Q:", "chosen": " yes", "rejected": " no"}, explicit_prompt=True)
    assert checked == Pair("Q:", " yes", " no")
    assert isinstance(checked, Pair)
    assert checked.format == "plain"


def test_an_implicit_conversation_is_split_where_it_differs() -> None:
    checked = check_pair(
        {"chosen": [USER, GOOD, USER, GOOD], "rejected": [USER, GOOD, USER, BAD]}, explicit_prompt=False
    )
    assert checked == Pair([USER, GOOD, USER], [GOOD], [BAD])


def test_an_implicit_plain_pair_is_split_where_it_differs() -> None:
    checked = check_pair({"chosen": "Q: sky? A: blue", "rejected": "Q: sky? A: green"}, explicit_prompt=False)
    assert checked == Pair("Q: sky? A:", " blue", " green")


def test_a_plain_prompt_beside_whole_conversations_is_ignored_as_in_trl() -> None:
    checked = check_pair({"prompt": "Hi", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, explicit_prompt=True)
    assert checked == Pair([USER], [GOOD], [BAD])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"prompt": None}, "prompt is missing"),
        ({"prompt": []}, "prompt is empty"),
        ({"prompt": "  \n", "chosen": "a", "rejected": "b"}, "prompt is empty"),
        ({"prompt": "q", "chosen": "", "rejected": "b"}, "chosen is empty"),
        ({"prompt": "q", "chosen": "a", "rejected": "\t"}, "rejected is empty"),
        ({"chosen": [{"role": "assistant", "content": " "}]}, "message 1 of chosen is empty"),
        ({"prompt": [USER, {"role": "user", "content": ""}]}, "message 2 of prompt is empty"),
        ({"rejected": [GOOD]}, "chosen and rejected are identical"),
        ({"prompt": "q", "chosen": "same", "rejected": " same\n"}, "chosen and rejected are identical"),
        ({"chosen": 3}, "chosen is 3 (int), not text or messages"),
        ({"chosen": 0.5}, "chosen is 0.5 (float), not text or messages"),
        ({"rejected": {"role": "assistant"}}, "rejected is {'role': 'assistant'} (dict), not text or messages"),
        ({"rejected": ["no"]}, "message 1 of rejected is 'no', not a message"),
        ({"prompt": [{"content": "Hi"}]}, "message 1 of prompt has no role"),
        ({"prompt": [{"role": "user"}]}, "message 1 of prompt has no content"),
        ({"prompt": [{"role": "user", "content": 7}]}, "message 1 of prompt has a content that is not text: 7"),
        ({"prompt": [{"role": "human", "content": "Hi"}]}, "message 1 of prompt has the unknown role 'human'"),
        ({"rejected": "no"}, "one of chosen and rejected is text, the other messages"),
        ({"chosen": "yes", "rejected": "no"}, "prompt is messages, but chosen and rejected are text"),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, "chosen begins with a message of role 'user'"),
        ({"prompt": "q", "chosen": "\ud83d", "rejected": "no"}, "chosen holds half a surrogate pair"),
        ({"prompt": [{"role": "user", "content": "\udc00"}]}, "message 1 of prompt holds half a surrogate pair"),
    ],
)
def test_each_fault_is_named(changes: dict[str, Any], expected: str) -> None:
    problem = check_pair(row(**changes), explicit_prompt=True)
    assert isinstance(problem, Problem)
    assert problem.text.startswith(expected)
    assert problem.fix


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ("good ", "bad", "there is no prompt"),
        ([GOOD], [BAD], "there is no prompt"),
        (" yes", " no", "prompt is empty once"),
        ("Q ", "Q x", "chosen is empty once"),
        ([USER, GOOD, USER], [USER, GOOD, GOOD], "chosen begins with a message of role 'user'"),
    ],
)
def test_faults_of_implicit_prompts(chosen: Any, rejected: Any, expected: str) -> None:
    problem = check_pair({"chosen": chosen, "rejected": rejected}, explicit_prompt=False)
    assert isinstance(problem, Problem)
    assert problem.text.startswith(expected)


def test_the_checks_of_the_texts_can_be_left_out_but_not_those_of_the_form() -> None:
    same = {"prompt": "q", "chosen": "same", "rejected": "same"}
    assert check_pair(same, explicit_prompt=True, texts=False) == Pair("q", "same", "same")
    assert isinstance(check_pair({**same, "chosen": 3}, explicit_prompt=True, texts=False), Problem)


short = st.text(alphabet=" \t\nab", max_size=6)
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": short}), max_size=3
)
anything = st.one_of(short, messages, st.none(), st.integers(), st.lists(short, max_size=2))


def has_text(part: Any) -> bool:
    if isinstance(part, str):
        return bool(part.strip())
    return bool(part) and all(message["content"].strip() for message in part)


@given(prompt=anything, chosen=anything, rejected=anything, explicit=st.booleans())
def test_no_empty_and_no_identical_text_ever_passes(prompt: Any, chosen: Any, rejected: Any, explicit: bool) -> None:
    checked = check_pair({"prompt": prompt, "chosen": chosen, "rejected": rejected}, explicit_prompt=explicit)
    if isinstance(checked, Pair):
        assert has_text(checked.prompt)
        assert has_text(checked.chosen)
        assert has_text(checked.rejected)
        assert checked.chosen != checked.rejected
        assert type(checked.prompt) is type(checked.chosen) is type(checked.rejected)


@given(text=st.text(min_size=1))
def test_a_text_passes_exactly_if_it_has_a_visible_character(text: str) -> None:
    assert isinstance(check_text(text, "prompt"), Problem) == (not text.strip())
