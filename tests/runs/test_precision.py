"""What a run trains is float32, whatever its base is."""

from __future__ import annotations

import torch
from peft import LoraConfig, get_peft_model

from loralign.lora import lora_layers
from loralign.runs.prepare import factors_in_float32
from tests.evaluation import models
from tests.training import guard_runs


def test_factors_that_a_trainer_made_narrow_are_trained_in_float32() -> None:
    """As TRL does on a 4-bit base: steps of a decoupled penalty are below what bfloat16 resolves."""
    model = get_peft_model(models.build("llama").to(torch.bfloat16), LoraConfig(**guard_runs.LORA))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    before = [layer.A.detach().clone() for layer in lora_layers(model)]
    factors_in_float32(model)
    for layer, one in zip(lora_layers(model), before, strict=True):
        assert layer.A.dtype == layer.B.dtype == torch.float32
        assert torch.equal(layer.A, one.float())
        # The base is what it was.
        assert layer.base.weight.dtype == torch.bfloat16
