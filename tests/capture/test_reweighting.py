from __future__ import annotations

import pytest
import torch

from loralign.capture import GradientCapture, GradientReweighting
from loralign.errors import ConfigError
from loralign.lora import lora_layers
from tests import oracles, zoo

IDS = torch.tensor([0, 1, 2, 0, -1, 1])


def _gradients(model, inputs, reweighting=None, ids=IDS):
    model.zero_grad()
    losses = zoo.sample_losses(model, inputs)
    if reweighting is None:
        losses.mean().backward()
    else:
        with reweighting(ids):
            losses.mean().backward()
    return losses.detach(), [factor.grad.clone() for layer in lora_layers(model) for factor in (layer.A, layer.B)]


@pytest.mark.parametrize("architecture", zoo.BUILDERS)
def test_gradients_are_those_of_the_weighted_loss(architecture):
    model = zoo.lora_model(architecture)
    inputs = zoo.batch()
    weights = torch.tensor([0.5, 2.0, 0.0], dtype=torch.float64)
    spread = torch.where(IDS >= 0, weights[IDS.clamp_min(0)], 1.0)
    plain, _ = _gradients(model, inputs)
    model.zero_grad()
    (zoo.sample_losses(model, inputs) * spread).mean().backward()
    expected = [factor.grad.clone() for layer in lora_layers(model) for factor in (layer.A, layer.B)]
    reweighting = GradientReweighting(model, zoo.OBJECTIVES)
    reweighting.set_weights(weights)
    losses, got = _gradients(model, inputs, reweighting)
    assert torch.equal(losses, plain)
    for left, right in zip(got, expected, strict=True):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("architecture", ["llama", *zoo.FLATTENED])
@pytest.mark.parametrize("per_layer", [False, True])
def test_stacked_pairs_share_their_weight(architecture, per_layer):
    model = zoo.lora_model(architecture)
    inputs = zoo.batch()
    per_row, per_pair = torch.tensor([0, 1, -1, 0, 1, -1]), torch.tensor([0, 1, -1])
    count = len(lora_layers(model))
    weights = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)
    spread = torch.tensor([0.5, 2.0, 1.0] * 2, dtype=torch.float64)
    (zoo.sample_losses(model, inputs) * spread).mean().backward()
    expected = [factor.grad.clone() for layer in lora_layers(model) for factor in (layer.A, layer.B)]
    reweighting = GradientReweighting(model, zoo.OBJECTIVES)
    reweighting.set_weights(weights.expand(count, 3) if per_layer else weights)
    for ids in (per_row, per_pair):
        _, got = _gradients(model, inputs, reweighting, ids)
        for left, right in zip(got, expected, strict=True):
            torch.testing.assert_close(left, right)


def test_two_batches_of_as_many_tokens_and_other_rows_are_kept_apart():
    model = zoo.lora_model("opt", target_modules=["fc1", "fc2"])
    reweighting = GradientReweighting(model, zoo.OBJECTIVES)
    reweighting.set_weights(torch.tensor([0.5, 2.0, 1.0]))
    ids = torch.tensor([0, 1])
    batches = [zoo.batch(2, 6, seed=2), zoo.batch(4, 3, seed=2)]
    together, apart = [], []
    with reweighting(ids):
        for inputs in batches:
            model.zero_grad()
            zoo.sample_losses(model, inputs).mean().backward()
            together.append([layer.A.grad.clone() for layer in lora_layers(model)])
    for inputs in batches:
        apart.append(_gradients(model, inputs, reweighting, ids)[1][::2])
    for one, other in zip(together, apart, strict=True):
        for left, right in zip(one, other, strict=True):
            assert torch.equal(left, right)


def test_layers_on_several_devices_are_weighted_each_on_its_own():
    reweighting = GradientReweighting(zoo.lora_model(), zoo.OBJECTIVES)
    reweighting.set_weights(torch.tensor([0.5, 2.0, 1.0]))
    with reweighting(IDS):
        for device in ("cpu", "meta", "cpu"):
            assert reweighting._row_weights(0, torch.zeros(6, 7, 24, device=device)).device.type == device


def test_a_new_reweighting_replaces_one_that_was_left_on_the_model():
    model = zoo.lora_model()
    inputs = zoo.batch()
    weights = torch.tensor([0.5, 2.0, 1.5])
    expected = _gradients(model, inputs)[1]
    alone = GradientReweighting(model, zoo.OBJECTIVES)
    alone.set_weights(weights)
    _, want = _gradients(model, inputs, alone)
    alone.close()
    left_there = GradientReweighting(model, zoo.OBJECTIVES)
    left_there.set_weights(torch.tensor([3.0, 1.0, 0.1]))
    left_there.begin(torch.tensor([0, 1]))
    new = GradientReweighting(model, zoo.OBJECTIVES)
    new.set_weights(weights)
    _, got = _gradients(model, inputs, new)
    assert all(torch.equal(left, right) for left, right in zip(got, want, strict=True))
    new.close()
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(left, right) for left, right in zip(_gradients(model, inputs)[1], expected, strict=True))


def test_weights_may_differ_per_layer():
    model = zoo.lora_model()
    inputs = zoo.batch()
    separate = oracles.lora_gradients(model, zoo.sample_losses(model, inputs), torch.where(IDS < 0, 3, IDS), 4)
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(len(separate), 3, generator=generator, dtype=torch.float64) * 3
    reweighting = GradientReweighting(model, zoo.OBJECTIVES)
    reweighting.set_weights(weights)
    _, got = _gradients(model, inputs, reweighting)
    for index, row in enumerate(separate):
        spread = [*weights[index].tolist(), 1.0]
        for factor in (0, 1):
            expected = sum(w * gradient[factor] for w, gradient in zip(spread, row, strict=True))
            torch.testing.assert_close(got[2 * index + factor], expected)


def test_unit_weights_change_no_bit():
    model = zoo.lora_model(dtype=torch.float32)
    inputs = zoo.batch()
    _, expected = _gradients(model, inputs)
    reweighting = GradientReweighting(model, zoo.OBJECTIVES)
    reweighting.set_weights(torch.ones(3))
    _, got = _gradients(model, inputs, reweighting)
    assert all(torch.equal(left, right) for left, right in zip(got, expected, strict=True))


@pytest.mark.parametrize("capture_first", [True, False])
def test_measured_gradients_stay_unweighted(capture_first):
    model = zoo.lora_model()
    inputs = zoo.batch()

    def measure(weights):
        if capture_first:
            capture = GradientCapture(model, zoo.OBJECTIVES, exact=True)
            reweighting = GradientReweighting(model, zoo.OBJECTIVES)
        else:
            reweighting = GradientReweighting(model, zoo.OBJECTIVES)
            capture = GradientCapture(model, zoo.OBJECTIVES, exact=True)
        reweighting.set_weights(weights)
        losses = zoo.sample_losses(model, inputs)
        with capture(IDS), reweighting(IDS):
            losses.mean().backward()
        statistics = capture.statistics()
        capture.close()
        reweighting.close()
        return statistics

    plain = measure(torch.ones(3))
    weighted = measure(torch.tensor([3.0, 0.2, 1.0]))
    torch.testing.assert_close(weighted.layer_full, plain.layer_full)
    torch.testing.assert_close(weighted.layer_euclidean, plain.layer_euclidean)


def test_gradient_checkpointing_and_autocast():
    inputs = zoo.batch()
    weights = torch.tensor([0.5, 2.0, 1.5])
    plain = zoo.lora_model(dtype=torch.float32)
    checkpointed = zoo.checkpointed(zoo.lora_model(dtype=torch.float32))
    results = []
    for model in (plain, checkpointed):
        reweighting = GradientReweighting(model, zoo.OBJECTIVES)
        reweighting.set_weights(weights)
        results.append(_gradients(model, inputs, reweighting)[1])
    for left, right in zip(*results, strict=True):
        torch.testing.assert_close(left, right)


def test_autocast_agrees_with_the_weighted_loss():
    model = zoo.lora_model(dtype=torch.float32)
    inputs = zoo.batch()
    weights = torch.tensor([0.5, 2.0, 1.5])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        spread = torch.where(IDS >= 0, weights[IDS.clamp_min(0)], 1.0)
        (zoo.sample_losses(model, inputs) * spread).mean().backward()
        expected = [factor.grad.clone() for layer in lora_layers(model) for factor in (layer.A, layer.B)]
        reweighting = GradientReweighting(model, zoo.OBJECTIVES)
        reweighting.set_weights(weights)
        _, got = _gradients(model, inputs, reweighting)
    for left, right in zip(got, expected, strict=True):
        assert left.dtype == right.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(left.flatten(), right.flatten(), dim=0) > 0.999


def test_close_removes_every_hook_and_bad_weights_are_refused():
    model = zoo.lora_model()
    reweighting = GradientReweighting(model, zoo.OBJECTIVES)
    for bad in (torch.tensor([1.0, 1.0]), torch.tensor([1.0, -1.0, 1.0]), torch.tensor([1.0, float("nan"), 1.0])):
        with pytest.raises(ConfigError, match="must be finite"):
            reweighting.set_weights(bad)
    reweighting.close()
    assert all(not module._forward_hooks for module in model.modules())
