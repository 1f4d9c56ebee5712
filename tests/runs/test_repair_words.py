from __future__ import annotations

from typing import Any

import pytest

from loralign.runs.repair_words import repair_sentence


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (0.345, 0.1, "drift fell from 0.345 to 0.100 nats"),
        (0.1, 0.12, "drift rose from 0.100 to 0.120 nats"),
        (0.345, 0.3451, "drift stayed at 0.345 nats"),
    ],
)
def test_the_sentence_says_what_drift_did(before: float, after: float, words: str) -> None:
    report: dict[str, Any] = {"strength": 1.0, "per_layer": False, "method": "random", "removed": 0.02, "met": None}
    run = {"report": report, "drift_before": {"value": before}, "drift_after": {"value": after}}
    assert words in repair_sentence(run)
