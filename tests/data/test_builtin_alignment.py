from __future__ import annotations

import difflib
import itertools
from collections import Counter
from typing import Any

import pytest

from loralign.data import load_alignment_data, load_preferences, overlap
from loralign.data.alignment import CATEGORIES, LABELS
from loralign.evaluation.refusal import PhraseJudge


def texts(part: str, label: str) -> list[str]:
    return [row[part][-1]["content"] for row in load_alignment_data(split="all") if row["label"] == label]


def alike(given: list[Any], limit: float) -> list[tuple[Any, Any]]:
    """The pairs of sequences whose difflib ratio reaches a limit."""
    found = []
    for one, other in itertools.combinations(given, 2):
        matcher = difflib.SequenceMatcher(None, one, other, autojunk=False)
        # Both quick ones are upper bounds of the ratio, and far cheaper.
        if matcher.real_quick_ratio() >= limit and matcher.quick_ratio() >= limit and matcher.ratio() >= limit:
            found.append((one, other))
    return found


def test_labels_categories_and_splits_are_balanced() -> None:
    whole, held_back = load_alignment_data(split="all"), load_alignment_data(split="validation")
    assert len(whole) == 400
    for rows, per_label, per_category in ((whole, {200}, {33, 34}), (held_back, {40}, {6, 7})):
        assert set(Counter(rows["label"]).values()) == per_label
        counts = Counter(zip(rows["label"], rows["category"], strict=True))
        assert counts.keys() == set(itertools.product(LABELS, CATEGORIES))
        assert set(counts.values()) == per_category


def test_the_splits_are_parts_of_the_whole_without_a_prompt_in_common() -> None:
    whole, train, held_back = (load_alignment_data(split=split) for split in ("all", "train", "validation"))
    assert len(train) + len(held_back) == len(whole)
    assert overlap(train, held_back) == 0
    assert overlap(whole, whole) == len(whole)
    assert load_alignment_data("builtin:validation").to_list() == held_back.to_list()


def test_no_prompt_is_one_of_the_bundled_preferences() -> None:
    for split in ("train", "validation"):
        assert overlap(load_alignment_data(split="all"), load_preferences("builtin", split=split).dataset) == 0


def test_a_row_is_one_question_and_one_answer() -> None:
    for row in load_alignment_data(split="all"):
        assert [turn["role"] for turn in row["prompt"]] == ["user"]
        assert [turn["role"] for turn in row["completion"]] == ["assistant"]
        for turn in (*row["prompt"], *row["completion"]):
            assert turn["content"] == turn["content"].strip()


def test_no_two_prompts_are_nearly_the_same() -> None:
    assert alike([text.casefold() for label in LABELS for text in texts("prompt", label)], 0.8) == []


@pytest.mark.parametrize("label", LABELS)
def test_no_two_responses_share_half_of_their_words(label: str) -> None:
    assert alike([text.casefold().split() for text in texts("completion", label)], 0.5) == []


def test_refusals_are_short_and_do_not_all_begin_alike() -> None:
    refusals = texts("completion", "unsafe")
    assert all(20 <= len(text.split()) <= 60 for text in refusals)
    openings: dict[int, Any] = {count: Counter(tuple(text.split()[:count]) for text in refusals) for count in (2, 3, 4)}
    assert max(openings[2].values()) < 50
    assert max(openings[3].values()) < 25
    assert len(openings[4]) > 150


@pytest.mark.parametrize(("label", "refused"), [("unsafe", 180), ("safe", 0)])
def test_the_judge_tells_refusals_from_answers(label: str, refused: int) -> None:
    judge = PhraseJudge()
    pairs = zip(texts("prompt", label), texts("completion", label), strict=True)
    found = sum(judge.is_refusal(prompt, response) for prompt, response in pairs)
    assert found >= refused if label == "unsafe" else found <= 2
