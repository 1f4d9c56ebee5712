from __future__ import annotations

from pathlib import Path

import pytest

from loralign.errors import ConfigError
from loralign.runs import parse_adapt_recipe
from loralign.runs.adapt import load_task_split
from tests.cli.guarding import write_task


def held_back(task: Path, *words: str) -> list[str]:
    recipe = parse_adapt_recipe(["--data", str(task), "--validation_samples", "5", *words])
    train, validation = load_task_split(recipe)
    assert len(train) == 11
    return [str(row) for row in validation]


def test_runs_that_differ_in_their_seed_hold_back_the_same_samples(tmp_path: Path) -> None:
    task = write_task(tmp_path / "task.jsonl")
    assert held_back(task, "--seed", "1") == held_back(task, "--seed", "2") == held_back(task)


def test_the_seed_of_the_split_chooses_the_samples(tmp_path: Path) -> None:
    task = write_task(tmp_path / "task.jsonl")
    assert held_back(task, "--split_seed", "1") != held_back(task)
    with pytest.raises(ConfigError, match="split_seed"):
        parse_adapt_recipe(["--data", str(task), "--split_seed", "-1"])
