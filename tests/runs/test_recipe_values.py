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
    with pytest.raises(ConfigError, match=r"max_steps: 0\.3 is no whole number"):
        parse_recipe(recipe(tmp_path, "max_steps: 0.3"))
    assert parse_recipe(recipe(tmp_path, "max_steps: 4.0")).training.max_steps == 4


def test_a_mapping_is_what_labels_are_on_the_command_line(tmp_path: Path) -> None:
    text = "target_weights: {honest: 2}\ndata: {helpful: a.jsonl, honest: b.jsonl}\nvalidation_data: [c.jsonl]"
    found = parse_recipe(recipe(tmp_path, text))
    assert found.target_weights() == {"honest": 2.0}
    assert found.run.data == ["helpful=a.jsonl", "honest=b.jsonl"]


@pytest.mark.parametrize("text", ["model: 135", "guard: off", "data: [1]", "objectives: 3"])
def test_what_is_no_text_is_refused_where_text_belongs(text: str, tmp_path: Path) -> None:
    """YAML reads an unquoted off as false."""
    with pytest.raises(ConfigError, match=f"recipe.yaml: {text.partition(':')[0]}: .* is no text .write it in quotes"):
        parse_recipe(recipe(tmp_path, text))
