from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from trl import SFTConfig, SFTTrainer

from loralign.data import Completion, completion_batches, tokenise_completions
from loralign.data.batching import padded_length
from loralign.errors import DataError, ModelError
from tests.data.preference_rows import message
from tests.evaluation.models import CHATML, DIVERGING, build, character_tokenizer


def conversations(count: int = 8) -> Dataset:
    return Dataset.from_list(
        [
            {
                "prompt": [
                    *([message("system", "Be brief.")] if number % 3 == 0 else []),
                    *([message("user", "Hi"), message("assistant", "Hello")] if number % 4 == 1 else []),
                    message("user", f"Question {number}" + "?" * (1 + 9 * (number % 4))),
                ],
                "completion": [message("assistant", f"Answer {number * number}" + " yes" * (number % 5))],
                "label": ("unsafe", "safe")[number % 2],
            }
            for number in range(count)
        ]
    )


def plain(count: int = 6) -> Dataset:
    return Dataset.from_list(
        [
            {"prompt": f"Once {'upon ' * number}", "completion": f"a time {number}" + "<|im_end|>" * (number % 2)}
            for number in range(count)
        ]
    )


def texts(count: int = 6) -> Dataset:
    return Dataset.from_list(
        [{"text": "Once upon " * (1 + number) + "<|im_end|>" * (number % 2)} for number in range(count)]
    )


def sft_trainer(dataset: Dataset, template: str, max_length: int | None, directory: Path) -> SFTTrainer:
    with warnings.catch_warnings():
        # TRL's configuration sets an option by a name that transformers has replaced.
        warnings.simplefilter("ignore", FutureWarning)
        settings = SFTConfig(
            output_dir=str(directory), max_length=max_length, report_to=[], use_cpu=True, gradient_checkpointing=False
        )
    tokenizer = character_tokenizer(template)
    return SFTTrainer(build("llama"), args=settings, train_dataset=dataset, processing_class=tokenizer)


@pytest.mark.parametrize("max_length", [None, 58], ids=["whole", "cut"])
@pytest.mark.parametrize("template", [CHATML, DIVERGING], ids=["chatml", "diverging"])
@pytest.mark.parametrize("make", [conversations, plain, texts])
def test_ids_and_responses_are_those_that_sft_trains_on(
    make: Callable[[], Dataset], template: str, max_length: int | None, tmp_path: Path
) -> None:
    theirs = sft_trainer(make(), template, max_length, tmp_path).train_dataset
    ours = tokenise_completions(make(), character_tokenizer(template), max_length)
    assert [one.ids for one in ours] == theirs["input_ids"][:]
    assert [[-100] * one.prompt_length + one.ids[one.prompt_length :] for one in ours] == theirs["labels"][:]
    if max_length is not None and make is not plain:
        assert max(len(one.ids) for one in ours) == max_length


def test_rows_without_response_tokens_are_dropped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    data, tokenizer = conversations(), character_tokenizer()
    whole = tokenise_completions(data, tokenizer)
    max_length = sorted(one.prompt_length for one in whole)[4]
    with caplog.at_level(logging.WARNING, "loralign"):
        kept = tokenise_completions(data, tokenizer, max_length)
    expected = [one for one in whole if one.prompt_length < max_length]
    assert 0 < len(expected) < len(whole)
    assert [(one.row, one.label) for one in kept] == [(one.row, one.label) for one in expected]
    assert [one.ids for one in kept] == [one.ids[:max_length] for one in expected]
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{len(data) - len(kept)} of {len(data)} rows have no response token")


def test_labels_that_are_text_are_kept() -> None:
    rows = [{"prompt": "a", "completion": "b", "label": label} for label in ("unsafe", 1, None)]
    assert [one.label for one in tokenise_completions(rows, character_tokenizer())] == ["unsafe", "", ""]


def test_the_template_gets_tools_and_options() -> None:
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}{{ mood }}{{ tools[0]['function']['name'] }}"
    row = {"prompt": [message("user", "a")], "completion": [message("assistant", "b")]}
    tool = {"type": "function", "function": {"name": "hammer"}}
    for tools in ([tool], json.dumps([tool])):
        options = {"tools": tools, "chat_template_kwargs": {"mood": "sunny"}}
        (one,) = tokenise_completions([{**row, **options}], character_tokenizer(template))
        assert character_tokenizer().decode(one.ids) == "absunnyhammer"


def test_divergence_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "loralign"):
        tokenise_completions(conversations(4), character_tokenizer(DIVERGING))
    assert [record.getMessage()[:14] for record in caplog.records] == ["In 4 of 4 rows"]


@pytest.mark.parametrize(
    ("rows", "max_length", "problem"),
    [
        ([], None, "there are no rows"),
        ([{"prompt": "a", "label": "safe"}], None, "a row has no completion, only prompt, label"),
        ([{"completion": "a", "prompt": None}], None, "a row has no prompt"),
        ([{}], None, "a row has no prompt, only nothing"),
        (plain(), 2, "none of 6 rows has a response token within max_length 2"),
        (plain(), 0, "a limit of 0 tokens"),
    ],
)
def test_data_without_completions(rows: Any, max_length: int | None, problem: str) -> None:
    with pytest.raises(DataError) as caught:
        tokenise_completions(rows, character_tokenizer(), max_length)
    assert caught.value.problem.startswith(problem)
    assert caught.value.place
    assert caught.value.fix


def test_a_template_that_refuses_the_roles() -> None:
    template = "{{ raise_exception('no system role') }}"
    with pytest.raises(DataError, match=r"refuses the roles \['system', 'user'\]: no system role"):
        tokenise_completions(conversations(1), character_tokenizer(template))


def test_messages_need_a_template_and_texts_an_end_token() -> None:
    with pytest.raises(ModelError, match="no chat template"):
        tokenise_completions(conversations(), character_tokenizer(None))
    tokenizer = character_tokenizer()
    tokenizer.eos_token = None
    for rows in (plain(), texts()):
        with pytest.raises(ModelError, match="no end-of-text token"):
            tokenise_completions(rows, tokenizer)


@st.composite
def completion_lists(draw: st.DrawFn) -> list[Completion]:
    lengths = draw(st.lists(st.tuples(st.integers(0, 150), st.integers(1, 150)), max_size=20))
    return [
        # No two tokens are the same, so that any mix-up shows.
        Completion(list(range(1000 * row + 1, 1000 * row + 1 + prompt + response)), prompt, row=-row)
        for row, (prompt, response) in enumerate(lengths)
    ]


@given(completion_lists(), st.integers(1, 7), st.none() | st.integers(1, 400))
def test_every_completion_is_in_one_batch_and_labelled_on_its_response_only(
    completions: list[Completion], batch_size: int, limit: int | None
) -> None:
    batches = completion_batches(completions, batch_size, pad_id=0, limit=limit)
    assert sorted(row for batch in batches for row in batch.rows) == list(range(len(completions)))
    assert [len(batch.rows) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    for batch in batches:
        members = [completions[row] for row in batch.rows]
        length = padded_length(max(len(one.ids) for one in members), limit)
        for tensor in (batch.input_ids, batch.attention_mask, batch.labels):
            assert tensor.shape == (len(members), length)
            assert tensor.dtype == torch.int64
        for one, ids, mask, labels in zip(members, batch.input_ids, batch.attention_mask, batch.labels, strict=True):
            padding = length - len(one.ids)
            asked = max(one.prompt_length, 1)
            assert ids.tolist() == one.ids + [0] * padding
            assert mask.tolist() == [1] * len(one.ids) + [0] * padding
            assert labels.tolist() == [-100] * asked + one.ids[asked:] + [-100] * padding
            assert (labels != -100).sum() == one.response_length
    longest = [max(len(completions[row].ids) for row in batch.rows) for batch in batches]
    assert longest == sorted(longest, reverse=True)


def test_the_padding_token_may_be_one_that_responses_hold() -> None:
    (batch,) = completion_batches([Completion([5, 2, 2], 1)], 4, pad_id=2)
    assert batch.labels[0, :4].tolist() == [-100, 2, 2, -100]


def test_a_batch_moves_as_a_whole() -> None:
    (batch,) = completion_batches([Completion([5, 6], 1)], 1, pad_id=0)
    moved = batch.to("meta")
    assert {tensor.device.type for tensor in (moved.input_ids, moved.attention_mask, moved.labels)} == {"meta"}
    assert moved.rows == [0]


def test_a_batch_needs_rows() -> None:
    with pytest.raises(DataError, match="a batch of 0 rows"):
        completion_batches([], 0, pad_id=0)


def test_the_loss_of_a_batch_is_that_of_sft(tmp_path: Path) -> None:
    trainer = sft_trainer(conversations(), CHATML, 58, tmp_path)
    model = trainer.model.eval()
    (batch,) = completion_batches(tokenise_completions(conversations(), character_tokenizer(), 58), 8, pad_id=0)
    theirs = trainer.data_collator([dict(row) for row in trainer.train_dataset])
    with torch.no_grad():
        expected = model(**{key: theirs[key] for key in ("input_ids", "attention_mask", "labels")}).loss
        loss = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
