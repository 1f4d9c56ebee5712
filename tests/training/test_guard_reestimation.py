"""Estimating the subspace again while a guarded run is on its way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from loralign.guard import estimate_fisher
from loralign.training import GuardConfig, GuardData, GuardEngine
from tests.evaluation import models
from tests.training import guard_runs
from tests.training.guard_runs import PROBE, STRONG, StopAt, records


def test_reestimation_keeps_to_the_adapters_layers(tmp_path: Path) -> None:
    """A subspace of more layers than the adapter's: a resumed run finds the layers of its checkpoint."""
    held = estimate_fisher(
        models.build("llama"), guard_runs.completions(16), rank=3, min_agreement=0.0, show_progress=False
    )
    assert len(held.layers) > 6
    data = GuardData(probe=PROBE.probe, alignment=guard_runs.completions(16))
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    config = GuardConfig(**STRONG, reestimate_every=1)
    whole = guard_runs.train(guard_runs.trainer(tmp_path / "a", config, held=held, data=data, **options))
    cut = guard_runs.trainer(tmp_path / "b", config, held=held, data=data, **options)
    cut.add_callback(StopAt(2))
    cut.train()
    resumed = guard_runs.trainer(tmp_path / "b", config, held=held, data=data, **options)
    found = guard_runs.train(resumed, resume_from_checkpoint=True)
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    # After the last step there is nothing left for a penalty to act on.
    assert [one["step"] for one in records(tmp_path / "b", "reestimate")] == [0, 1, 2]


def test_reestimation_that_fails_is_told_and_survived(tmp_path: Path) -> None:
    held = guard_runs.subspace(rank=3)
    data = GuardData(alignment=guard_runs.completions(1))
    one = guard_runs.trainer(tmp_path, GuardConfig(reestimate_every=2), held=held, data=data)
    one.train()
    assert [record["code"] for record in records(tmp_path, "warning")] == ["not_reestimated"]


@pytest.mark.parametrize(
    ("mode", "every", "steps"),
    [
        ("project", 0.5, [1, 3]),
        ("project", 0.3, [1, 3]),
        ("penalty", 0.25, [0, 1, 2]),
        ("project", 3, [2]),
        ("project", 0, []),
        ("measure", 1, []),
    ],
)
def test_reestimation_comes_after_steps_or_shares_of_the_run(
    tmp_path: Path, mode: Any, every: float, steps: list[int]
) -> None:
    config = GuardConfig(guard_mode=mode, reestimate_every=every, probe_every=0)
    data = GuardData(alignment=guard_runs.completions(16))
    guard_runs.trainer(tmp_path, config, held=guard_runs.subspace(rank=3), data=data, max_steps=4).train()
    assert [record["step"] for record in records(tmp_path, "reestimate")] == steps


def test_the_newest_subspace_is_the_one_projected_out(tmp_path: Path) -> None:
    """Nothing of the final update may lie in the subspace that was estimated after the last step."""
    config = GuardConfig(guard_mode="project", reestimate_every=1, probe_every=1)
    data = GuardData(probe=PROBE.probe, alignment=guard_runs.completions(16))
    one = guard_runs.trainer(tmp_path, config, held=guard_runs.subspace(rank=3), data=data)
    one.train()
    assert all(record["share"] < 1e-10 for record in records(tmp_path, "probe"))
    assert all(record["similarity"] < 0.999 for record in records(tmp_path, "reestimate"))


@pytest.mark.parametrize("tokens", [2, None])
def test_estimates_on_the_same_opening_as_before(tokens: int | None) -> None:
    """Whole responses in place of openings would be another subspace, and of another kind than the first."""
    config = GuardConfig(guard_mode="project", reestimate_every=1, probe_every=0)
    held = guard_runs.subspace(rank=2, response_tokens=tokens)
    model = get_peft_model(models.build("llama"), LoraConfig(**guard_runs.LORA))
    engine = GuardEngine(model, held, config, GuardData(alignment=guard_runs.completions(16)))
    engine.start(4)
    assert [record["kind"] for record in engine.finish_step(0)].count("reestimate") == 1
    assert engine.hold is not None
    assert engine.hold.subspace is not held
    assert engine.hold.subspace.info.response_tokens == tokens
