"""Values of a YAML recipe are what their fields take."""

from __future__ import annotations

from pathlib import Path

import pytest

from loralign.errors import ConfigError
from loralign.runs import parse_recipe


def recipe(directory: Path, text: str) -> list[str]:
    file = directory / "recipe.yaml"
    file.write_text(f"{text}\n")
    return ["--config", str(file), "--use_cpu", "true", "--bf16", "false"]


def test_steps_that_may_be_a_share_of_the_run_may_be_one_whatever_their_default(tmp_path: Path) -> None:
    assert parse_recipe(recipe(tmp_path, "warmup_steps: 0.3")).training.warmup_steps == 0.3
    assert parse_recipe(recipe(tmp_path, "warmup_steps: 4")).training.warmup_steps == 4


def test_a_count_is_a_whole_number(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_steps: 0.3 is no whole number"):
        parse_recipe(recipe(tmp_path, "max_steps: 0.3"))
    assert parse_recipe(recipe(tmp_path, "max_steps: 4.0")).training.max_steps == 4
