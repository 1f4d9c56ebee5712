"""The penalty on PEFT models of real architectures, against the dense formulas on their own weights."""

from __future__ import annotations

import importlib.util
import itertools
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from loralign.guard.penalties import GuardPenalty, PenaltyOptions, PenaltyWeights
from loralign.guard.subspace import AlignmentSubspace, SubspaceInfo
from loralign.lora import LoraFactors, canonical_name, lora_layers
from tests import zoo
from tests.guard.penalties.made import compare_with_dense, random_curvature, random_subspace

FORMS = list(itertools.product(("hard", "soft"), ("row", "frobenius"), ("identity", "diagonal", "kronecker")))
four_bit = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs loralign[quantization]")


def _plain(architecture: str) -> tuple[list[LoraFactors], list[Tensor]]:
    layers = lora_layers(zoo.lora_model(architecture, use_rslora=True))
    return layers, [
        layer.base.weight.mT if type(layer.base).__name__ == "Conv1D" else layer.base.weight for layer in layers
    ]


def _four_bit() -> tuple[list[LoraFactors], list[Tensor]]:
    """A llama whose projections are 4-bit, of widths that bitsandbytes' own blocks divide, with adapters in float64."""
    import bitsandbytes as bnb

    torch.manual_seed(0)
    base = zoo.LlamaForCausalLM(zoo.LlamaConfig(**{**zoo._SIZES, "hidden_size": 64, "intermediate_size": 128}))
    for name, module in list(base.named_modules()):
        if name.rpartition(".")[2] in zoo.TARGETS["llama"]:
            quantised = bnb.nn.Linear4bit(module.in_features, module.out_features, bias=False, quant_type="nf4")
            quantised.weight = bnb.nn.Params4bit(module.weight.data * 5, requires_grad=False, module=quantised)
            parent, _, child = name.rpartition(".")
            setattr(base.get_submodule(parent), child, quantised.to("cpu"))
    base.is_loaded_in_4bit = True
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=zoo.TARGETS["llama"]))
    layers = lora_layers(model)
    for layer in layers:
        nn.init.normal_(layer.B, std=0.1)
        layer.down.double()
        layer.up.double()
    assert all(type(layer.base).__name__ == "Linear4bit" for layer in layers)
    return layers, [
        bnb.functional.dequantize_4bit(layer.base.weight.data, layer.base.weight.quant_state) for layer in layers
    ]


@pytest.mark.parametrize("model", ["llama", "gpt2", pytest.param("4-bit llama", marks=four_bit)])
def test_every_form_on_a_model(model):
    layers, weights = _four_bit() if model == "4-bit llama" else _plain(model)
    generator = torch.Generator().manual_seed(1)
    subspaces = [random_subspace(generator, *layer.shape, 5) for layer in layers]
    curvature = [random_curvature(generator, *layer.shape) for layer in layers]
    for projection, geodesic, form in FORMS:
        options = PenaltyOptions(
            projection=projection, geodesic=geodesic, task_curvature=form, alpha=0.4, tau=0.05, tile_rows=7
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="the frobenius geodesic term is identically zero")
            compare_with_dense(layers, subspaces, curvature, options, base=weights)
    unweighted = PenaltyOptions(beta=0.0, alpha=1.0)
    compare_with_dense(layers, subspaces, curvature, unweighted, base=weights)


@pytest.mark.parametrize("model", ["llama", "gpt2", pytest.param("4-bit llama", marks=four_bit)])
def test_a_share_of_the_rows_of_any_base(model):
    """Drawn rows of W meet the same rows of the factors, so that the mean over many draws is the whole."""
    layers, weights = _four_bit() if model == "4-bit llama" else _plain(model)
    generator = torch.Generator().manual_seed(2)
    subspaces = [random_subspace(generator, *layer.shape, 3) for layer in layers]
    total, draws = 0.0, 400
    penalty = GuardPenalty(layers, subspaces, 1.0, PenaltyOptions(alpha=1.0, row_fraction=0.5))
    weight = PenaltyWeights(0, 0, 1)
    for _ in range(draws):
        total += penalty.evaluate(weight, gradients=False).overlap / draws
    whole = compare_with_dense(layers, subspaces, [None] * len(layers), PenaltyOptions(alpha=1.0), weight, weights)
    assert total == pytest.approx(whole.overlap, rel=0.02)


def test_a_subspace_file_finds_its_layers_by_name():
    model = zoo.lora_model("llama")
    layers = lora_layers(model)
    generator = torch.Generator().manual_seed(3)
    found = {canonical_name(one.name): random_subspace(generator, *one.shape, 4) for one in reversed(layers[3:])}
    info = SubspaceInfo()
    subspace = AlignmentSubspace(found, info)
    matched = subspace.match(layers, partial=True)
    penalty = GuardPenalty(layers, matched, subspace.scale)
    result = penalty.evaluate(PenaltyWeights())
    assert result.layer_energy[:3, 0].tolist() == [0, 0, 0]
    assert (result.layer_energy[3:, 0] > 0).all()
    for layer, one, energy in zip(layers, matched, result.layer_energy, strict=True):
        if one is not None:
            inside = layer.scaling * one.basis.mT @ layer.B.detach() @ layer.A.detach()
            assert float(energy[0]) == pytest.approx(float(inside.square().sum()))
