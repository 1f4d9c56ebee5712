from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from loralign.errors import ConfigError
from loralign.experiments.cell import base_settings, make_cell, recipe_of, recipe_words
from loralign.experiments.contents import contents_digest
from loralign.runs import parse_adapt_recipe


def test_equal_recipes_written_differently_are_one_cell(adapting: list[str], tmp_path: Path) -> None:
    base = base_settings("adapt", adapting)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("lambda_alignment: 10\nlearning_rate: 0.01\n")
    written = base_settings("adapt", [*adapting, "--config", str(recipe)])
    assert make_cell("adapt", base, {}, 3) == make_cell("adapt", written, {"lambda_alignment": 10.0}, 3)
    # A field at its default says nothing new.
    assert make_cell("adapt", base, {"guard_mode": "penalty"}, 3).key == make_cell("adapt", base, {}, 3).key


@pytest.mark.parametrize(
    ("overrides", "seed", "measures"),
    [({"lambda_alignment": 1.0}, 0, {}), ({"max_steps": 4}, 0, {}), ({}, 1, {}), ({}, 0, {"tasks": ["mmlu"]})],
)
def test_what_decides_the_outcome_decides_the_fingerprint(
    adapting: list[str], overrides: dict[str, float], seed: int, measures: dict[str, list[str]]
) -> None:
    base = base_settings("adapt", adapting)
    assert (
        make_cell("adapt", base, overrides, seed, measures).fingerprint != make_cell("adapt", base, {}, 0).fingerprint
    )


def test_where_a_run_goes_does_not_matter_but_what_it_reads_does(
    adapting: list[str], task: Path, tmp_path: Path
) -> None:
    first = make_cell("adapt", base_settings("adapt", [*adapting, "--output_dir", "here"]), {}, 0)
    assert first == make_cell("adapt", base_settings("adapt", [*adapting, "--output_dir", "there"]), {}, 0)
    copy = tmp_path / "task.jsonl"
    shutil.copy(task, copy)
    words = [str(copy) if word == str(task) else word for word in adapting]
    before = make_cell("adapt", base_settings("adapt", words), {}, 0)
    rows = copy.read_text().splitlines()
    copy.write_text("\n".join(rows[:-1]) + "\n")
    assert make_cell("adapt", base_settings("adapt", words), {}, 0).fingerprint != before.fingerprint


def test_a_cell_is_the_recipe_of_its_command(adapting: list[str]) -> None:
    cell = make_cell("adapt", base_settings("adapt", adapting), {"drift_budget": 0.25, "lora_r": 2}, 7)
    recipe = recipe_of(cell, "somewhere")
    assert (recipe.run.lora_r, recipe.guard.drift_budget, recipe.training.seed) == (2, 0.25, 7)
    assert (recipe.training.output_dir, recipe.run.resume) == ("somewhere", True)
    assert recipe.training.learning_rate == 1e-2
    command, *words = recipe_words(cell, "somewhere")
    assert command == "adapt"
    assert parse_adapt_recipe(words).settings() == recipe.settings()


def test_an_alignment_is_a_cell_too(model: Path) -> None:
    base = base_settings("align", ["--model", str(model), "--target_weights", "honest=2", "--beta", "0.2"])
    cell = make_cell("align", base, {"weighting": "norm"}, 1)
    recipe = recipe_of(cell, "out")
    assert (recipe.geometry.weighting, recipe.training.beta) == ("norm", 0.2)
    assert recipe.target_weights() == {"honest": 2.0}
    assert json.loads(json.dumps(dict(cell.settings))) == dict(cell.settings)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [({"lambda_alignmnet": 1}, "did you mean --lambda_alignment"), ({"guard_mode": "hold"}, "guard_mode")],
)
def test_a_wrong_override_is_refused_before_anything_runs(
    adapting: list[str], overrides: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        make_cell("adapt", base_settings("adapt", adapting), overrides, 0)


def test_contents_are_known_by_what_is_in_them(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("one")
    (tmp_path / "b.jsonl").write_text("one")
    assert contents_digest(str(tmp_path / "a.jsonl")) == contents_digest(str(tmp_path / "b.jsonl"))
    named = contents_digest(f"helpful={tmp_path / 'a.jsonl'}")
    assert named == contents_digest(str(tmp_path / "a.jsonl"))
    both, folder = contents_digest(str(tmp_path / "*.jsonl")), contents_digest(str(tmp_path))
    (tmp_path / "b.jsonl").write_text("other")
    assert contents_digest(str(tmp_path / "*.jsonl")) != both
    assert contents_digest(str(tmp_path)) != folder
    for nothing in ("builtin", "org/model", "", str(tmp_path / "missing"), "x" * 5000):
        assert contents_digest(nothing) is None
