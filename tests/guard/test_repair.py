from __future__ import annotations

import json
import math

import pytest
import torch
from peft import PeftModel

from loralign.errors import AdapterError, ConfigError, NonFiniteError
from loralign.guard.repair import METHODS, repair
from loralign.guard.subspace import soft_coefficients
from loralign.lora import canonical_name, lora_layers
from tests import zoo
from tests.guard.repair_setting import dense_updates, factors, made_subspace

RANK_PATTERN = {"q_proj": 2, "down_proj": 6}


def _dense_repair(layers, subspace, updates, strengths, projection):
    """``(I − ρ U C Uᵀ) ΔW`` per layer."""
    wanted = []
    for layer, update, strength in zip(layers, updates, strengths, strict=True):
        found = subspace.layers.get(canonical_name(layer.name))
        if found is None:
            wanted.append(update)
            continue
        U, values = found.basis.double(), found.eigenvalues.double()
        C = soft_coefficients(values, projection).double().diag()
        wanted.append(update - strength * U @ C @ U.mT @ update)
    return wanted


@pytest.mark.parametrize("projection", ["hard", "soft"])
@pytest.mark.parametrize("strength", [0.3, 1.0])
@pytest.mark.parametrize(
    ("architecture", "config"),
    [("llama", {}), ("gpt2", {}), ("llama", {"use_rslora": True, "rank_pattern": RANK_PATTERN})],
)
def test_repair_equals_the_dense_projection(architecture, config, strength, projection):
    model = zoo.lora_model(architecture, dtype=torch.float32, **config)
    layers, subspace = lora_layers(model), made_subspace(model)
    before, A = dense_updates(layers), [layer.A.detach().clone() for layer in layers]
    report = repair(model, subspace, strength=strength, projection=projection)
    wanted = _dense_repair(layers, subspace, before, [strength] * len(layers), projection)
    for layer, down, after, expected, record in zip(
        layers, A, dense_updates(layers), wanted, report.layers, strict=True
    ):
        torch.testing.assert_close(after, expected, rtol=0, atol=1e-6 * float(expected.norm()))
        assert torch.equal(layer.A, down)
        assert record.name == canonical_name(layer.name)
        assert record.strength == strength


def test_report_holds_the_shares_and_energies_of_the_dense_updates():
    model = zoo.lora_model(dtype=torch.float32)
    layers, subspace = lora_layers(model), made_subspace(model)
    before = dense_updates(layers)
    report = repair(model, subspace, strength=0.6)
    after = dense_updates(layers)
    bases = [subspace.layers[canonical_name(layer.name)].basis.double() for layer in layers]
    for record, old, new, U in zip(report.layers, before, after, bases, strict=True):
        assert record.energy_before == pytest.approx(float(old.square().sum()), rel=1e-6)
        assert record.energy_after == pytest.approx(float(new.square().sum()), rel=1e-6)
        assert record.change == pytest.approx(float((new - old).norm() / old.norm()), rel=1e-5)
        inside = float((U.mT @ old).square().sum())
        assert record.share_before == pytest.approx(inside / float(old.square().sum()), rel=1e-5)
        assert record.removed == pytest.approx((1 - 0.4**2) * record.share_before, rel=1e-5)
    total = sum(float(update.square().sum()) for update in before)
    inside = sum(float((U.mT @ update).square().sum()) for U, update in zip(bases, before, strict=True))
    assert report.share_before == pytest.approx(inside / total, rel=1e-5)
    assert report.share_after < report.share_before
    assert report.removed == pytest.approx(1 - sum(float(update.square().sum()) for update in after) / total, rel=1e-5)
    written = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert written["method"] == "fisher"
    assert written["layers"][0]["removed"] == report.layers[0].removed
    assert written["removed"] == report.removed
    assert written["drift_before"] is None
    assert written["met"] is None


def test_hard_repair_is_idempotent_and_leaves_nothing_in_the_subspace():
    model = zoo.lora_model(dtype=torch.float32)
    layers, subspace = lora_layers(model), made_subspace(model)
    assert repair(model, subspace).share_after < 1e-10
    once = dense_updates(layers)
    repair(model, subspace)
    for first, second in zip(once, dense_updates(layers), strict=True):
        torch.testing.assert_close(second, first, rtol=0, atol=1e-7 * float(first.norm()))


def test_repaired_adapter_is_an_ordinary_one_of_the_same_rank(tmp_path):
    config = {"use_rslora": True, "rank_pattern": RANK_PATTERN}
    model = zoo.lora_model(dtype=torch.float32, **config)
    shapes = [(layer.A.shape, layer.B.shape, layer.scaling) for layer in lora_layers(model)]
    repair(model, made_subspace(model))
    assert [(layer.A.shape, layer.B.shape, layer.scaling) for layer in lora_layers(model)] == shapes
    inputs = zoo.batch()
    expected = model(**inputs).logits
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    again = PeftModel.from_pretrained(zoo.llama(), tmp_path)
    for old, new in zip(factors(model), factors(again), strict=True):
        assert torch.equal(old, new)
    torch.testing.assert_close(again(**inputs).logits, expected)


def test_bfloat16_factors_are_repaired_in_float32():
    model = zoo.lora_model(dtype=torch.bfloat16)
    layers, subspace = lora_layers(model), made_subspace(model)
    starts = [layer.B.detach().float() for layer in layers]
    repair(model, subspace)
    for layer, start in zip(layers, starts, strict=True):
        U = subspace.layers[canonical_name(layer.name)].basis
        assert layer.B.dtype == torch.bfloat16
        exact = start - U @ (U.mT @ start)
        # One rounding at the end, and none before it.
        torch.testing.assert_close(layer.B.float(), exact, rtol=2**-8, atol=1e-6)


def test_zero_strength_changes_no_bit():
    model = zoo.lora_model(dtype=torch.bfloat16)
    start = factors(model)
    for method in ("fisher", "random", "scale", "intruder"):
        report = repair(model, made_subspace(model), method=method, strength=0.0)
        assert report.removed == 0
        assert [layer.change for layer in report.layers] == [0.0] * len(report.layers)
        assert all(torch.equal(old, new) for old, new in zip(start, factors(model), strict=True))


def test_strengths_by_name_reach_those_layers_alone():
    model = zoo.lora_model(dtype=torch.float32)
    layers, subspace = lora_layers(model), made_subspace(model)
    before = dense_updates(layers)
    names = [canonical_name(layer.name) for layer in layers]
    given_strengths = {names[1]: 0.5, layers[4].name: 1.0}
    report = repair(model, subspace, strength=given_strengths)
    strengths = [{1: 0.5, 4: 1.0}.get(index, 0.0) for index in range(len(layers))]
    assert [layer.strength for layer in report.layers] == strengths
    assert report.strength is None
    wanted = _dense_repair(layers, subspace, before, strengths, "hard")
    for after, expected in zip(dense_updates(layers), wanted, strict=True):
        torch.testing.assert_close(after, expected, rtol=0, atol=1e-6 * float(expected.norm()))


def test_layers_that_the_subspace_does_not_cover_need_leave_to_stay():
    model = zoo.lora_model(dtype=torch.float32)
    layers = lora_layers(model)
    subspace = made_subspace(model, only=lambda name: "q_proj" not in name)
    start = factors(model)
    with pytest.raises(AdapterError):
        repair(model, subspace)
    assert all(torch.equal(old, new) for old, new in zip(start, factors(model), strict=True))
    report = repair(model, subspace, partial=True)
    for layer, record, old in zip(layers, report.layers, start[1::2], strict=True):
        uncovered = "q_proj" in layer.name
        assert (record.strength == 0) == uncovered
        assert (record.share_before is None) == uncovered
        assert torch.equal(layer.B, old) == uncovered
    uncovered_name = next(layer.name for layer in layers if "q_proj" in layer.name)
    with pytest.raises(ConfigError, match="cannot be repaired by this method"):
        repair(model, subspace, partial=True, strength={uncovered_name: 1.0})


def test_random_control_has_the_same_ranks_and_removes_the_expected_energy():
    model = zoo.lora_model(dtype=torch.float32)
    layers, subspace = lora_layers(model), made_subspace(model, rank=6)
    control = subspace.random_like(0)
    for name, layer in subspace.layers.items():
        assert control.layers[name].basis.shape == layer.basis.shape
    start = factors(model)
    repeats, removed = 60, torch.zeros(60, len(layers), dtype=torch.float64)
    for seed in range(repeats):
        report = repair(model, subspace, method="random", seed=seed)
        removed[seed] = torch.tensor([layer.removed for layer in report.layers])
        for layer, A, B in zip(layers, start[::2], start[1::2], strict=True):
            layer.A.data.copy_(A)
            layer.B.data.copy_(B)
    expected = torch.tensor([6 / layer.B.shape[0] for layer in layers], dtype=torch.float64)
    error = removed.std(dim=0) / math.sqrt(repeats)
    assert ((removed.mean(dim=0) - expected).abs() < 4 * error).all()
    assert (error < 0.05 * expected.sqrt()).all()


def test_random_control_follows_its_seed():
    model = zoo.lora_model(dtype=torch.float32)
    subspace, start = made_subspace(model), factors(model)
    results = []
    for seed in (1, 1, 2):
        for one, old in zip(lora_layers(model), zip(start[::2], start[1::2], strict=True), strict=True):
            one.A.data.copy_(old[0])
            one.B.data.copy_(old[1])
        repair(model, subspace, method="random", seed=seed)
        results.append(factors(model)[1])
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"method": "magic"}, "fisher, random, scale, safe_lora, intruder"),
        ({"projection": "fuzzy"}, "hard, soft"),
        ({"strength": 1.5}, "strength 1.5"),
        ({"strength": -0.1}, "strength -0.1"),
        ({"strength": math.nan}, "strength nan"),
        ({"strength": {"model.layers.0.self_attn.q_proj": 2.0}}, "strength 2.0"),
        ({"strength": {"model.layers.0.self_attn.qproj": 1.0}}, "did you mean 'model.layers.0.self_attn.q_proj'"),
        ({"strength": {"model.layers.0.self_attn.q_proj": 1.0}, "per_layer": True}, "per layer"),
        ({"strength": {"model.layers.0.self_attn.q_proj": 1.0}, "method": "intruder"}, "one strength"),
        ({"drift_budget": 0.0, "measure": lambda: 1.0}, "drift budget 0"),
        ({"drift_budget": -1.0, "measure": lambda: 1.0}, "drift budget -1"),
        ({"drift_budget": math.inf, "measure": lambda: 1.0}, "drift budget inf"),
        ({"drift_budget": math.nan, "measure": lambda: 1.0}, "drift budget nan"),
        ({"drift_budget": 0.1}, "measure="),
        ({"drift_budget": 0.1, "measure": lambda: 1.0, "strength": 0.5}, "both"),
        ({"drift_budget": 0.1, "measure": lambda: 1.0, "tolerance": 0.0}, "tolerance 0"),
        ({"drift_budget": 0.1, "measure": lambda: 1.0, "max_measurements": 1}, "1 measurements"),
        ({"method": "scale", "per_layer": True}, "no strengths per layer"),
        ({"method": "safe_lora"}, "unaligned="),
    ],
)
def test_impossible_settings_are_refused_and_change_nothing(arguments, words):
    model = zoo.lora_model(dtype=torch.float32)
    subspace, start = made_subspace(model), factors(model)
    with pytest.raises(ConfigError) as raised:
        repair(model, subspace, **arguments)
    assert words in str(raised.value)
    assert all(torch.equal(old, new) for old, new in zip(start, factors(model), strict=True))


@pytest.mark.parametrize("method", ["fisher", "random"])
def test_methods_that_project_need_a_subspace(method):
    with pytest.raises(ConfigError, match="needs a subspace"):
        repair(zoo.lora_model(), None, method=method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fault", [RuntimeError, KeyboardInterrupt, NonFiniteError])
def test_adapter_is_put_back_when_measuring_fails(method, fault):
    model = zoo.lora_model(dtype=torch.float32)
    unaligned, start, calls = zoo.lora_model(seed=1).unload(), factors(model), []
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]

    def measure():
        calls.append(None)
        if len(calls) < 3:
            return 2.0 - len(calls)
        if fault is NonFiniteError:
            return math.nan
        raise fault

    with pytest.raises(fault):
        repair(model, made_subspace(model), method=method, drift_budget=0.5, measure=measure, unaligned=unaligned)
    assert len(calls) == 3
    assert all(torch.equal(old, new) for old, new in zip(start, factors(model), strict=True))
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == trained
    assert list(model.peft_config) == ["default"]
