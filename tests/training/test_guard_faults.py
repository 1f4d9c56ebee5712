"""What a guarded run refuses before it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from trl import SFTTrainer

from loralign.errors import AdapterError, ConfigError, StateError
from loralign.lora import lora_layers
from loralign.training import GuardCallback, GuardConfig, GuardEngine
from tests.evaluation import models
from tests.training import guard_runs


class TestFaults:
    def test_adapter_that_is_not_fresh(self, tmp_path: Path) -> None:
        one = guard_runs.trainer(tmp_path, held=guard_runs.subspace())
        with torch.no_grad():
            lora_layers(one.model)[0].B.fill_(0.1)
        with pytest.raises(ConfigError, match="already changes"):
            one.train()

    def test_budget_without_probe(self, tmp_path: Path) -> None:
        one = guard_runs.trainer(tmp_path, GuardConfig(drift_budget=0.1), held=guard_runs.subspace())
        with pytest.raises(ConfigError, match="probe"):
            one.train()

    def test_budget_without_a_subspace(self) -> None:
        """The commands refuse it by their own words; a trainer of one's own would log a multiplier of nothing."""
        model = get_peft_model(models.build("llama"), LoraConfig(**guard_runs.LORA))
        engine = GuardEngine(model, None, GuardConfig(drift_budget=0.1), guard_runs.PROBE)
        with pytest.raises(ConfigError, match="drift_budget: a budget holds nothing without a subspace"):
            engine.start(4)

    def test_subspace_that_covers_only_some_layers(self) -> None:
        wider = models.build("llama")
        model = get_peft_model(wider, LoraConfig(**{**guard_runs.LORA, "target_modules": ["q_proj", "up_proj"]}))
        with pytest.raises(AdapterError, match=r"lacks model\.layers\.0\.mlp\.up_proj"):
            GuardEngine(model, guard_runs.subspace(), GuardConfig())

    def test_subspace_of_another_model(self) -> None:
        model = models.build("llama")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.01)
        peft_model = get_peft_model(model, LoraConfig(**guard_runs.LORA))
        with pytest.raises(StateError, match="other weights"):
            GuardCallback(guard_runs.subspace()).check(peft_model)

    def test_fp16_without_install(self, tmp_path: Path) -> None:
        callback = GuardCallback(guard_runs.subspace(), GuardConfig())
        one = guard_runs.trainer(tmp_path, kind=SFTTrainer)
        one.args.fp16 = True
        with pytest.raises(ConfigError, match="install"):
            callback.on_train_begin(one.args, one.state, one.control, model=one.model)

    @pytest.mark.parametrize(
        ("options", "place"),
        [
            ({"guard_mode": "projekt"}, "guard_mode"),
            ({"lambda_alignment": -1.0}, "lambda_alignment"),
            ({"lambda_alignment": float("nan")}, "lambda_alignment"),
            ({"collision_alpha": 1.5}, "collision_alpha"),
            ({"overlap_rows": 0.0}, "overlap_rows"),
            ({"reestimate_every": 2.5}, "reestimate_every"),
            ({"drift_budget": 0.0}, "budget"),
            ({"drift_budget": -1.0}, "budget"),
            ({"drift_budget": float("inf")}, "budget"),
            ({"drift_budget": 0.1, "probe_every": 0}, "probe_every"),
            ({"drift_budget": 0.1, "guard_mode": "measure"}, "guard_mode"),
            ({"drift_budget": 0.1, "guard_mode": "project", "project_strength": 0.0}, "project_strength"),
            (
                {"drift_budget": 0.1, "lambda_alignment": 0.0, "lambda_stability": 0.0, "lambda_collision": 0.0},
                "lambda_alignment",
            ),
        ],
    )
    def test_settings(self, options: dict[str, Any], place: str) -> None:
        with pytest.raises(ConfigError, match=place):
            GuardConfig(**options)
