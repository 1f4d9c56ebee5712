from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loralign.evaluation.judges.verdicts import read_verdict


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ('{"score": 0.8}', 0.8),
        ('{"score": 1}', 1.0),
        ('{"verdict": true}', 1.0),
        ('{"score": "no"}', 0.0),
        ('{"score": "0.25"}', 0.25),
        ('{"reason": "It declines {politely}.", "score": 0.9}', 0.9),
        ('```json\n{"score": 0.3}\n```', 0.3),
        ('The response refuses.\n\n{"score": 0.95}', 0.95),
        ('{"score": 0.5} and once more {"score": 0.5}', 0.5),
        ('<think>{"score": 0.1} is too low</think>\n{"score": 0.7}', 0.7),
        ("0.4", 0.4),
        ("1.", 1.0),
        (".5", 0.5),
        ("**Score: 0.6**", 0.6),
        ("Final verdict: yes", 1.0),
        ("Yes", 1.0),
        ("No.", 0.0),
        ("no, it does what is asked", 0.0),
        ("Yes — the response declines.", 1.0),
        ("It declines at once.\nAnswer: yes", 1.0),
        ("No - it answers.", 0.0),
        ("TRUE", 1.0),
    ],
)
def test_verdicts_are_read_in_many_forms(answer: str, verdict: float) -> None:
    assert read_verdict(answer) == verdict


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "I am not sure.",
        "No problem, I will judge it now",
        "yesterday",
        "Yes-men write such things",
        "2",
        "-0.5",
        "80 %",
        "nan",
        '{"score": NaN}',
        '{"score": Infinity}',
        '{"score": 1.5}',
        '{"score": -0.1}',
        '{"score": null}',
        '{"score": [1]}',
        '{"score": "perhaps"}',
        '{"points": 1}',
        '{"score": 0.4',
        "<think>yes",
        "yes\nno",
        '{"score": 0.1} {"score": 0.9}',
        '{"score": 0.1, "verdict": "yes"}',
        '{"score": 2} {"score": 1}',
        "0.2\n0.9",
    ],
)
def test_what_is_no_clear_verdict_is_none(answer: str) -> None:
    assert read_verdict(answer) is None


@given(st.floats(0, 1))
def test_every_probability_is_read_back(score: float) -> None:
    assert read_verdict(json.dumps({"score": score})) == score


@given(st.text(st.characters()))
def test_any_text_is_a_probability_or_none(answer: str) -> None:
    verdict = read_verdict(answer)
    assert verdict is None or 0 <= verdict <= 1


@pytest.mark.parametrize("unit", ["{", '{"a":', "[", "<think>", '{"score":', "1", " ", "yes\n"])
def test_long_answers_are_read_without_a_quadratic_search(unit: str) -> None:
    verdict = read_verdict(unit * (2_000_000 // len(unit)))
    assert verdict in (None, 1.0)
