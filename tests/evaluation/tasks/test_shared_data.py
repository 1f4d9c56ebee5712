"""The forms of the real files, where a directory with them is named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from loralign.evaluation.tasks.harness import task_scores
from loralign.evaluation.tasks.local import local_task
from tests.evaluation.models import build, character_tokenizer

VARIABLE = "LORALIGN_SHARED_DATA"
pytestmark = pytest.mark.skipif(
    not os.environ.get(VARIABLE), reason=f"{VARIABLE} does not name a directory with tasks/ and capability/"
)
PATHS = {
    "sst2": ("tasks/sst2_validation.jsonl", "tasks/sst2_train.jsonl"),
    "gsm8k": ("tasks/gsm8k_test.jsonl", "tasks/gsm8k_train.jsonl"),
    "mmlu": ("capability/mmlu_test_2000.jsonl", "capability/mmlu_dev.jsonl"),
}


@pytest.mark.parametrize(("name", "shots"), [("sst2", 4), ("gsm8k", 5), ("mmlu", 5)])
def test_real_files_are_scored_with_and_without_solved_examples(name: str, shots: int) -> None:
    data = Path(os.environ[VARIABLE])
    documents, examples = (data / path for path in PATHS[name])
    for task, wanted in ((local_task(name, documents), 0), (local_task(name, documents, examples=examples), shots)):
        scores = task_scores(
            build("llama"), character_tokenizer(), [task], limit=3, max_new_tokens=8, show_progress=False
        )
        assert {(one.n, one.fewshot) for one in scores.scores} == {(3, wanted)}
