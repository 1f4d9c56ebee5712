from __future__ import annotations

import copy

import pytest
import torch

from loralign.capture import GradientCapture
from loralign.errors import ConfigError, StateError
from loralign.geometry import UpdateWindow, refine
from loralign.lora import factored_norm, lora_layers
from tests import zoo

IDS = torch.tensor([0, 1, 2, 0, 1, 2])


def _loss(model, inputs):
    return zoo.sample_losses(model, inputs).mean()


def _captured(model, inputs, ids=IDS, **options):
    capture = GradientCapture(model, zoo.OBJECTIVES, **options)
    loss = _loss(model, inputs)
    with capture(ids):
        loss.backward()
    model.zero_grad()
    return capture


def _trained(model, inputs, steps=5, optimizer=None, lr=1e-2):
    optimizer = optimizer or torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        _loss(model, inputs).backward()
        optimizer.step()
    optimizer.zero_grad()
    return optimizer


def _measure(model, inputs):
    def measure():
        capture = _captured(model, inputs, exact=True)
        statistics = capture.statistics("mean")
        capture.close()
        return statistics

    return measure


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("scale", ["balanced", "rows"])
def test_conditioning_changes_neither_outputs_nor_attenuation(architecture, scale):
    model = zoo.lora_model(architecture)
    inputs = zoo.batch()
    before = _loss(model, inputs)
    report = refine(model, mode="condition", scale=scale, measure=_measure(model, inputs))
    torch.testing.assert_close(_loss(model, inputs), before)
    assert report.function_change < 1e-7
    assert report.attenuation_after == pytest.approx(report.attenuation_before, rel=1e-6)


@pytest.mark.parametrize("mode", ["gradient", "balanced"])
def test_informed_start_keeps_the_function_and_raises_attenuation(mode):
    model = zoo.lora_model(trained=False)
    inputs = zoo.batch()
    before = _loss(model, inputs)
    capture = _captured(model, inputs)
    report = refine(model, mode=mode, capture=capture, measure=_measure(model, inputs))
    assert torch.equal(_loss(model, inputs), before)
    assert report.replaced == sum(layer.rank for layer in lora_layers(model))
    for objective, after in report.attenuation_after.items():
        assert after > 1.3 * report.attenuation_before[objective]


@pytest.mark.parametrize("ids", [IDS, torch.tensor([0, 0, 0, 0, 1, 2])], ids=["alike", "unequal"])
def test_exact_gradient_start_is_the_best_row_space_of_the_mixture(ids):
    """Of the objectives' own mean gradients, however many of the batch's samples each of them has."""
    model = zoo.lora_model(trained=False)
    inputs = zoo.batch()
    capture = _captured(model, inputs, ids, exact=True)
    expected = [torch.linalg.svd((g / capture.shares[:, None, None]).sum(dim=0)).Vh[:4] for g in capture.sketches()]
    refine(model, mode="gradient", capture=capture)
    for layer, rows in zip(lora_layers(model), expected, strict=True):
        basis = torch.linalg.qr(layer.A.detach().mT).Q
        torch.testing.assert_close(basis @ basis.mT, rows.mT @ rows, atol=1e-7, rtol=0)


def test_balanced_serves_the_quiet_objective():
    model = zoo.lora_model(rank=1, trained=False)
    inputs = zoo.batch()
    scale = torch.tensor([100.0, 1.0, 1.0, 100.0, 1.0, 1.0]).double()

    def captured():
        capture = GradientCapture(model, zoo.OBJECTIVES, exact=True)
        with capture(IDS):
            (zoo.sample_losses(model, inputs) * scale).mean().backward()
        return capture

    start = copy.deepcopy(model.state_dict())
    attenuation = {}
    for mode in ("gradient", "balanced"):
        model.load_state_dict(start)
        capture = captured()
        refine(model, mode=mode, capture=capture)
        capture.close()
        attenuation[mode] = _measure(model, inputs)().attenuation()
    assert attenuation["gradient"][0] > attenuation["balanced"][0]
    assert attenuation["balanced"][1:].min() > 1.2 * attenuation["gradient"][1:].min()


@pytest.mark.parametrize("mode", ["accumulated", "gradient", "balanced"])
def test_mid_training_refinement_stays_within_the_tolerance(mode):
    model = zoo.lora_model(rank=6, trained=False)
    inputs = zoo.batch()
    window = UpdateWindow(lora_layers(model))
    optimizer = _trained(model, inputs, lr=1e-3)
    before = [(layer.B.detach().clone(), layer.A.detach().clone()) for layer in lora_layers(model)]
    capture = _captured(model, inputs)
    report = refine(model, optimizer, mode=mode, capture=capture, window=window, tolerance=1e-2)
    assert report.replaced > 0
    assert report.moments == "transform"
    for (B, A), layer, said in zip(before, lora_layers(model), report.layers, strict=True):
        change = factored_norm(torch.cat([layer.B.detach(), -B], dim=1), torch.cat([layer.A.detach(), A]))
        relative = float(change.detach() / factored_norm(B, A))
        assert relative**2 <= 1e-2 + 1e-9
        assert relative == pytest.approx(said.function_change, abs=1e-6)


def test_refinement_is_bitwise_reproducible():
    inputs = zoo.batch()

    def run():
        model = zoo.lora_model(rank=6, trained=False)
        window = UpdateWindow(lora_layers(model))
        optimizer = _trained(model, inputs)
        refine(model, optimizer, mode="accumulated", window=window, tolerance=1e-2, seed=3)
        _trained(model, inputs, optimizer=optimizer)
        return [factor.detach() for layer in lora_layers(model) for factor in (layer.A, layer.B)]

    assert all(torch.equal(left, right) for left, right in zip(run(), run(), strict=True))


def test_first_moments_are_those_of_the_new_factors():
    """Averaging gradients and changing the basis commute while the factors stand still."""
    inputs = [zoo.batch(seed=seed) for seed in range(3)]

    def averaged(model, optimizer):
        for one in inputs:
            optimizer.zero_grad()
            _loss(model, one).backward()
            optimizer.step()
        return [optimizer.state[f]["exp_avg"].clone() for layer in lora_layers(model) for f in (layer.A, layer.B)]

    def adam(model):
        return torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.0)

    moved = zoo.lora_model("gpt2")
    optimizer = adam(moved)
    averaged(moved, optimizer)
    refine(moved, optimizer, mode="condition")
    got = [optimizer.state[f]["exp_avg"] for layer in lora_layers(moved) for f in (layer.A, layer.B)]
    fresh = zoo.lora_model("gpt2")
    refine(fresh, mode="condition")
    expected = averaged(fresh, adam(fresh))
    for left, right in zip(got, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-12)


def test_second_moments_move_through_squares_and_new_directions_do_not_jump():
    model = zoo.lora_model(rank=6, trained=False)
    inputs = zoo.batch()
    optimizer = _trained(model, inputs)
    capture = _captured(model, inputs)
    refine(model, optimizer, mode="gradient", capture=capture, tolerance=0.05)
    capture.close()
    before = {layer.name: layer.B.detach().clone() for layer in lora_layers(model)}
    for layer in lora_layers(model):
        for factor in (layer.A, layer.B):
            assert (optimizer.state[factor]["exp_avg_sq"] >= 0).all()
    _trained(model, inputs, steps=1, optimizer=optimizer)
    for layer in lora_layers(model):
        assert (layer.B.detach() - before[layer.name]).abs().max() < 3 * 1e-2


def test_new_columns_take_the_mean_second_moment_by_the_rows_they_meet():
    model = zoo.lora_model(rank=6, trained=False)
    inputs = zoo.batch()
    optimizer = _trained(model, inputs)
    capture = _captured(model, inputs)
    report = refine(model, optimizer, mode="gradient", capture=capture, tolerance=0.05)
    capture.close()
    assert any(0 < one.replaced < 6 for one in report.layers)
    for layer, one in zip(lora_layers(model), report.layers, strict=True):
        kept = 6 - one.replaced
        if 0 < kept < 6:
            second = optimizer.state[layer.B]["exp_avg_sq"].double()
            # Gradients of B' are products with the rows of A', so their squares go with these rows' squared lengths.
            lengths = layer.A.detach().double().square().sum(dim=1)
            expected = second[:, :kept].mean(dim=1) * (lengths[kept:].mean() / lengths[:kept].mean())
            torch.testing.assert_close(second[:, kept:], expected[:, None].expand(-1, one.replaced))


def test_reset_forgets_the_moments():
    model = zoo.lora_model()
    optimizer = _trained(model, zoo.batch())
    refine(model, optimizer, mode="condition", moments="reset")
    assert all(factor not in optimizer.state for layer in lora_layers(model) for factor in (layer.A, layer.B))


def test_window_of_several_marks_sums_decayed_updates_and_survives_saving():
    model = zoo.lora_model()
    inputs = zoo.batch()
    layers = lora_layers(model)
    window = UpdateWindow(layers, windows=2, decay=0.5)
    states = [[(la.B.detach().clone(), la.A.detach().clone()) for la in layers]]
    for position in range(2):
        _trained(model, inputs)
        states.append([(la.B.detach().clone(), la.A.detach().clone()) for la in layers])
        if position == 0:
            window.mark()
    for index in range(len(layers)):
        products = [B @ A for B, A in (state[index] for state in states)]
        expected = 0.5 * (products[1] - products[0]) + (products[2] - products[1])
        left, right = window.updates(index)
        assert left.shape[1] == 3 * layers[index].rank
        torch.testing.assert_close(left @ right, expected)
    again = UpdateWindow(layers, windows=2, decay=0.5)
    again.load_state_dict(window.state_dict())
    torch.testing.assert_close(again.updates(0)[0], window.updates(0)[0])
    with pytest.raises(StateError, match="does not fit"):
        again.load_state_dict({"0.0.A": torch.zeros(1)})


def test_wrong_use_is_named():
    model = zoo.lora_model()
    with pytest.raises(ConfigError, match="mode 'magic'"):
        refine(model, mode="magic")
    with pytest.raises(ConfigError, match="window"):
        refine(model, mode="accumulated")
    with pytest.raises(ConfigError, match="measured gradients"):
        refine(model, mode="balanced")
    with pytest.raises(ConfigError, match="scale"):
        refine(model, scale="odd")
