"""Guarded training on the GPU: to the end, as on the CPU, and resumed as uninterrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from trl import SFTTrainer

from loralign.guard import update_shares
from loralign.lora import lora_layers
from loralign.training import GuardCallback, GuardConfig, GuardData
from tests.gpu import both
from tests.training import guard_runs, runs

pytestmark = pytest.mark.gpu
DATA = GuardData(
    probe=guard_runs.PROBE.probe,
    alignment=guard_runs.completions(16),
    task=guard_runs.completions(8, seed=5),
    held_back=guard_runs.completions(4, seed=11),
)
CASES: dict[str, dict[str, Any]] = {
    "penalty": guard_runs.STRONG,
    "soft, sampled rows": {**guard_runs.STRONG, "guard_projection": "soft", "overlap_rows": 0.5},
    "kronecker curvature": {**guard_runs.STRONG, "task_curvature": "kronecker"},
    "decoupled": {**guard_runs.STRONG, "guard_placement": "decoupled"},
    "decoupled, curvature": {**guard_runs.STRONG, "guard_placement": "decoupled", "task_curvature": "diagonal"},
    "project": {"guard_mode": "project"},
    "measure": {"guard_mode": "measure"},
    "budget": {**guard_runs.STRONG, "drift_budget": 0.02},
    "projected budget": {"guard_mode": "project", "drift_budget": 0.02},
    "estimated again": {**guard_runs.STRONG, "reestimate_every": 2},
}


def _trainer(directory: Path, device: torch.device, options: dict[str, Any], **settings: Any) -> Any:
    config = GuardConfig(**{"probe_every": 1, "reestimate_every": 0, **options})
    held = guard_runs.subspace()
    return guard_runs.trainer(
        directory, config, held=held, data=DATA, **{"max_steps": 3, **both.placement(device), **settings}
    )


@pytest.mark.parametrize("case", CASES)
def test_guarded_training_is_that_of_the_cpu(tmp_path: Path, device: torch.device, case: str) -> None:
    losses = []
    # One after the other: which device a trainer works on is a setting of the process.
    for name, place in (("there", device), ("here", both.CPU)):
        trainer = _trainer(tmp_path / name, place, CASES[case])
        trainer.train()
        both.assert_trained(trainer, place, 3)
        losses.append(both.losses(trainer))
    both.assert_near(*losses, rel=1e-3)
    log, wanted = tmp_path / "there/guard.jsonl", tmp_path / "here/guard.jsonl"
    for kind in ("probe", "guard", "task", "reestimate"):
        # An update that has only begun is a small difference of large numbers.
        both.assert_near(both.records(log, kind), both.records(wanted, kind), rel=2e-2, absolute=1e-5)
    assert [record["step"] for record in both.records(log, "probe")] == [-1, 0, 1, 2]
    assert bool(both.records(log, "reestimate")) == (case == "estimated again")


@pytest.mark.parametrize(
    "options",
    [
        {**guard_runs.STRONG, "drift_budget": 0.02, "reestimate_every": 2, "overlap_rows": 0.5},
        {"guard_mode": "project", "drift_budget": 0.02},
        {**guard_runs.STRONG, "guard_placement": "decoupled", "task_curvature": "diagonal"},
    ],
    ids=["loss", "project", "decoupled"],
)
def test_resumed_run_is_the_uninterrupted_one(tmp_path: Path, device: torch.device, options: dict[str, Any]) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = guard_runs.train(_trainer(tmp_path / "whole", device, options, **saving))
    cut = _trainer(tmp_path / "cut", device, options, **saving)
    cut.add_callback(guard_runs.StopAt(3))
    cut.train()
    resumed = guard_runs.train(_trainer(tmp_path / "cut", device, options, **saving), resume_from_checkpoint=True)
    assert {factor.device for factor in resumed.values()} == {device}
    # Some sums on a GPU have no fixed order; without a part of its state a run would be a step of 1e-2 away.
    for name, factor in whole.items():
        torch.testing.assert_close(resumed[name], factor, rtol=1e-3, atol=5e-4)
    found, expected = (both.records(tmp_path / name / "guard.jsonl", "probe") for name in ("cut", "whole"))
    both.assert_near(found, expected, rel=1e-2, absolute=1e-5)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("case", ["penalty", "project", "budget"])
def test_callback_guards_a_trainer_that_knows_nothing_of_it(tmp_path: Path, device: torch.device, case: str) -> None:
    held = guard_runs.subspace()
    trainer = guard_runs.trainer(tmp_path, kind=SFTTrainer, max_steps=3, **both.placement(device))
    GuardCallback(held, GuardConfig(**CASES[case], probe_every=1, reestimate_every=0), DATA).install(trainer)
    trainer.train()
    both.assert_trained(trainer, device, 3)
    layers = lora_layers(trainer.model)
    shares = update_shares(layers, held.match(layers))
    assert shares.isfinite().all()
    if case == "project":
        assert float(shares.max()) < 1e-10
    assert both.records(tmp_path / "guard.jsonl", "probe")[-1]["kl"] > 0


def test_guard_stands_beside_the_geometry(tmp_path: Path, device: torch.device) -> None:
    held = guard_runs.subspace()
    one = runs.trainer(tmp_path, lora={"target_modules": guard_runs.MODULES}, max_steps=2, **both.placement(device))
    GuardCallback(held, GuardConfig(guard_mode="project", probe_every=1, reestimate_every=0), DATA).install(one)
    one.train()
    both.assert_trained(one, device, 2)
    layers = lora_layers(one.model)
    assert float(update_shares(layers, held.match(layers)).max()) < 1e-10
