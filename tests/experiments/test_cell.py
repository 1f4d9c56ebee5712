from __future__ import annotations

import json
import shutil
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from loralign.errors import ConfigError
from loralign.experiments.cell import base_settings, make_cell, recipe_of, recipe_text
from loralign.experiments.contents import contents_digest
from loralign.experiments.measuring import Measures
from loralign.runs import parse_adapt_recipe
from loralign.runs.adapt_recipe import ADAPT
from loralign.runs.recipe import ALIGN
from loralign.runs.settings import plain


def test_equal_recipes_written_differently_are_one_cell(adapting: list[str], tmp_path: Path) -> None:
    base = base_settings("adapt", adapting)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("lambda_alignment: 10\nlearning_rate: 0.01\n")
    written = base_settings("adapt", [*adapting, "--config", str(recipe)])
    assert make_cell("adapt", base, {}, 3) == make_cell("adapt", written, {"lambda_alignment": 10.0}, 3)
    # A field at its default says nothing new.
    assert make_cell("adapt", base, {"guard_mode": "penalty"}, 3).key == make_cell("adapt", base, {}, 3).key


@pytest.mark.parametrize(("overrides", "seed"), [({"lambda_alignment": 1.0}, 0), ({"max_steps": 4}, 0), ({}, 1)])
def test_what_trains_decides_the_fingerprint(adapting: list[str], overrides: dict[str, float], seed: int) -> None:
    base = base_settings("adapt", adapting)
    assert make_cell("adapt", base, overrides, seed).fingerprint != make_cell("adapt", base, {}, 0).fingerprint


def test_what_is_measured_does_not(adapting: list[str]) -> None:
    base, measures = base_settings("adapt", adapting), Measures(tasks=("mmlu",)).asked()
    cell = make_cell("adapt", base, {}, 0, measures)
    assert cell.measures == measures
    assert cell.key == make_cell("adapt", base, {}, 0).key


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


def test_a_cell_is_the_recipe_of_its_command(adapting: list[str], tmp_path: Path) -> None:
    cell = make_cell("adapt", base_settings("adapt", adapting), {"drift_budget": 0.25, "lora_r": 2}, 7)
    recipe = recipe_of(cell, "somewhere")
    assert (recipe.run.lora_r, recipe.guard.drift_budget, recipe.training.seed) == (2, 0.25, 7)
    assert (recipe.training.output_dir, recipe.run.resume) == ("somewhere", True)
    assert recipe.training.learning_rate == 1e-2
    (tmp_path / "recipe.yaml").write_text(recipe_text(cell, "somewhere"))
    assert parse_adapt_recipe(["--config", str(tmp_path / "recipe.yaml")]).settings() == recipe.settings()


@pytest.mark.parametrize("command", ["align", "adapt"])
def test_a_value_that_is_trls_own_default_is_kept_where_ours_is_another(
    command: str, adapting: list[str], model: Path
) -> None:
    words = adapting[:3] if command == "adapt" else ["--model", str(model)]
    settings = ADAPT if command == "adapt" else ALIGN
    kind = settings.kinds[-1]
    for name, default in settings.defaults.items():
        theirs = next((one.default for one in fields(kind) if one.name == name), MISSING)
        if name == "output_dir" or theirs is MISSING or theirs == default or not isinstance(theirs, int | float | str):
            continue
        base = base_settings(command, [*words, f"--{name}={theirs}"])  # type: ignore[arg-type]
        made = recipe_of(make_cell(command, base, {}, 0), "out")  # type: ignore[arg-type]
        wanted = plain(getattr(settings.parse([f"--{name}={theirs}"])[-1], name))
        if name != "seed":
            assert plain(getattr(made.training, name)) == wanted, name


def test_the_seed_is_the_cells_whatever_trls_default_is(adapting: list[str]) -> None:
    assert make_cell("adapt", base_settings("adapt", adapting), {}, 42).seed == 42
    assert recipe_of(make_cell("adapt", base_settings("adapt", adapting), {}, 42), "out").training.seed == 42


def test_none_in_a_recipe_is_kept_and_none_in_an_override_is_the_default(adapting: list[str], tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("max_length: null\ndrift_budget: 0.3\n")
    words = [word for word in adapting if word not in ("--max_length", "96")]
    base = base_settings("adapt", [*words, "--config", str(tmp_path / "recipe.yaml")])
    recipe = recipe_of(make_cell("adapt", base, {}, 0), "out")
    assert (recipe.training.max_length, recipe.guard.drift_budget) == (None, 0.3)
    recipe = recipe_of(make_cell("adapt", base, {"drift_budget": None, "max_length": None}, 0), "out")
    assert (recipe.training.max_length, recipe.guard.drift_budget) == (256, None)


def test_values_of_a_space_are_read_as_their_fields_are_typed(adapting: list[str]) -> None:
    base = base_settings("adapt", adapting)
    assert make_cell("adapt", base, {"lora_r": "8", "lambda_alignment": "1e-1", "use_rslora": "true"}, 0) == make_cell(
        "adapt", base, {"lora_r": 8, "lambda_alignment": 0.1, "use_rslora": True}, 0
    )


def test_processes_decide_and_places_and_idle_guards_do_not(
    adapting: list[str], model: Path, task: Path, tmp_path: Path
) -> None:
    base = base_settings("adapt", adapting)
    plain_cell = make_cell("adapt", base, {"guard": "none"}, 0)
    assert plain_cell.fingerprint != make_cell("adapt", base, {"guard": "none"}, 0, accelerate=["--cpu"]).fingerprint
    idle = {"guard": "none", "lambda_alignment": 3.0, "reestimate_every": 0, "fisher_samples": 50}
    assert make_cell("adapt", base, idle, 0).fingerprint == plain_cell.fingerprint
    assert make_cell("adapt", base, {"guard": "none", "probe_samples": 5}, 0).fingerprint != plain_cell.fingerprint
    # The same files elsewhere, as on another machine that has them mounted under another name.
    shutil.copytree(model, tmp_path / "elsewhere")
    shutil.copy(task, tmp_path / "task.jsonl")
    moved = [
        {str(model): str(tmp_path / "elsewhere"), str(task): str(tmp_path / "task.jsonl")}.get(w, w) for w in adapting
    ]
    assert make_cell("adapt", base_settings("adapt", moved), {"guard": "none"}, 0).fingerprint == plain_cell.fingerprint


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
