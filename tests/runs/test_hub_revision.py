from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loralign.models import ModelSource, load_adapter, load_model, merge_adapter
from loralign.runs import parse_adapt_recipe, run_adaptation
from loralign.runs.driftcheck_options import CheckOptions, CheckSubject
from loralign.runs.driftcheck_subject import Opened, open_subject
from loralign.runs.evaluate import evaluate_adapter
from loralign.runs.refine import refine_adapter
from tests.cli.conftest import with_template, write_pairs
from tests.cli.guarding import QUICK, write_alignment, write_task
from tests.models.tiny_models import write_model

Asked = list[tuple[str | None, str | None]]
NAME = "owner/tiny"


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """The names and revisions that a hub, which has one model for all of them, is asked for."""
    directory, found = with_template(write_model(tmp_path / "hub")), Asked()

    def resolve(name: str | None = None, *, revision: str | None = None) -> ModelSource:
        found.append((name, revision))
        return ModelSource("hub", str(directory), str(name), revision)

    monkeypatch.setattr("loralign.models.loading.resolve_model", resolve)
    return found


@pytest.fixture
def adapter(asked: Asked, tmp_path: Path) -> Path:
    """Of a run with a revision."""
    task, kept = write_task(tmp_path / "task.jsonl"), write_alignment(tmp_path / "kept.jsonl")
    words = [NAME, "--revision", "v2", "--data", str(task), "--alignment_data", str(kept), "--guard", "none", *QUICK]
    quick = ["--max_steps", "1", "--judged_prompts", "0", "--samples", "0", "--output_dir", str(tmp_path / "out")]
    run_adaptation(parse_adapt_recipe([*words, *quick]))
    assert set(asked) == {(NAME, "v2")}
    asked.clear()
    return tmp_path / "out" / "adapter"


def named(adapter: Path) -> tuple[Any, Any]:
    config = json.loads((adapter / "adapter_config.json").read_text())
    return config["base_model_name_or_path"], config["revision"]


def test_the_revision_of_a_run_is_in_its_adapter_and_is_what_everything_that_loads_it_asks_for(
    adapter: Path, asked: Asked, tmp_path: Path
) -> None:
    assert named(adapter) == (NAME, "v2")
    pairs = [str(write_pairs(tmp_path / "pairs.jsonl", count=4))]
    load_adapter(adapter)
    merge_adapter(adapter, tmp_path / "merged")
    evaluate_adapter(adapter, pairs)
    # The base named beside the adapter is the adapter's own, which a revision belongs to.
    evaluate_adapter(adapter, pairs, model=NAME)
    for subject in (CheckSubject(str(adapter)), CheckSubject(NAME, str(adapter)), CheckSubject(NAME, revision="v2")):
        open_subject(Opened(subject), CheckOptions())
    assert asked == [(NAME, "v2")] * 7


def test_an_adapter_that_is_saved_again_names_the_base_that_it_was_put_on(
    adapter: Path, asked: Asked, tmp_path: Path
) -> None:
    refine_adapter(str(adapter), tmp_path / "refined")
    assert named(tmp_path / "refined") == (NAME, "v2")
    model, _, _ = load_adapter(adapter, load_model("owner/other", revision="v3"))
    config = model.peft_config["default"]
    assert (config.base_model_name_or_path, config.revision) == ("owner/other", "v3")


def test_a_directory_has_no_revision_to_record(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = ModelSource("path", str(tmp_path / "hub"), str(tmp_path / "hub"), "v2")
    monkeypatch.setattr("loralign.models.loading.resolve_model", lambda name, *, revision: source)
    model, _, _ = load_adapter(adapter, load_model(source.name))
    assert model.peft_config["default"].revision is None
