from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loralign.data import load_alignment_data, load_alignment_prompts, overlap
from loralign.data.alignment import Split
from loralign.errors import DataError
from tests.data.preference_rows import message

Write = Callable[..., str]
MISSING = object()


def row(number: int = 0, **changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "prompt": [message("user", f"question {number}")],
        "completion": [message("assistant", f"answer {number}")],
        "label": "unsafe",
        "category": "hate",
    }
    return {key: value for key, value in {**made, **changes}.items() if value is not MISSING}


def failure(load: Callable[..., Any], *arguments: Any, **options: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        load(*arguments, **options)
    assert caught.value.place
    assert caught.value.fix
    return caught.value


@pytest.mark.parametrize(
    "form",
    [
        row(),
        row(prompt="question 0", completion="answer 0"),
        row(prompt="question 0"),
        row(completion=MISSING, response="answer 0"),
        row(prompt=MISSING, completion=MISSING, messages=[*row()["prompt"], *row()["completion"]]),
        row(messages=[message("user", "not looked at")]),
        row(source="elsewhere"),
    ],
    ids=["messages", "texts", "mixed", "response", "conversation", "both", "more columns"],
)
def test_each_form_of_a_row(write: Write, form: dict[str, Any]) -> None:
    assert load_alignment_data(write(form)).to_list() == [row()]


def test_earlier_turns_belong_to_the_prompt(write: Write) -> None:
    talk = [message("system", "s"), message("user", "a"), message("assistant", "b"), message("user", "c")]
    asked = load_alignment_data(write({"messages": [*talk, message("assistant", "d")], "label": "safe"}))
    assert asked.to_list() == [
        {"prompt": talk, "completion": [message("assistant", "d")], "label": "safe", "category": ""}
    ]


def test_columns_are_the_same_whatever_the_data(write: Write) -> None:
    bare = load_alignment_data(write(row(category=MISSING)))
    assert bare.features == load_alignment_data().features
    assert bare["category"] == [""]


def test_sources_are_joined_and_may_give_the_label(write: Write) -> None:
    refused = write(row(0, label=MISSING), row(1, label="safe"), name="refused.jsonl")
    answered = write(row(2, label=MISSING), name="answered.jsonl")
    loaded = load_alignment_data([f"unsafe={refused}", f"safe={answered}"])
    assert loaded["label"] == ["unsafe", "unsafe", "safe"]
    assert [prompt[0]["content"] for prompt in loaded["prompt"]] == ["question 0", "question 1", "question 2"]


def test_a_default_label_is_for_rows_without_one(write: Write) -> None:
    path = write(row(0, label=MISSING), row(1, label="safe"), row(2, label=""))
    assert load_alignment_data(path, label="unsafe")["label"] == ["unsafe", "safe", "unsafe"]
    error = failure(load_alignment_data, path)
    assert (error.place, error.problem) == (f"{path}:1", "the label is missing; 2 rows are bad, this is the first")


def test_a_split_column_chooses_the_rows(write: Write) -> None:
    path = write(row(0, split="train"), row(1, split="validation"), row(2, split="train"), row(3, split="test"))
    numbers = {
        split: [prompt[0]["content"][-1] for prompt in load_alignment_data(path, split)["prompt"]]
        for split in ("train", "validation", "all")
    }
    assert numbers == {"train": ["0", "2"], "validation": ["1"], "all": ["0", "1", "2", "3"]}


def test_faults_of_another_split_are_left_alone(write: Write) -> None:
    path = write(row(0, split="train"), row(1, split="validation", label="bad"))
    assert len(load_alignment_data(path)) == 1
    assert "unknown label" in failure(load_alignment_data, path, "validation").problem


def test_a_file_without_splits_is_for_training(write: Write) -> None:
    path = write(row(0), row(1))
    assert len(load_alignment_data(path)) == len(load_alignment_data(path, "all")) == 2
    error = failure(load_alignment_data, path, "validation")
    assert error.place == path
    assert "no column 'split'" in error.problem


@pytest.mark.parametrize("name", ["kept", "kept[1]"])
def test_splits_of_a_dataset_directory(tmp_path: Path, name: str) -> None:
    parts = {"train": [row(0), row(1)], "validation": [row(2)]}
    datasets.DatasetDict({part: datasets.Dataset.from_list(rows) for part, rows in parts.items()}).save_to_disk(
        tmp_path / name
    )
    splits: tuple[Split, ...] = ("train", "validation", "all", "held back")
    assert [len(load_alignment_data(str(tmp_path / name), split)) for split in splits] == [2, 1, 3, 1]


@pytest.mark.parametrize("load", [load_alignment_data, load_alignment_prompts])
def test_a_dataset_directory_without_splits_is_like_a_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, load: Callable[..., Any]
) -> None:
    path = str(tmp_path / "kept")
    datasets.Dataset.from_list([row(0), row(1)]).save_to_disk(path)
    for split in ("train", "all", "held back"):
        assert [prompt[0]["content"] for prompt in load(path, split)["prompt"]] == ["question 0", "question 1"]
    assert not caplog.records
    error = failure(load, path, "validation")
    assert (error.place, error.problem) == (path, "no column 'split' says which rows are for validation")


def test_a_split_column_divides_a_dataset_directory(tmp_path: Path) -> None:
    path = str(tmp_path / "kept")
    rows = [row(0, split="train"), row(1, split="validation"), row(2, split="train")]
    datasets.Dataset.from_list(rows).save_to_disk(path)
    splits: tuple[Split, ...] = ("train", "validation", "all", "held back")
    assert [len(load_alignment_data(path, split)) for split in splits] == [2, 1, 3, 1]


def test_a_hub_name_is_looked_up(offline: None) -> None:
    error = failure(load_alignment_data, "nobody/must-survive")
    assert error.place == "nobody/must-survive"
    assert "not available on the hub" in error.problem


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (row(1, label="harmful"), "unknown label 'harmful'"),
        (row(1, label="Unsafe"), "unknown label 'Unsafe'"),
        (row(1, label=0), "unknown label 0"),
        (row(1, label=["unsafe"]), "unknown label ['unsafe']"),
        (row(1, label=None), "the label is missing"),
        (row(1, label=MISSING), "the label is missing"),
        (row(1, category=3), "the category 3 is not text"),
        (row(1, prompt=""), "prompt is empty"),
        (row(1, prompt=[]), "prompt is empty"),
        (row(1, prompt=5), "prompt is 5 (int), not text or messages"),
        (row(1, prompt=MISSING), "prompt is missing"),
        (row(1, prompt=[message("assistant", "a")]), "prompt ends with a message of role 'assistant'"),
        (row(1, completion="  "), "completion is empty"),
        (row(1, completion=None), "completion is missing"),
        (row(1, completion={"a": 1}), "completion is {'a': 1} (dict), not text or messages"),
        (row(1, completion=[{"role": "assistant"}]), "message 1 of completion has no content"),
        (row(1, completion=[message("user", "a")]), "completion is not the assistant's answer: its roles are user"),
        (row(1, completion=[message("tool", "a")]), "completion is not the assistant's answer: its roles are tool"),
        (
            row(1, completion=[message("assistant", "a"), message("user", "b"), message("assistant", "c")]),
            "completion is not the assistant's answer: its roles are assistant, user, assistant",
        ),
        (row(1, prompt="Question  0", label="safe"), "this prompt is safe, but at "),
        (row(1, completion="\ud800"), "completion holds half a surrogate pair"),
    ],
)
def test_every_fault_of_a_row_names_its_line(write: Write, bad: dict[str, Any], problem: str) -> None:
    path = write(row(0), "", bad, row(2))
    error = failure(load_alignment_data, path)
    assert error.place == f"{path}:3"
    assert error.problem.startswith(problem)
    assert "rows are bad" not in error.problem


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "messages is empty"),
        (None, "messages is missing"),
        ("talk", "messages is str, not a list of messages"),
        ([message("assistant", "b")], "messages holds no prompt before the response"),
        ([message("user", "a")], "messages ends with a message of role 'user'"),
        (
            [message("system", "a"), message("assistant", "b")],
            "messages before the response ends with a message of role",
        ),
        ([message("user", ""), message("assistant", "b")], "message 1 of messages is empty"),
    ],
)
def test_every_fault_of_a_conversation(write: Write, messages: Any, problem: str) -> None:
    path = write({"messages": messages, "label": "safe"})
    error = failure(load_alignment_data, path)
    assert error.place == f"{path}:1"
    assert error.problem.startswith(problem)


def test_bad_rows_are_counted_over_all_sources(write: Write) -> None:
    first = write(row(0), row(1, label="x"), name="a.jsonl")
    second = write(row(2, prompt=""), row(3, label=3, category=4), name="b.jsonl")
    error = failure(load_alignment_data, [first, second])
    assert error.place == f"{first}:2"
    assert error.problem == "unknown label 'x'; 3 rows are bad, this is the first"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (
            {"promt": "a", "completion": "b", "label": "safe"},
            "no column 'prompt' among: promt, completion, label; is it",
        ),
        ({"prompt": "a", "answer": "b", "label": "safe"}, "no column 'completion' among: prompt, answer, label"),
        (
            {"prompt": "a", "completion": "b", "labels": "safe"},
            "no column 'label' among: prompt, completion, labels; is",
        ),
        ({"text": "a"}, "no column 'prompt' among: text"),
    ],
)
def test_a_missing_column_is_named(write: Write, given: dict[str, Any], problem: str) -> None:
    path = write(given)
    error = failure(load_alignment_data, path)
    assert error.place == path
    assert error.problem.startswith(problem)


@pytest.mark.parametrize(
    ("sources", "options", "problem"),
    [
        ("builtin", {"split": "test"}, "no split 'test'"),
        ("builtin", {"label": "good"}, "no label 'good'"),
        ("builtin:test", {}, "the bundled data has no split 'test'"),
        ("unsafe=builtin", {}, "the bundled data has labels of its own"),
        ("harmful=a.jsonl", {}, "no label 'harmful'"),
        ("nowhere.jsonl", {}, "no such file or directory"),
        ([], {}, "no data is named"),
    ],
)
def test_what_cannot_be_asked_for(sources: Any, options: dict[str, Any], problem: str) -> None:
    for load in (load_alignment_data, load_alignment_prompts):
        with pytest.raises(DataError) as caught:
            load(sources, **options)
        assert caught.value.problem.startswith(problem)
        assert caught.value.fix


def test_a_split_without_rows_and_a_row_without_split(write: Write) -> None:
    error = failure(load_alignment_data, write(row(0, split="train")), "validation")
    assert error.problem == "no row of the split 'validation'"
    path = write(row(0, split="train"), row(1), name="gap.jsonl")
    error = failure(load_alignment_data, path)
    assert (error.place, error.problem) == (f"{path}:2", "the split is missing")


def test_repeated_rows_are_reported_and_kept(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    path = write(row(0), row(1), row(0, prompt=" QUESTION\n0"), row(1), row(1, completion="another answer"))
    with caplog.at_level(logging.WARNING, "loralign"):
        assert len(load_alignment_data(path)) == 5
    assert [record.getMessage() for record in caplog.records] == [
        f"2 rows occur more than once: {path}:3 is the same as {path}:1"
    ]


@pytest.mark.parametrize(
    "form",
    [
        row(prompt="question 0", completion=MISSING),
        row(completion=MISSING),
        row(),
        row(completion=None),
        row(prompt=MISSING, completion=MISSING, messages=row()["prompt"]),
        row(prompt=MISSING, completion=MISSING, messages=[*row()["prompt"], *row()["completion"]]),
    ],
    ids=["text", "messages", "answered", "unanswered", "asking", "conversation"],
)
def test_each_form_of_a_prompt(write: Write, form: dict[str, Any]) -> None:
    assert load_alignment_prompts(write(form)).to_list() == [row(completion=MISSING)]


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ({"prompt": "", "label": "safe"}, "prompt is empty"),
        ({"prompt": "a"}, "the label is missing"),
        ({"prompt": [message("assistant", "a")], "label": "safe"}, "prompt ends with a message of role 'assistant'"),
    ],
)
def test_every_fault_of_a_prompt(write: Write, bad: dict[str, Any], problem: str) -> None:
    path = write({"prompt": "fine", "label": "safe"}, bad)
    error = failure(load_alignment_prompts, path)
    assert error.place == f"{path}:2"
    assert error.problem.startswith(problem)


def test_prompts_of_conversations_that_are_none(write: Write) -> None:
    for messages, problem in ((None, "messages is missing"), ([message("assistant", "a")], "messages ends with")):
        path = write({"messages": messages, "label": "safe"})
        assert failure(load_alignment_prompts, path).problem.startswith(problem)
    assert failure(load_alignment_prompts, write({"question": "a", "label": "safe"})).problem.startswith(
        "no column 'pro"
    )


def test_overlap_reads_prompts_in_every_form() -> None:
    talk = [message("system", "Be kind."), message("user", "How are\nyou?")]
    rows: list[dict[str, Any]] = [
        {"prompt": "how are you?"},
        {"prompt": [message("user", "How are you? ")], "completion": "Fine"},
        {"prompt": talk},
        {"messages": [*talk, message("assistant", "Fine")]},
        {"messages": talk},
        {"text": "HOW ARE YOU?"},
    ]
    for first in rows:
        for second in rows:
            assert overlap([first], [second]) == 1
        assert overlap(datasets.Dataset.from_list([first]), [{"prompt": "Who are you?"}]) == 0
    assert overlap([{"messages": [{"role": "user", "content": None}]}], rows) == 0


def test_overlap_needs_prompts() -> None:
    error = failure(overlap, [{"prompt": "a"}], [{"input_ids": [1]}])
    assert error.problem == "no column of prompts among: input_ids"


@given(st.sets(st.integers(0, 9)), st.sets(st.integers(0, 9)), st.data())
def test_overlap_counts_the_prompts_in_common(first: set[int], second: set[int], data: st.DataObject) -> None:
    def spelt(numbers: set[int]) -> list[dict[str, Any]]:
        rows = [
            {
                "prompt": data.draw(st.sampled_from(["Ask", "ASK", " ask "]))
                + data.draw(st.sampled_from([" ", "\n", " \t"]))
                + str(n)
            }
            for n in numbers
        ]
        return rows + rows[: data.draw(st.integers(0, len(rows)))]

    assert overlap(spelt(first), spelt(second)) == overlap(spelt(second), spelt(first)) == len(first & second)


def test_every_kind_of_file_gives_the_same_rows(write: Write, tmp_path: Path) -> None:
    rows = [row(number) for number in range(3)]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "data.parquet")
    (tmp_path / "data.json").write_text(json.dumps(rows))
    for path in (write(*rows), str(tmp_path / "data.parquet"), str(tmp_path / "data.json")):
        assert load_alignment_data(path).to_list() == rows
