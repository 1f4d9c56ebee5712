"""Every command, one after the other on one tiny model, with the device left to the command."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from loralign.cli import main
from loralign.data.driftcheck import build_driftcheck
from tests.cli.conftest import SMALL, with_template, write_pairs
from tests.cli.guarding import FISHER, QUICK, write_alignment, write_task
from tests.models.tiny_models import write_model

pytestmark = pytest.mark.gpu


def _run(*words: str | Path) -> None:
    with pytest.raises(SystemExit) as ending:
        main([str(word) for word in words])
    assert not ending.value.code, words


def _allocated() -> int:
    """Allocations on the GPU since the process began: work that was done there."""
    return int(torch.cuda.memory_stats().get("allocation.all.allocated", 0)) if torch.cuda.is_available() else 0


def test_commands_run_on_the_device(tmp_path: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    if device.type == "cpu" and torch.cuda.is_available():
        pytest.skip("commands take the GPU where there is one")
    monkeypatch.chdir(tmp_path)
    model = with_template(write_model(tmp_path / "tiny"))
    pairs, task = write_pairs(tmp_path / "pairs.jsonl"), write_task(tmp_path / "task.jsonl")
    kept = write_alignment(tmp_path / "kept.jsonl")
    held_out = write_pairs(tmp_path / "held_out.jsonl", count=8)
    build_driftcheck(["builtin"], tmp_path / "prompts", safe=20, unsafe=20, seed=0)
    asked = ("--set", "prompts", "--prompts", "12", "--part", "all")
    probe = ("--probe", kept, "--probe-samples", "6", "--max-length", "96")
    commands: tuple[tuple[str | Path, ...], ...] = (
        ("diagnose", model, "--data", pairs, "--rank", "2", "--pairs", "6"),
        ("align", "--model", model, "--data", pairs, "--validation_data", held_out, "--output_dir", "aligned", *SMALL),
        ("evaluate", "aligned/adapter", "--data", held_out, "--max-length", "256"),
        ("refine", "aligned/adapter", "--data", pairs, "--mode", "balanced", "--pairs", "6", "-o", "refined"),
        ("fisher", "aligned/adapter", "--data", kept, "-o", "fisher", *FISHER),
        ("adapt", "aligned/adapter", "--data", task, "--alignment_data", kept, "--guard", "fisher",
         "--drift_budget", "0.5", "--output_dir", "adapted", *QUICK),
        ("repair", "adapted/adapter", "--subspace", "fisher", *probe, "--strength", "1", "-o", "repaired"),
        ("driftcheck", "run", "repaired", "-o", "asked", *asked, "--max-new-tokens", "6", "--baseline", model),
        ("driftcheck", "run", "repaired", "-o", "scored", *asked, "--mode", "score", "--baseline", model),
    )  # fmt: skip
    for words in commands:
        before = _allocated()
        _run(*words)
        assert device.type == "cpu" or _allocated() > before, words[0]
    scores = json.loads(Path("adapted/scores.json").read_text())
    assert scores["drift"]["value"] >= 0
    for run in ("aligned", "adapted"):
        assert json.loads(Path(run, "run.json").read_text())["status"] == "finished", run
    for run in ("asked", "scored"):
        assert len(pq.read_table(Path(run, "responses.parquet"))) == 12
