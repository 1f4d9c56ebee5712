from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset

from loralign.runs.guarding import judged_rows
from loralign.runs.kept_scores import ANSWER_TOKENS
from tests.evaluation import models


def probe(*lengths: int) -> Any:
    rows = [
        {"prompt": "a" * length, "label": ("unsafe", "safe")[index % 2], "category": "general"}
        for index, length in enumerate(lengths)
    ]
    return SimpleNamespace(probe=Dataset.from_list(rows))


def test_prompts_that_leave_no_room_for_an_answer_are_not_judged(caplog: pytest.LogCaptureFixture) -> None:
    """They would end a run after all its training."""
    loaded: Any = SimpleNamespace(model=models.build("llama"), tokenizer=models.character_tokenizer())
    room = loaded.model.config.max_position_embeddings - ANSWER_TOKENS
    asked: Any = SimpleNamespace(judged_prompts=4)
    own = len(loaded.tokenizer("")["input_ids"])
    with caplog.at_level(logging.WARNING, logger="loralign"):
        rows = judged_rows(probe(5, room - own, room - own + 1, 7), asked, loaded)
        assert sorted(map(len, rows["prompt"])) == [5, 7, room - own]
        assert judged_rows(probe(room + 1, room + 1), asked, loaded) is None
    told = [record.getMessage() for record in caplog.records]
    assert told == [f"{count} of the probe's prompts are too long to be answered and judged" for count in (1, 2)]
    assert judged_rows(probe(5, 7), SimpleNamespace(judged_prompts=0), loaded) is None  # type: ignore[arg-type]
