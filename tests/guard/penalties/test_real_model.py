"""The penalty on SmolLM2-135M-Instruct, base in its own dtype, against the dense float64 formulas."""

from __future__ import annotations

import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model

from loralign.guard.penalties import GuardPenalty, PenaltyOptions, PenaltyWeights
from loralign.lora import lora_layers
from loralign.models import load_model
from tests.guard.penalties.made import compare_with_dense, random_subspace


@pytest.fixture(scope="module")
def layers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(0)
        config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        found = lora_layers(get_peft_model(load_model().model, config))
    for layer in found:
        torch.nn.init.normal_(layer.B, std=0.01)
    return found


@pytest.mark.realmodel
def test_every_kind_of_layer_of_a_block(layers):
    """Float32 factors on weights of trained magnitudes: values and gradients to float32's rounding."""
    block = [layer for layer in layers if ".layers.11." in layer.name]
    assert len(block) == 7
    generator = torch.Generator().manual_seed(0)
    subspaces = [random_subspace(generator, *layer.shape, 32) for layer in block]
    for projection in ("hard", "soft"):
        options = PenaltyOptions(projection=projection)
        compare_with_dense(block, subspaces, [None] * 7, options, PenaltyWeights(), tolerance=1e-5)


@pytest.mark.realmodel
def test_all_layers_at_once(layers):
    generator = torch.Generator().manual_seed(1)
    subspaces = [random_subspace(generator, *layer.shape, 32) for layer in layers]
    for layer in layers:
        layer.A.grad = layer.B.grad = None
    # The angle is a mean over layers, and not that of its parts.
    sums = PenaltyOptions(alpha=1.0)
    whole = GuardPenalty(layers, subspaces, 1.0, sums).backward(PenaltyWeights())
    blocks = [range(start, start + 7) for start in range(0, len(layers), 7)]
    parts = [
        GuardPenalty([layers[i] for i in one], [subspaces[i] for i in one], 1.0, sums).evaluate(PenaltyWeights())
        for one in blocks
    ]
    assert len(layers) == 210
    assert whole.total == pytest.approx(sum(part.total for part in parts), rel=1e-6)
    assert whole.geodesic == pytest.approx(sum(part.geodesic for part in parts) / len(parts), rel=1e-6)
    gradients = [pair for part in parts for pair in part.gradients]
    for layer, (gradient_a, gradient_b) in zip(layers, gradients, strict=True):
        torch.testing.assert_close(layer.A.grad, gradient_a, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(layer.B.grad, gradient_b, rtol=1e-4, atol=1e-6)
        assert bool(layer.A.grad.any())
        assert bool(layer.B.grad.any())
