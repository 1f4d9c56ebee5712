"""One decoupled step: which term takes it implicitly, which explicitly, and with which learning rate."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from loralign.guard import AlignmentSubspace, PenaltyWeights, proximal_step
from loralign.lora import LoraFactors, canonical_name, lora_layers
from loralign.training import GuardConfig
from loralign.training.guard_hold import SubspaceHold
from tests.evaluation import models
from tests.training import guard_runs

RATES = {"A": 0.3, "B": 0.7}


def trained() -> Any:
    model = get_peft_model(models.build("llama").double(), LoraConfig(**guard_runs.LORA))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for layer in lora_layers(model):
            layer.B.copy_(0.1 * torch.randn(layer.B.shape, generator=generator, dtype=layer.B.dtype))
    return model


def held() -> AlignmentSubspace:
    return guard_runs.subspace()


def optimizer(layers: list[LoraFactors]) -> torch.optim.Optimizer:
    groups = [{"params": [getattr(layer, name) for layer in layers], "lr": rate} for name, rate in RATES.items()]
    return torch.optim.SGD(groups)


def step(weights: PenaltyWeights, **options: Any) -> tuple[list[LoraFactors], list[LoraFactors], SubspaceHold]:
    """The layers as they were and as one decoupled step leaves them."""
    model = trained()
    before = lora_layers(copy.deepcopy(model))
    layers = lora_layers(model)
    hold = SubspaceHold(layers, held(), GuardConfig(guard_placement="decoupled", **options))
    hold.act(weights, 1.0, optimizer(layers))
    return before, layers, hold


@pytest.mark.parametrize("weights", [PenaltyWeights(2.0, 0.0, 0.0), PenaltyWeights(0.0, 0.5, 0.0)])
def test_alignment_and_stability_take_the_implicit_step_alone(weights: PenaltyWeights) -> None:
    """With the learning rate of B, once; the explicit step, which moves A as well, must leave them out."""
    before, after, hold = step(weights)
    rate = RATES["B"]
    proximal_step(
        before,
        hold.subspaces,
        hold.scale,
        [rate * weights.alignment] * len(before),
        "hard",
        [rate * weights.stability] * len(before),
    )
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(other.B, one.B, rtol=1e-9, atol=1e-12)
        assert torch.equal(other.A, one.A)


def test_collision_takes_an_explicit_step_with_each_factors_own_rate() -> None:
    weights = PenaltyWeights(0.0, 0.0, 1e-3)
    before, after, hold = step(weights)
    fresh = SubspaceHold(before, held(), hold.config)
    gradients = fresh.penalty.evaluate(weights).gradients
    assert gradients is not None
    for one, other, (a, b) in zip(before, after, gradients, strict=True):
        for name, gradient in (("A", a), ("B", b)):
            was, now = getattr(one, name), getattr(other, name)
            wanted = was - RATES[name] * gradient
            torch.testing.assert_close(now.to(wanted), wanted, rtol=1e-6, atol=1e-10)


def test_an_explicit_step_is_a_tenth_of_its_factor_at_most() -> None:
    before, after, _ = step(PenaltyWeights(0.0, 0.0, 1e6))
    for one, other in zip(before, after, strict=True):
        for name in ("A", "B"):
            was, now = getattr(one, name).detach(), getattr(other, name).detach()
            assert float((now - was).norm()) <= 0.1 * float(was.norm()) * (1 + 1e-6)
    assert [canonical_name(layer.name) for layer in after] == [canonical_name(layer.name) for layer in before]


@pytest.mark.parametrize("scale", ["model", "layer"])
def test_layers_count_by_their_eigenvalues_or_all_alike(scale: str) -> None:
    """The alignment term against Σ tr(ΔWᵀ U Λ Uᵀ ΔW) of dense matrices, also of a subspace that is estimated again."""
    layers = lora_layers(trained())
    first = held()
    factors = {name: 10.0**number for number, name in enumerate(first.layers)}
    second = AlignmentSubspace(
        {
            name: replace(layer, eigenvalues=layer.eigenvalues * factors[name], trace=layer.trace * factors[name])
            for name, layer in first.layers.items()
        },
        first.info,
    )
    hold = SubspaceHold(layers, first, GuardConfig(eigenvalue_scale=scale))
    for subspace in (first, second):
        hold.replace(subspace)
        assert hold.subspace is subspace
        wanted = 0.0
        for layer in layers:
            space = subspace.layers[canonical_name(layer.name)]
            update = (layer.scaling * layer.B.double() @ layer.A.double()).detach()
            top = subspace.scale if scale == "model" else float(space.eigenvalues[0])
            inside = space.basis.double().mT @ update
            # Of each layer the share of the Fisher trace that its directions hold stays.
            name = canonical_name(layer.name)
            torch.testing.assert_close(subspace.levelled().energy_curve(name), subspace.energy_curve(name))
            wanted += float((space.eigenvalues.double()[:, None] / top * inside**2).sum())
        found = hold.penalty.evaluate(PenaltyWeights(1.0, 0.0, 0.0)).alignment
        assert float(found) == pytest.approx(wanted, rel=1e-6)
