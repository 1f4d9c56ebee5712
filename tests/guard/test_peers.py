from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora.intruders import reduce_intruder_dimension
from torch import nn

from loralign.errors import AdapterError, ConfigError, ModelError
from loralign.guard import peers
from loralign.guard.peers import PeerOptions
from loralign.guard.repair import repair
from loralign.lora import canonical_name, lora_layers
from tests import zoo
from tests.guard.repair_setting import dense_updates, factors, made_subspace


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scaling_is_exact(dtype):
    model = zoo.lora_model(dtype=dtype)
    start = factors(model)
    report = repair(model, None, method="scale", strength=0.3)
    for old, new in zip(start[::2], factors(model)[::2], strict=True):
        assert torch.equal(new, old)
    for old, new in zip(start[1::2], factors(model)[1::2], strict=True):
        assert torch.equal(new, (0.7 * old.float()).to(dtype))
    assert report.removed == pytest.approx(1 - 0.7**2, rel=1e-2)
    assert {layer.strength for layer in report.layers} == {0.3}
    assert report.share_before is None


def test_scaling_keeps_the_share_in_the_subspace():
    model = zoo.lora_model(dtype=torch.float32)
    report = repair(model, made_subspace(model), method="scale", strength=0.5)
    for layer in report.layers:
        assert layer.share_after == pytest.approx(layer.share_before, rel=1e-5)
    assert repair(model, made_subspace(model), method="scale").removed == 1.0


# --- Safe LoRA -----------------------------------------------------------------------------------------------------


def _pair(architecture="llama", **config):
    """An adapter on an aligned base, and the base before: the latter differs by a matrix of rank 3 per layer."""
    model = zoo.lora_model(architecture, dtype=torch.float32, **config)
    unaligned = copy.deepcopy(model).unload()
    generator = torch.Generator().manual_seed(5)
    modules = dict(unaligned.named_modules())
    for index, layer in enumerate(lora_layers(model)):
        weight = modules[canonical_name(layer.name)].weight
        change = torch.randn(weight.shape[0], 3, generator=generator) @ torch.randn(
            3, weight.shape[1], generator=generator
        )
        weight.data.sub_((0.1 + 0.05 * index) * change)
    return model, unaligned


def _operator(layer, unaligned):
    """``C = V Vᵀ / ‖V‖_F``, dense, in float64."""
    base = dict(unaligned.named_modules())[canonical_name(layer.name)]
    V = layer.base.weight.double() - base.weight.double()
    V = V.mT if type(base).__name__ == "Conv1D" else V
    return V @ V.mT / V.norm()


def _dense_cosines(layers, unaligned):
    projected = [
        _operator(layer, unaligned) @ update for layer, update in zip(layers, dense_updates(layers), strict=True)
    ]
    return [
        float((new * old).sum() / (new.norm() * old.norm()))
        for new, old in zip(projected, dense_updates(layers), strict=True)
    ]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("strength", [0.4, 1.0])
@pytest.mark.parametrize("tile", [1 << 22, 60])
def test_safe_lora_equals_the_dense_formula(architecture, strength, tile, monkeypatch):
    monkeypatch.setattr(peers, "TILE_ENTRIES", tile)
    model, unaligned = _pair(architecture)
    layers = lora_layers(model)
    before, cosines = dense_updates(layers), _dense_cosines(layers, unaligned)
    middle = len(cosines) // 2
    threshold = sum(sorted(cosines)[middle - 1 : middle + 1]) / 2
    report = repair(
        model,
        made_subspace(model),
        method="safe_lora",
        strength=strength,
        unaligned=unaligned,
        options=PeerOptions(threshold=threshold),
    )
    chosen = 0
    for layer, old, new, cosine, record in zip(
        layers, before, dense_updates(layers), cosines, report.layers, strict=True
    ):
        assert record.cosine == pytest.approx(cosine, abs=1e-6)
        expected = old
        if cosine < threshold:
            chosen += 1
            expected = (1 - strength) * old + strength * _operator(layer, unaligned) @ old
        assert record.strength == (strength if cosine < threshold else 0.0)
        torch.testing.assert_close(new, expected, rtol=0, atol=2e-6 * float(old.norm()))
    assert 0 < chosen < len(layers)


def test_safe_lora_rounds_bfloat16_factors_once():
    model, unaligned = _pair()
    twin = copy.deepcopy(model).to(torch.bfloat16)
    model, unaligned = copy.deepcopy(twin).float(), unaligned.float()
    for one in (model, twin):
        repair(one, None, method="safe_lora", strength=0.3, unaligned=unaligned, options=PeerOptions(threshold=1.0))
    for exact, rounded in zip(factors(model), factors(twin), strict=True):
        assert rounded.dtype == torch.bfloat16
        assert torch.equal(rounded, exact.to(torch.bfloat16))


def test_safe_lora_projects_the_given_number_of_least_similar_layers():
    model, unaligned = _pair()
    layers = lora_layers(model)
    cosines = _dense_cosines(layers, unaligned)
    report = repair(
        model, None, method="safe_lora", unaligned=unaligned, options=PeerOptions(threshold=-1.0, projected_layers=3)
    )
    least = sorted(range(len(layers)), key=cosines.__getitem__)[:3]
    assert [index for index, layer in enumerate(report.layers) if layer.strength > 0] == sorted(least)


def test_safe_lora_leaves_layers_alone_that_alignment_did_not_touch():
    model, unaligned = _pair()
    layers = lora_layers(model)
    dict(unaligned.named_modules())[canonical_name(layers[2].name)].weight.data.copy_(layers[2].base.weight)
    start = layers[2].B.detach().clone()
    report = repair(model, None, method="safe_lora", unaligned=unaligned, options=PeerOptions(threshold=1.0))
    assert torch.equal(layers[2].B, start)
    assert report.layers[2].cosine is None
    assert [layer.strength for layer in report.layers] == [0.0 if i == 2 else 1.0 for i in range(len(layers))]


def test_safe_lora_reads_the_base_of_an_unaligned_peft_model():
    model, unaligned = _pair()
    twin = copy.deepcopy(model)
    repair(model, None, method="safe_lora", unaligned=unaligned)
    config = LoraConfig(r=2, target_modules=zoo.TARGETS["llama"])
    repair(twin, None, method="safe_lora", unaligned=PeftModel(copy.deepcopy(unaligned), config))
    assert all(torch.equal(one, other) for one, other in zip(factors(model), factors(twin), strict=True))


@pytest.mark.parametrize("fault", ["same", "missing", "shape"])
def test_safe_lora_refuses_an_unaligned_base_that_does_not_fit(fault):
    model, unaligned = _pair()
    layer = lora_layers(model)[3]
    name = canonical_name(layer.name)
    if fault == "same":
        unaligned = copy.deepcopy(model).unload()
    elif fault == "missing":
        unaligned.set_submodule(name, nn.Identity())
        del unaligned.get_submodule(name.rpartition(".")[0])._modules[name.rpartition(".")[2]]
    else:
        unaligned.set_submodule(name, nn.Linear(7, 5))
    start = factors(model)
    with pytest.raises(ModelError) as raised:
        repair(model, None, method="safe_lora", unaligned=unaligned)
    words = {"same": "same weights", "missing": "no such layer", "shape": "(5, 7)"}[fault]
    assert words in str(raised.value)
    assert fault == "same" or raised.value.place == name
    assert all(torch.equal(old, new) for old, new in zip(start, factors(model), strict=True))


@pytest.mark.parametrize(
    "values",
    [{"threshold": 1.5}, {"threshold": float("nan")}, {"epsilon": -0.1}, {"projected_layers": 0}, {"top_k": 0}],
)
def test_impossible_peer_options_are_refused(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        PeerOptions(**values)


# --- PEFT's intruder reduction -------------------------------------------------------------------------------------


def _dense_intruder_removal(layer, update, share, options):
    """The reduced update before its truncation to the adapter's rank, from an SVD in float64."""
    W = layer.base.weight.double()
    left = torch.linalg.svd(W, full_matrices=False).U
    U, S, Vh = torch.linalg.svd(W + update, full_matrices=False)
    likeness = (U.mT @ left).abs().max(dim=1).values
    chosen = [index for index in range(options.top_k) if likeness[index] < options.epsilon]
    return update - share * sum(S[i] * torch.outer(U[:, i], Vh[i]) for i in chosen), bool(chosen)


def _intruding(**config):
    """An adapter with one loud direction per layer that the base does not have."""
    model = zoo.lora_model(dtype=torch.float32, **config)
    for layer in lora_layers(model):
        layer.B.data[:, 0] *= 20
    return model


@pytest.mark.parametrize("config", [{}, {"use_rslora": True, "rank_pattern": {"q_proj": 2, "down_proj": 6}}])
def test_intruder_reduction_equals_the_dense_formula_truncated_to_the_rank(config):
    model, options = _intruding(**config), PeerOptions(top_k=2, epsilon=0.45)
    layers = lora_layers(model)
    before = dense_updates(layers)
    report = repair(model, made_subspace(model), method="intruder", strength=0.6, options=options)
    touched = 0
    for layer, old, new, record in zip(layers, before, dense_updates(layers), report.layers, strict=True):
        dense, hit = _dense_intruder_removal(layer, old, 0.6, options)
        U, S, Vh = torch.linalg.svd(dense, full_matrices=False)
        rank = layer.rank
        expected = (U[:, :rank] * S[:rank]) @ Vh[:rank] if hit else old
        torch.testing.assert_close(new, expected, rtol=0, atol=1e-4 * float(old.norm()))
        assert record.strength == (0.6 if hit else 0.0)
        touched += hit
    assert 0 < touched < len(layers)
    assert report.removed > 0.1


def test_intruder_method_gives_what_peft_gives_and_leaves_an_ordinary_adapter(tmp_path):
    model = _intruding()
    twin = copy.deepcopy(model)
    lora_layers(model)[0].A.requires_grad_(False)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    config = copy.deepcopy(model.peft_config["default"])
    state = torch.get_rng_state()
    report = repair(model, None, method="intruder")
    assert torch.equal(torch.get_rng_state(), state)
    assert report.strength == 0.25
    reduce_intruder_dimension(twin, logging_sink=None)
    inputs = zoo.batch()
    assert torch.equal(model(**inputs).logits, twin(**inputs).logits)
    assert list(model.peft_config) == ["default"]
    assert model.active_adapter == "default"
    assert model.peft_config["default"] == config
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trained
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    again = PeftModel.from_pretrained(zoo.llama(), tmp_path)
    assert all(torch.equal(old, new) for old, new in zip(factors(model), factors(again), strict=True))


def test_intruder_method_does_not_run_the_adapters_own_start_again():
    """PiSSA's start moves part of the base weight into the adapter; a second time would take it away twice."""
    model = zoo.lora_model(trained=False, dtype=torch.float32, init_lora_weights="pissa")
    base = {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" not in name}
    repair(model, None, method="intruder")
    assert all(torch.equal(base[name], p) for name, p in model.named_parameters() if name in base)
    assert model.peft_config["default"].init_lora_weights == "pissa"


def test_intruder_method_refuses_what_peft_would_get_wrong():
    with pytest.raises(AdapterError, match="Conv1D"):
        repair(zoo.lora_model("gpt2"), None, method="intruder")
    model = zoo.lora_model()
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(AdapterError, match="other"):
        repair(model, None, method="intruder")
