"""The decoupled alignment penalty against its definition, dense and in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from loralign.guard import LayerSubspace, project, proximal_step, soft_coefficients
from loralign.lora import LoraFactors


def _layer(m: int, n: int, r: int, seed: int, scaling: float = 1.7) -> LoraFactors:
    generator = torch.Generator().manual_seed(seed)
    down, up = nn.Linear(n, r, bias=False, dtype=torch.float64), nn.Linear(r, m, bias=False, dtype=torch.float64)
    with torch.no_grad():
        down.weight.copy_(torch.randn(r, n, generator=generator, dtype=torch.float64))
        up.weight.copy_(torch.randn(m, r, generator=generator, dtype=torch.float64))
    return LoraFactors("layer", down, up, scaling, base=nn.Linear(n, m, bias=False))


def _subspace(m: int, n: int, q: int, seed: int) -> LayerSubspace:
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(m, q, generator=generator, dtype=torch.float64)).Q
    values = (torch.rand(q, generator=generator, dtype=torch.float64) + 0.1).sort(descending=True).values
    return LayerSubspace(basis, values, 2 * float(values.sum()), n)


def _penalty(X: Tensor, layer: LoraFactors, subspace: LayerSubspace, scale: float, projection: Any) -> Tensor:
    """``‖F^½ ΔW_A‖²`` with every matrix written out: ``ΔW_A = U C Uᵀ (s X A)``, ``F = U (Λ/scale) Uᵀ``."""
    U, values = subspace.basis, subspace.eigenvalues
    C = soft_coefficients(values, projection).diag()
    inside = U @ C @ U.mT @ (layer.scaling * X @ layer.A.detach())
    root = U @ (values / scale).sqrt().diag() @ U.mT
    return (root @ inside).square().sum()


def _stability(X: Tensor, layer: LoraFactors, subspace: LayerSubspace | None, projection: Any) -> Tensor:
    """``‖ΔW − U C Uᵀ ΔW‖²`` with every matrix written out."""
    update = layer.scaling * X @ layer.A.detach()
    if subspace is None:
        return update.square().sum()
    C = soft_coefficients(subspace.eigenvalues, projection).diag()
    return (update - subspace.basis @ C @ subspace.basis.mT @ update).square().sum()


@pytest.mark.parametrize("projection", ["hard", "soft"])
@settings(max_examples=40, deadline=None)
@given(
    m=st.integers(3, 9), n=st.integers(3, 9), r=st.integers(1, 3), seed=st.integers(0, 99), step=st.floats(1e-3, 1e3)
)
def test_step_ends_where_the_objective_is_stationary(
    projection: Any, m: int, n: int, r: int, seed: int, step: float
) -> None:
    """``X − B + t ∇penalty(X) = 0``: a lost ``s²``, factor 2, square of ``c`` or transpose leaves a gradient."""
    layer, subspace, scale = _layer(m, n, r, seed), _subspace(m, n, min(m, 3), seed + 1), 0.6
    start = layer.B.detach().clone()
    proximal_step([layer], [subspace], scale, [step], projection)
    X = layer.B.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(_penalty(X, layer, subspace, scale, projection), X)
    torch.testing.assert_close(X.detach() + step * gradient, start, rtol=1e-7, atol=1e-8 * (1 + step))


@pytest.mark.parametrize("projection", ["hard", "soft"])
@settings(max_examples=40, deadline=None)
@given(
    m=st.integers(3, 9),
    r=st.integers(1, 3),
    seed=st.integers(0, 99),
    steps=st.tuples(st.floats(1e-3, 1e3) | st.just(0.0), st.floats(1e-3, 1e3)),
    covered=st.booleans(),
)
def test_both_energies_at_once(
    projection: Any, m: int, r: int, seed: int, steps: tuple[float, float], covered: bool
) -> None:
    layer, scale = _layer(m, 5, r, seed), 0.6
    subspace = _subspace(m, 5, min(m, 3), seed + 1) if covered else None
    start = layer.B.detach().clone()
    proximal_step([layer], [subspace], scale, [steps[0]], projection, [steps[1]])
    X = layer.B.detach().clone().requires_grad_()
    objective = steps[1] * _stability(X, layer, subspace, projection)
    if subspace is not None:
        objective = objective + steps[0] * _penalty(X, layer, subspace, scale, projection)
    (gradient,) = torch.autograd.grad(objective, X)
    torch.testing.assert_close(X.detach() + gradient, start, rtol=1e-7, atol=1e-8 * (1 + max(steps)))


def test_small_step_is_a_gradient_step_and_a_large_one_projects() -> None:
    layer, subspace = _layer(8, 6, 2, 0), _subspace(8, 6, 3, 1)
    start = layer.B.detach().clone()
    X = start.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(_penalty(X, layer, subspace, 1.0, "hard"), X)
    proximal_step([layer], [subspace], 1.0, [1e-7])
    torch.testing.assert_close(layer.B.detach() - start, -1e-7 * gradient, rtol=1e-4, atol=0)
    with torch.no_grad():
        layer.B.copy_(start)
    proximal_step([layer], [subspace], 1.0, [1e12])
    far = layer.B.detach().clone()
    with torch.no_grad():
        layer.B.copy_(start)
    project([layer], [subspace])
    torch.testing.assert_close(far, layer.B.detach(), rtol=1e-8, atol=1e-8)


def test_layer_without_subspace_or_step_stays() -> None:
    first, second = _layer(5, 4, 2, 0), _layer(5, 4, 2, 1)
    before = [first.B.detach().clone(), second.B.detach().clone()]
    proximal_step([first, second], [None, _subspace(5, 4, 2, 0)], 1.0, [1.0, 0.0])
    assert torch.equal(first.B, before[0])
    assert torch.equal(second.B, before[1])
