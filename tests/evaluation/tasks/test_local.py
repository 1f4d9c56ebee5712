from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from loralign.errors import ConfigError, DataError
from loralign.evaluation.tasks.local import LOCAL_TASKS, local_task
from tests.evaluation.tasks.files import (
    exchange,
    fact,
    gsm8k_file,
    mmlu_file,
    solved_facts_file,
    sst2_file,
    write,
)

FILES = {"sst2": sst2_file, "gsm8k": gsm8k_file, "mmlu": mmlu_file}


@pytest.mark.parametrize("name", LOCAL_TASKS)
def test_a_configuration_is_plain_yaml_of_the_harness(name: str, tmp_path: Path) -> None:
    path = FILES[name](tmp_path)
    config = local_task(name, path)
    assert yaml.safe_load(yaml.safe_dump(config)) == config
    assert config["task"] == f"local_{name}"
    assert config["dataset_path"] == "json"
    assert config["dataset_kwargs"] == {"data_files": {"test": str(path.resolve())}}
    assert config["num_fewshot"] == 0
    from lm_eval.tasks import TaskManager

    loaded = TaskManager(include_defaults=False).load([config | {"dataset_kwargs": {
        "data_files": {"test": str(path)}, "cache_dir": str(tmp_path / "cache")}}])["tasks"]  # fmt: skip
    assert list(loaded) == [f"local_{name}"]


def test_as_many_solved_examples_as_there_are(tmp_path: Path) -> None:
    config = local_task("mmlu", mmlu_file(tmp_path), examples=solved_facts_file(tmp_path))
    assert (config["num_fewshot"], config["fewshot_split"]) == (2, "examples")
    assert local_task("gsm8k", gsm8k_file(tmp_path), examples=gsm8k_file(tmp_path))["num_fewshot"] == 5
    assert local_task("sst2", sst2_file(tmp_path), examples=sst2_file(tmp_path))["num_fewshot"] == 4


def test_a_subject_without_a_solved_example_is_refused(tmp_path: Path) -> None:
    solved = write(tmp_path / "solved.jsonl", [fact("colours", "What is grass like?", ["blue", "green"], 1)])
    with pytest.raises(DataError, match="'numbers' has no solved example"):
        local_task("mmlu", mmlu_file(tmp_path), examples=solved)


SST2, GSM8K = exchange("Good?", "positive"), exchange("1 + 1?", "#### 2")
MMLU = fact("colours", "What is grass like?", ["blue", "green"], 1)


@pytest.mark.parametrize(
    ("name", "good", "bad", "words"),
    [
        ("sst2", SST2, exchange("Good?", "great"), "the answer is 'great'"),
        ("sst2", SST2, exchange("17", "positive"), "digits alone"),
        ("sst2", SST2, {"messages": SST2["messages"][:1]}, "not one message of the user and one of the assistant"),
        ("sst2", SST2, {"text": "Good?"}, "not one message of the user"),
        ("sst2", SST2, exchange("", "positive"), "message 1 of messages is empty"),
        ("gsm8k", GSM8K, exchange("1 + 1?", "2"), "does not end with #### and a number"),
        ("gsm8k", GSM8K, exchange("1 + 1?", "#### 2 pears"), "does not end with #### and a number"),
        ("gsm8k", GSM8K, {"messages": GSM8K["messages"] * 2}, "not one message of the user"),
        ("mmlu", MMLU, MMLU | {"answer": 2}, "the answer is 2"),
        ("mmlu", MMLU, MMLU | {"answer": -1}, "the answer is -1"),
        ("mmlu", MMLU, MMLU | {"answer": "B"}, "the answer is 'B'"),
        ("mmlu", MMLU, MMLU | {"answer": True}, "the answer is True"),
        ("mmlu", MMLU, MMLU | {"choices": ["blue"]}, "choices is not a list of texts"),
        ("mmlu", MMLU, MMLU | {"choices": [1, 2]}, "choices is not a list of texts"),
        ("mmlu", MMLU, MMLU | {"choices": None}, "choices is not a list of texts"),
        ("mmlu", MMLU, MMLU | {"question": " "}, "question is missing"),
        ("mmlu", MMLU, {key: value for key, value in MMLU.items() if key != "subject"}, "subject is missing"),
    ],
)
def test_a_bad_row_is_named_by_its_line(
    tmp_path: Path, name: str, good: dict[str, Any], bad: dict[str, Any], words: str
) -> None:
    path = write(tmp_path / "rows.jsonl", [good, bad])
    with pytest.raises(DataError, match=f"rows.jsonl:2: .*{words}"):
        local_task(name, path)
    write(path, [good])
    assert local_task(name, path)["task"] == f"local_{name}"


def test_files_and_names_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no task on local files named 'sst3' .*gsm8k, mmlu, sst2"):
        local_task("sst3", tmp_path)
    with pytest.raises(DataError, match=r"nowhere.jsonl: no such file"):
        local_task("sst2", tmp_path / "nowhere.jsonl")
    with pytest.raises(DataError, match="not a file of JSON"):
        local_task("sst2", write(tmp_path / "rows.csv", []))
    (tmp_path / "rows.jsonl").write_text("{")
    with pytest.raises(DataError, match=r"rows.jsonl:1: not valid JSON"):
        local_task("sst2", tmp_path / "rows.jsonl")
