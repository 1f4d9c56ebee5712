from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from loralign.runs import parse_adapt_recipe, parse_recipe, run_adaptation, run_alignment
from tests.cli.conftest import SMALL, with_template, write_pairs
from tests.cli.guarding import QUICK, write_alignment, write_task
from tests.models.tiny_models import write_model


def align(directory: Path, output: Path) -> None:
    model, pairs = with_template(write_model(directory / "tiny")), write_pairs(directory / "pairs.jsonl")
    words = ["--model", str(model), "--data", str(pairs)]
    run_alignment(parse_recipe([*words, *SMALL, "--max_steps", "1", "--output_dir", str(output)]))


def adapt(directory: Path, output: Path) -> None:
    model = with_template(write_model(directory / "tiny"))
    kept, task = write_alignment(directory / "kept.jsonl"), write_task(directory / "task.jsonl")
    words = [str(model), "--data", str(task), "--alignment_data", str(kept), "--guard", "none"]
    run_adaptation(parse_adapt_recipe([*words, *QUICK, "--max_steps", "1", "--output_dir", str(output)]))


@pytest.mark.parametrize(("module", "command"), [("align", align), ("adapt", adapt)])
def test_a_run_that_ends_before_its_adapter_is_written_is_not_finished(
    module: str, command: Callable[[Path, Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*words: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"loralign.runs.{module}.save_adapter", killed)
    with pytest.raises(KeyboardInterrupt):
        command(tmp_path, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "running"
    assert not (tmp_path / "out" / "adapter").exists()
