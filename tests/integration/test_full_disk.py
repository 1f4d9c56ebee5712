"""A disk that fills up while a run saves: one clear error, and the previous checkpoint stays whole."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loralign.training import last_whole_checkpoint
from tests.integration.children import Child
from tests.integration.work import Run, train, train_with_little_room

GEOMETRY = {"weighting": "norm", "measure_every": 2}
OPTIONS = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}
REFUSED = r"run/checkpoint-4: the checkpoint cannot be written: .* \(free some space and resume from .*checkpoint-2\)$"


@pytest.mark.parametrize(
    ("moment", "room", "refused"),
    [
        ("before the fourth save", 100, REFUSED),
        # The adapter fits, the optimiser's state does not.
        ("before the fourth save", 16_000, REFUSED),
        ("geometry not yet written", 100, REFUSED),
        ("manifest not yet written", 100, REFUSED),
        ("before the log is written", 100, r"geometry\.jsonl: cannot write"),
    ],
)
def test_a_full_disk_is_one_error_and_costs_no_checkpoint(moment: str, room: int, refused: str, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", GEOMETRY, OPTIONS, at=moment)
    Child(train_with_little_room, run, room, log=run.beside("log")).wait()
    message = run.beside("error").read_text()
    assert re.search(refused, message), message
    assert "\n" not in message
    assert {path.name for path in run.output.iterdir()} == {"checkpoint-2", "geometry.jsonl"}
    assert last_whole_checkpoint(run.output) == run.output / "checkpoint-2"
    if room == 16_000:
        _finish(run, tmp_path)


def _finish(run: Run, tmp_path: Path) -> None:
    """With room again the run goes on from its last checkpoint to the end of one that always had room."""
    Child(train, replace(run, resume=True, at=None), log=run.beside("resumed.log")).wait()
    roomy = Run(tmp_path / "roomy", GEOMETRY, OPTIONS)
    Child(train, roomy, log=roomy.beside("log")).wait()
    state, expected = run.state(), roomy.state()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert run.log() == roomy.log()
