"""Measuring, weighting and refining: on the GPU as on the CPU, and resumed as uninterrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from trl import SFTTrainer

from loralign.training import GeometryCallback, GeometryConfig
from tests.evaluation import models
from tests.gpu import both
from tests.training import guard_runs, runs

pytestmark = pytest.mark.gpu
READ = ("attenuation", "layer_attenuation", "weights", "weights_in_force", "directional_distortion", "gradient_norm")


def _trained(directory: Path, device: torch.device, geometry: dict[str, Any], **options: Any) -> Any:
    settings = {"max_steps": 3, **both.placement(device), **options}
    trainer = runs.trainer(directory, GeometryConfig(**geometry), **settings)
    trainer.train()
    both.assert_trained(trainer, device, 3)
    return trainer


def _read(directory: Path) -> list[dict[str, Any]]:
    measured = both.records(directory / "geometry.jsonl", "measurement")
    return [{name: record[name] for name in READ} for record in measured]


@pytest.mark.parametrize(
    "geometry",
    [
        {"weighting": "geo"},
        {"weighting": "geo-layer"},
        {"weighting": "norm", "exact_gradients": True},
        {"weighting": "match"},
        {"weighting": "upgrad"},
    ],
    ids=lambda geometry: geometry["weighting"],
)
def test_measurements_and_weights_in_training_are_those_of_the_cpu(
    tmp_path: Path, device: torch.device, geometry: dict[str, Any]
) -> None:
    if geometry["weighting"] == "upgrad":
        pytest.importorskip("qpsolvers")
    found, expected = (
        _trained(tmp_path / name, place, {"measure_every": 1, **geometry})
        for name, place in (("there", device), ("here", both.CPU))
    )
    both.assert_near(both.losses(found), both.losses(expected), rel=1e-3)
    first, *later = _read(tmp_path / "there")
    first_expected, *later_expected = _read(tmp_path / "here")
    both.assert_near(first, first_expected, rel=1e-4)
    both.assert_near(later, later_expected, rel=2e-2)
    steps = both.records(tmp_path / "there/geometry.jsonl", "measurement")
    assert all(0 <= record["step_distortion"] <= 2 for record in steps)


@pytest.mark.parametrize("mode", ["condition", "accumulated", "gradient", "balanced"])
def test_refinement_at_the_start_and_on_the_way_is_that_of_the_cpu(
    tmp_path: Path, device: torch.device, mode: str
) -> None:
    geometry = {"measure_every": 1, "refine_mode": mode, "refine_at_start": True, "refine_every": 2}
    found, expected = (
        _trained(tmp_path / name, place, {**geometry, "refine_tolerance": 0.5})
        for name, place in (("there", device), ("here", both.CPU))
    )
    both.assert_near(both.losses(found), both.losses(expected), rel=1e-2)
    refined, wanted = (both.records(tmp_path / name / "geometry.jsonl", "refinement") for name in ("there", "here"))
    assert [record["step"] for record in refined] == [-1, 1]
    for one, other in zip(refined, wanted, strict=True):
        assert one["replaced"] == other["replaced"]
        assert one["function_change"] == pytest.approx(other["function_change"], rel=2e-2, abs=1e-4)
        assert one["energy_moved"] == pytest.approx(other["energy_moved"], rel=2e-2, abs=1e-4)
    # What LoRA reaches right after the start, which the rows of A alone decide.
    both.assert_near(_read(tmp_path / "there")[0], _read(tmp_path / "here")[0], rel=1e-3)


@pytest.mark.parametrize("mode", ["accumulated", "balanced"])
def test_resumed_run_is_the_uninterrupted_one(tmp_path: Path, device: torch.device, mode: str) -> None:
    """Weights, shared directions, marks and the GPU's own generator, which draws dropout, are in the checkpoint."""
    geometry = GeometryConfig(measure_every=1, refine_mode=mode, refine_every=3, refine_tolerance=0.5)

    def make(directory: Path) -> Any:
        options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "disable_dropout": False}
        return runs.trainer(directory, geometry, lora={"lora_dropout": 0.1}, **options, **both.placement(device))

    whole = make(tmp_path / "whole")
    whole.train()
    expected = runs.adapter(whole)
    cut = make(tmp_path / "cut")
    cut.add_callback(guard_runs.StopAt(2))
    cut.train()
    resumed = make(tmp_path / "cut")
    resumed.train(resume_from_checkpoint=True)
    found = runs.adapter(resumed)
    assert {factor.device for factor in found.values()} == {device}
    # Some sums on a GPU have no fixed order; without a part of its state a run would be a step of 1e-2 away.
    for name, factor in expected.items():
        torch.testing.assert_close(found[name], factor, rtol=1e-3, atol=5e-4)
    read, wanted = _read(tmp_path / "cut"), _read(tmp_path / "whole")
    assert len(read) == 4
    both.assert_near(read, wanted, rel=1e-3)


def test_preservation_is_one_more_objective(tmp_path: Path, device: torch.device) -> None:
    texts = runs.pairs(8).map(lambda row: {"messages": row["prompt"] + row["chosen"]}).select_columns(["messages"])
    found, expected = (
        _trained(
            tmp_path / name,
            place,
            {"weighting": "norm", "measure_every": 1, "preservation_weight": 2.0},
            extra={"preservation_dataset": texts},
        )
        for name, place in (("there", device), ("here", both.CPU))
    )
    both.assert_near(both.losses(found), both.losses(expected), rel=1e-3)
    assert both.records(tmp_path / "there/geometry.jsonl", "measurement")[-1]["gradient_norm"]["full"]["preservation"]


def test_geometry_of_a_fresh_adapter_is_measured_without_training(tmp_path: Path, device: torch.device) -> None:
    statistics = []
    for name, place in (("there", device), ("here", both.CPU)):
        trainer = runs.trainer(tmp_path / name, GeometryConfig(), **both.placement(place))
        statistics.append(trainer.measure_geometry(batches=2))
    found, expected = statistics
    for space in ("full", "accessible", "euclidean"):
        torch.testing.assert_close(found.norms(space), expected.norms(space), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(found.attenuation(), expected.attenuation(), rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_callback_measures_supervised_training_by_tokens(tmp_path: Path, device: torch.device) -> None:
    rows = [{"messages": row["prompt"] + row["chosen"], "objective": row["objective"]} for row in runs.pairs()]
    read = []
    for name, place in (("there", device), ("here", both.CPU)):
        trainer = SFTTrainer(
            model=models.build("llama"),
            args=guard_runs.sft_config(
                tmp_path / name, max_steps=2, remove_unused_columns=False, **both.placement(place)
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=models.character_tokenizer(),
            peft_config=LoraConfig(**runs.LORA),
        )
        config = GeometryConfig(weighting="norm", measure_every=1, loss_reduction="token")
        GeometryCallback(runs.OBJECTIVES, config).install(trainer)
        trainer.train()
        both.assert_trained(trainer, place, 2)
        read.append(_read(tmp_path / name))
    found, expected = read
    both.assert_near(found[0], expected[0], rel=1e-4)
    both.assert_near(found[1], expected[1], rel=2e-2)
