from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trl import SFTConfig, SFTTrainer

from loralign.data import load_task
from loralign.errors import DataError
from tests.data.preference_rows import message
from tests.evaluation.models import build, character_tokenizer

Write = Callable[..., str]
EXPECTED = {"prompt": [message("user", "Add 1 and 2.")], "completion": [message("assistant", "3")]}
FORMS: dict[str, dict[str, Any]] = {
    "conversation": {"messages": [*EXPECTED["prompt"], *EXPECTED["completion"]]},
    "pair": EXPECTED,
    "texts": {"prompt": "Add 1 and 2.", "completion": "3"},
    "response": {"prompt": "Add 1 and 2.", "response": "3"},
    "instruction": {"instruction": "Add 1 and 2.", "input": "", "output": "3"},
    "no input": {"instruction": "Add 1 and 2.", "output": "3"},
    "pair first": {**EXPECTED, "messages": [], "instruction": "no", "output": "no", "text": "no"},
    "conversation second": {"messages": [*EXPECTED["prompt"], *EXPECTED["completion"]], "prompt": "no", "text": "no"},
    "instruction third": {"instruction": "Add 1 and 2.", "output": "3", "text": "no", "unsafe": False},
}


def failure(*arguments: Any, **options: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        load_task(*arguments, **options)
    assert caught.value.place
    assert caught.value.fix
    return caught.value


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_each_form_of_a_row(write: Write, form: dict[str, Any]) -> None:
    assert load_task(write(form, form)).to_list() == [EXPECTED, EXPECTED]


def test_an_input_follows_its_instruction(write: Write) -> None:
    path = write({"instruction": "Translate.", "input": "chat", "output": "cat"})
    assert load_task(path)[0]["prompt"] == [message("user", "Translate.\n\nchat")]


def test_only_the_last_turn_is_the_response(write: Write) -> None:
    talk = [message("system", "s"), message("user", "a"), message("assistant", "b"), message("user", "c")]
    loaded = load_task(write({"messages": [*talk, message("assistant", "d")]}))
    assert loaded.to_list() == [{"prompt": talk, "completion": [message("assistant", "d")]}]


def test_text_stays_text(write: Write) -> None:
    assert load_task(write({"text": "Once upon a time"})).to_list() == [{"text": "Once upon a time"}]


@pytest.mark.parametrize(("limit", "count"), [(None, 5), (1, 1), (3, 3), (9, 5)])
def test_a_limit_takes_the_first_rows(write: Write, tmp_path: Path, limit: int | None, count: int) -> None:
    rows = [{"prompt": str(number), "completion": "x"} for number in range(5)]
    write(*rows[:2], name="a.jsonl")
    write(*rows[2:], name="b.jsonl")
    loaded = load_task(str(tmp_path / "*.jsonl"), limit=limit)
    assert [row["prompt"][0]["content"] for row in loaded] == [str(number) for number in range(count)]


def test_rows_past_the_limit_are_not_looked_at(write: Write) -> None:
    assert len(load_task(write(EXPECTED, {"prompt": ""}), limit=1)) == 1


@pytest.mark.parametrize("form", ["conversation", "texts", "instruction", "text"])
def test_sft_trains_on_the_response_alone(write: Write, tmp_path: Path, form: str) -> None:
    row = {"text": "Add 1 and 2. 3"} if form == "text" else FORMS[form]
    with warnings.catch_warnings():
        # TRL's configuration sets an option by a name that transformers has replaced.
        warnings.simplefilter("ignore", FutureWarning)
        settings = SFTConfig(output_dir=str(tmp_path), report_to=[], use_cpu=True, gradient_checkpointing=False)
    tokenizer = character_tokenizer()
    trainer = SFTTrainer(build("llama"), args=settings, train_dataset=load_task(write(row)), processing_class=tokenizer)
    labelled = [token for token in trainer.train_dataset[0]["labels"] if token != -100]
    expected = "Add 1 and 2. 3<|im_end|>" if form == "text" else "3<|im_end|>\n"
    assert tokenizer.decode(labelled) == expected


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ({"prompt": "", "completion": "a"}, "prompt is empty"),
        ({"prompt": "a", "completion": None}, "completion is missing"),
        ({"prompt": "a", "completion": 3}, "completion is 3 (int), not text or messages"),
        ({"prompt": "a", "completion": [message("user", "b")]}, "completion is not the assistant's answer"),
        ({"prompt": [message("assistant", "a")], "completion": "b"}, "prompt ends with a message of role 'assistant'"),
    ],
)
def test_every_fault_of_a_pair(write: Write, bad: dict[str, Any], problem: str) -> None:
    path = write(EXPECTED, bad)
    error = failure(path)
    assert error.place == f"{path}:2"
    assert error.problem.startswith(problem)


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ({"messages": [message("user", "a")]}, "messages ends with a message of role 'user'"),
        ({"messages": [message("assistant", "a")]}, "messages holds no prompt"),
        ({"messages": "a"}, "messages is str, not a list of messages"),
        ({"instruction": "", "output": "a"}, "instruction is empty"),
        ({"instruction": "a", "output": None}, "output is missing"),
        ({"instruction": "a", "output": [message("assistant", "b")]}, "output is list, not text"),
        ({"instruction": "a", "input": 3, "output": "b"}, "input is int, not text"),
        ({"text": " "}, "text is empty"),
        ({"text": None}, "text is missing"),
        ({"text": [message("user", "a")]}, "text is list, not text"),
    ],
)
def test_every_fault_of_other_rows(write: Write, bad: dict[str, Any], problem: str) -> None:
    path = write(bad)
    error = failure(path)
    assert error.place == f"{path}:1"
    assert error.problem.startswith(problem)


def test_bad_rows_are_counted(write: Write) -> None:
    path = write(EXPECTED, {**EXPECTED, "prompt": ""}, {**EXPECTED, "completion": ""})
    assert failure(path).problem == "prompt is empty; 2 rows are bad, this is the first"


def test_text_and_conversations_are_never_mixed(write: Write, tmp_path: Path) -> None:
    text, chat = write({"text": "a"}, name="a.jsonl"), write(EXPECTED, name="b.jsonl")
    error = failure(str(tmp_path / "*.jsonl"))
    assert error.place == f"{chat}:1"
    assert error.problem == f"this row is a prompt with its response, but {text}:1 is text"


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"question": "a", "answer": "b"}, "no column 'prompt' among: question, answer"),
        (
            {"prompt": "a", "completions": "b"},
            "no column 'completion' among: prompt, completions; is it 'completions'?",
        ),
        ({"instruction": "a", "response": "b"}, "no column 'prompt' among: instruction, response"),
    ],
)
def test_a_missing_column_is_named(write: Write, columns: dict[str, Any], problem: str) -> None:
    path = write(columns)
    error = failure(path)
    assert error.place == path
    assert error.problem == problem


@pytest.mark.parametrize(
    ("source", "options", "problem"),
    [
        ("builtin:test", {}, "the bundled task has no split 'test'"),
        ("math=a.jsonl", {}, "task data serves no objective"),
        ("nowhere.jsonl", {}, "no such file or directory"),
        ("a.jsonl", {"limit": 0}, "a limit of 0 rows"),
    ],
)
def test_what_cannot_be_asked_for(source: str, options: dict[str, Any], problem: str) -> None:
    assert failure(source, **options).problem.startswith(problem)
