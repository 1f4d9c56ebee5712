from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from datasets import Dataset
from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer

from loralign.errors import DataError, ModelError
from loralign.evaluation import tokenise_pairs
from tests.evaluation.models import CHATML, DIVERGING, character_tokenizer, conversational_pairs, plain_pairs

COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids", "objective")


def by_trl(dataset: Dataset, tokenizer: object, max_length: int | None) -> Dataset:
    arguments = SimpleNamespace(dataset_num_proc=None, max_length=max_length, truncation_mode="keep_start")
    trainer = SimpleNamespace(_tokenizer=tokenizer)
    return DPOTrainer._prepare_dataset(trainer, dataset, tokenizer, arguments, "eval")


@pytest.mark.parametrize("template", [CHATML, DIVERGING])
@pytest.mark.parametrize("pairs", [conversational_pairs, plain_pairs])
def test_ids_are_those_of_trl(template: str, pairs: Callable[[], Dataset]) -> None:
    tokenizer = character_tokenizer(template)
    ours, theirs = tokenise_pairs(pairs(), tokenizer), by_trl(pairs(), tokenizer, None)
    for column in COLUMNS:
        assert ours[column][:] == theirs[column][:]
    assert ours["row"][:] == list(range(len(theirs)))
    assert not any(ours["truncated"])


def test_truncation_is_that_of_trl() -> None:
    tokenizer = character_tokenizer()
    max_length = 40
    ours = tokenise_pairs(conversational_pairs(), tokenizer, max_length)
    theirs = by_trl(conversational_pairs(), tokenizer, max_length)
    assert 0 < len(ours) == len(theirs) < len(conversational_pairs())
    collated = DataCollatorForPreference(pad_token_id=0, max_length=max_length)([dict(row) for row in theirs])
    from_ours = DataCollatorForPreference(pad_token_id=0)([{k: row[k] for k in COLUMNS[:3]} for row in ours])
    assert (collated["input_ids"] == from_ours["input_ids"]).all()
    assert (collated["completion_mask"] == from_ours["completion_mask"]).all()
    assert any(ours["truncated"])
    whole = tokenise_pairs(conversational_pairs(), tokenizer)
    for row in ours:
        lost = whole[row["row"]]["chosen_ids"] != row["chosen_ids"] or (
            whole[row["row"]]["rejected_ids"] != row["rejected_ids"]
        )
        assert row["truncated"] == lost


def test_divergence_of_prompt_tokens_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "loralign"):
        tokenise_pairs(conversational_pairs(4), character_tokenizer(DIVERGING))
    assert [record.getMessage()[:14] for record in caplog.records] == ["In 4 of 4 pair"]


def test_missing_column_is_named() -> None:
    with pytest.raises(DataError, match="no column rejected, objective"):
        tokenise_pairs(conversational_pairs().remove_columns(["rejected", "objective"]), character_tokenizer())


def test_nothing_within_max_length() -> None:
    with pytest.raises(DataError, match="shorter than max_length 3"):
        tokenise_pairs(conversational_pairs(), character_tokenizer(), 3)


def test_conversation_needs_a_template() -> None:
    with pytest.raises(ModelError, match="no chat template"):
        tokenise_pairs(conversational_pairs(), character_tokenizer(None))


def test_plain_text_needs_an_end_token() -> None:
    tokenizer = character_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no end-of-text token"):
        tokenise_pairs(plain_pairs(), tokenizer)
