from __future__ import annotations

import pytest

from loralign.data import BUILTIN_OBJECTIVES, load_preferences


@pytest.mark.parametrize(("split", "count"), [("train", 96), ("validation", 32)])
def test_every_objective_has_its_pairs(split: str, count: int) -> None:
    loaded = load_preferences("builtin", split=split)
    assert loaded.objectives == BUILTIN_OBJECTIVES
    assert loaded.counts == dict.fromkeys(BUILTIN_OBJECTIVES, count)
    assert loaded.format == "conversational"
    assert load_preferences(f"builtin:{split}").fingerprint == loaded.fingerprint


def test_no_prompt_appears_twice_or_in_both_splits() -> None:
    rows = [row for split in ("train", "validation") for row in load_preferences("builtin", split=split).dataset]
    prompts = [" ".join(message["content"].casefold() for message in row["prompt"]) for row in rows]
    assert len(set(prompts)) == len(prompts) == 384


def test_conversations_end_with_the_user_and_are_answered_once() -> None:
    for row in load_preferences("builtin").dataset:
        assert row["prompt"][-1]["role"] == "user"
        for side in ("chosen", "rejected"):
            assert [message["role"] for message in row[side]] == ["assistant"]
