from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loralign.geometry import directional_distortion, step_distortion, tradeoff_distortion
from loralign.geometry.tangent import step_norm
from tests.geometry.made import random_layers, statistics_of
from tests.oracles import accessible_part

TARGET = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)


def _mixture(layers):
    return [sum(w * g for w, g in zip(TARGET.tolist(), gradients, strict=True)) for gradients, *_ in layers]


def _cosine(left, right):
    inner = sum((a * b).sum() for a, b in zip(left, right, strict=True))
    norms = [math.sqrt(sum(float(m.square().sum()) for m in side)) for side in (left, right)]
    return float(inner) / (norms[0] * norms[1])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 9999))
def test_directional_distortion_is_one_minus_the_cosine_with_the_projection(seed):
    layers = random_layers(seed)
    mixture = _mixture(layers)
    projected = [accessible_part(g, A, B) for g, (_, A, B, _) in zip(mixture, layers, strict=True)]
    got = directional_distortion(statistics_of(layers), TARGET)
    assert got == pytest.approx(1 - _cosine(mixture, projected), abs=1e-10)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 9999))
def test_step_distortion_is_the_angle_to_the_step_taken(seed):
    layers = random_layers(seed)
    generator = torch.Generator().manual_seed(seed)
    steps = [
        (torch.randn(3, 9, generator=generator).double(), torch.randn(7, 3, generator=generator).double())
        for _ in layers
    ]
    dense = [s * (db @ A + B @ da) for (_, A, B, s), (da, db) in zip(layers, steps, strict=True)]
    inner = torch.tensor(
        [
            float(sum((gradients[i] * d).sum() for (gradients, *_), d in zip(layers, dense, strict=True)))
            for i in range(3)
        ]
    ).double()
    norm = step_norm([(s, A, B, da, db) for (_, A, B, s), (da, db) in zip(layers, steps, strict=True)])
    got = step_distortion(statistics_of(layers), TARGET, inner, norm)
    assert got == pytest.approx(1 + _cosine(_mixture(layers), dense), abs=1e-6)


def test_steepest_descent_has_no_step_distortion():
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(9, 9, generator=generator).double()
    gradients = [torch.randn(7, 9, generator=generator).double() for _ in range(3)]
    B = torch.zeros(7, 9).double()
    mixture = sum(w * g for w, g in zip(TARGET.tolist(), gradients, strict=True))
    step_b = -mixture @ torch.linalg.inv(A)
    layers = [(gradients, A, B, 1.0)]
    inner = torch.stack([(g * (step_b @ A)).sum() for g in gradients])
    norm = step_norm([(1.0, A, B, torch.zeros_like(A), step_b)])
    assert step_distortion(statistics_of(layers), TARGET, inner, norm) == pytest.approx(0, abs=1e-9)


def test_tradeoff_distortion_by_hand():
    # Objective 0 lies wholly inside row(A), objective 1 has a quarter of its energy there.
    A, B = torch.tensor([[1.0, 0.0]]).double(), torch.zeros(1, 1).double()
    inside, bent = torch.tensor([[2.0, 0.0]]).double(), torch.tensor([[1.0, math.sqrt(3.0)]]).double()
    result = tradeoff_distortion(statistics_of([([inside, bent], A, B, 1.0)]), torch.ones(2))
    assert result.intended.tolist() == [0.5, 0.5]
    assert result.realised.tolist() == pytest.approx([2 / 3, 1 / 3])
    assert result.total_variation == pytest.approx(1 / 6)
    assert result.spread == pytest.approx(2.0)


def test_an_absent_objective_is_left_out():
    layers = random_layers(3)
    layers = [([*gradients[:2], torch.zeros_like(gradients[2])], A, B, s) for gradients, A, B, s in layers]
    result = tradeoff_distortion(statistics_of(layers, samples=[4, 4, 0]), TARGET)
    assert result.intended[2] == result.realised[2] == 0
    assert float(result.intended.sum()) == pytest.approx(1)
    assert math.isfinite(result.spread)
