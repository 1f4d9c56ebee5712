"""A guarded run that is killed goes on as if nothing had happened, and two processes do what one does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from loralign.training import last_whole_checkpoint
from tests.integration.children import Child, start_pair
from tests.integration.guard_work import MOMENTS, GuardedRun, train_guarded

GUARD: dict[str, Any] = {
    "lambda_alignment": 20.0,
    "lambda_collision": 5.0,
    "drift_budget": 0.02,
    "probe_every": 2,
    "overlap_rows": 0.5,
    "reestimate_every": 3,
}
SAVING: dict[str, Any] = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> GuardedRun:
    run = GuardedRun(tmp_path_factory.mktemp("whole") / "run", GUARD, SAVING)
    Child(train_guarded, run, log=run.beside("log")).wait()
    return run


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_run_ends_as_the_uninterrupted_one(whole: GuardedRun, tmp_path: Path, moment: str) -> None:
    """Bit for bit: factors, Adam's moments, multiplier, drawn rows, re-estimated subspace and log."""
    run = GuardedRun(tmp_path / "run", GUARD, SAVING, at=moment)
    Child(train_guarded, run, log=run.beside("log")).kill_at(run.beside("reached"))
    assert last_whole_checkpoint(run.output) == run.output / ("checkpoint-4" if "between" in moment else "checkpoint-2")
    again = GuardedRun(tmp_path / "run", GUARD, SAVING, resume=True)
    Child(train_guarded, again, log=again.beside("log")).wait()
    found, expected = load_file(again.beside("safetensors")), load_file(whole.beside("safetensors"))
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    assert again.log() == whole.log()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_processes_do_what_one_does(tmp_path: Path, accumulation: int) -> None:
    """A penalty counted once per process, or averaged away, changes the adapter; so does a controller of its own."""
    options = {"max_steps": 4, "gradient_accumulation_steps": accumulation}
    one = GuardedRun(tmp_path / "one", GUARD, options | {"per_device_train_batch_size": 6 // accumulation}, double=True)
    two = GuardedRun(
        tmp_path / "two",
        GUARD,
        options | {"per_device_train_batch_size": 3 // accumulation, "ddp_backend": "gloo"},
        double=True,
    )
    if accumulation == 2:
        one = GuardedRun(one.output, GUARD, options | {"per_device_train_batch_size": 2}, double=True)
        two = GuardedRun(
            two.output, GUARD, options | {"per_device_train_batch_size": 1, "ddp_backend": "gloo"}, double=True
        )
    Child(train_guarded, one, log=one.beside("log")).wait()
    for child in start_pair(train_guarded, two, log=two.beside("log")):
        child.wait()
    found, expected = load_file(two.beside("safetensors")), load_file(one.beside("safetensors"))
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-5, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )
    for ours, theirs in zip(two.log().splitlines(), one.log().splitlines(), strict=True):
        mine, other = json.loads(ours), json.loads(theirs)
        assert mine["kind"] == other["kind"]
        if mine["kind"] == "probe":
            assert mine["kl"] == pytest.approx(other["kl"], rel=1e-4, abs=1e-9)
            assert mine["multiplier"] == pytest.approx(other["multiplier"], rel=1e-4)
