from __future__ import annotations

import importlib.util

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from loralign.errors import AdapterError
from loralign.lora import lora_layers
from tests import zoo


@pytest.mark.parametrize("architecture", zoo.BUILDERS)
@pytest.mark.parametrize("rslora", [False, True])
def test_factors_and_scaling_give_the_adapters_own_update(architecture, rslora):
    model = zoo.lora_model(architecture, use_rslora=rslora)
    layers = lora_layers(model)
    targets = zoo.TARGETS[architecture]
    names = [name for name, _ in model.get_base_model().named_modules()]
    assert len(layers) == sum(name.endswith(tuple(f".{target}" for target in targets)) for name in names)
    for layer in layers:
        module = model.get_submodule(layer.name)
        update = module.get_delta_weight("default")
        if architecture == "gpt2":
            update = update.mT
        torch.testing.assert_close(layer.scaling * layer.B @ layer.A, update)
        assert layer.A.shape[0] == layer.B.shape[1] == layer.rank


def test_only_the_active_adapter_is_listed():
    model = zoo.lora_model(rank=4)
    model.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj"]))
    assert {layer.rank for layer in lora_layers(model)} == {4}
    model.set_adapter("second")
    layers = lora_layers(model)
    assert {layer.rank for layer in layers} == {2}
    assert all(layer.name.endswith("q_proj") for layer in layers)


def test_what_is_not_plain_lora_is_refused():
    with pytest.raises(AdapterError, match="no LoRA layers"):
        lora_layers(zoo.llama())
    with pytest.raises(AdapterError, match="Dora"):
        lora_layers(zoo.lora_model(use_dora=True))
    with pytest.raises(AdapterError, match="Embedding"):
        lora_layers(zoo.lora_model(target_modules=["embed_tokens"]))
    convolution = nn.Sequential(nn.Conv2d(3, 4, 3))
    with pytest.raises(AdapterError, match="Conv2d"):
        lora_layers(get_peft_model(convolution, LoraConfig(r=2, target_modules=["0"])))
    merged = zoo.lora_model()
    merged.merge_adapter()
    with pytest.raises(AdapterError, match="merged"):
        lora_layers(merged)


# PEFT looks in every layer for what only the experts have.
@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning")
def test_stacked_experts_are_refused_by_name():
    every = "experts and routers"
    with pytest.raises(AdapterError, match=rf"layers\.0\.mlp\.gate: .*'weight' of MixtralTopKRouter.*{every}.*q_proj"):
        lora_layers(zoo.lora_model("mixtral", target_modules="all-linear"))
    experts = {"target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}
    with pytest.raises(AdapterError, match=rf"layers\.0\.mlp\.experts: .*'down_proj' of MixtralExperts.*{every}"):
        lora_layers(zoo.lora_model("mixtral", **experts))


def test_torchs_attention_is_refused():
    """PEFT gives it factors of the shapes of a plain layer, and merges them in every forward pass."""
    base = nn.Sequential(nn.MultiheadAttention(8, 2))
    with pytest.raises(AdapterError, match=r"base_model\.model\.0: LoRA on torch's MultiheadAttention"):
        lora_layers(get_peft_model(base, LoraConfig(r=2, target_modules=["0"])))


def test_several_active_adapters_are_refused():
    model = zoo.lora_model()
    model.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj"]))
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(AdapterError, match="several adapters"):
        lora_layers(model)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs loralign[quantization]")
def test_layers_on_a_four_bit_base():
    import bitsandbytes as bnb

    base = nn.Sequential(bnb.nn.Linear4bit(64, 32, bias=False, compute_dtype=torch.float32))
    base.is_loaded_in_4bit = True
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["0"]))
    (layer,) = lora_layers(model)
    assert type(model.get_submodule(layer.name)).__module__ == "peft.tuners.lora.bnb"
    assert layer.A.shape == (4, 64)
    assert layer.B.shape == (32, 4)
