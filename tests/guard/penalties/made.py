"""Layers, subspaces and curvatures made of random numbers, and the comparison with the dense formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from loralign.guard.layer_subspace import LayerSubspace
from loralign.guard.penalties import GuardPenalty, PenaltyOptions, PenaltyResult, PenaltyWeights
from loralign.guard.task_curvature import CurvatureFactor, TaskCurvature
from loralign.lora import LoraFactors
from tests.guard.dense import TERMS, DenseLayer, dense_penalty

SCALE = 0.37
WEIGHTS = PenaltyWeights(alignment=0.7, stability=0.3, collision=1.9)


def random_layer(
    generator: torch.Generator, shape=(12, 9), rank=3, scaling=1.5, dtype=torch.float64, name="layer", size=0.2
) -> LoraFactors:
    def parameter(module: nn.Linear, scale: float) -> nn.Linear:
        values = scale * torch.randn(module.weight.shape, generator=generator, dtype=torch.float64)
        module.weight = nn.Parameter(values.to(dtype))
        return module

    rows, columns = shape
    down, up, base = (nn.Linear(a, b, bias=False) for a, b in ((columns, rank), (rank, rows), (columns, rows)))
    return LoraFactors(
        name, parameter(down, 0.5), parameter(up, size), scaling, parameter(base, 0.1).requires_grad_(False)
    )


def random_subspace(generator: torch.Generator, rows: int, columns: int, rank: int) -> LayerSubspace:
    """With a basis in float64, so that rounding of the basis is no part of what is compared."""
    basis = torch.linalg.qr(torch.randn(rows, rank, generator=generator, dtype=torch.float64)).Q
    eigenvalues = torch.rand(rank, generator=generator, dtype=torch.float64).sort(descending=True).values + 0.01
    return LayerSubspace(basis, eigenvalues, float(eigenvalues.sum()) * 1.2, columns)


def random_factor(generator: torch.Generator, size: int, width: int) -> CurvatureFactor:
    return CurvatureFactor(
        torch.rand(size, generator=generator, dtype=torch.float64),
        torch.randn(size, width, generator=generator, dtype=torch.float64),
    )


def random_curvature(generator: torch.Generator, rows: int, columns: int) -> TaskCurvature:
    return TaskCurvature(random_factor(generator, rows, 2), random_factor(generator, columns, 3))


def random_problem(seed: int, shapes=((12, 9), (7, 10), (12, 9)), rank=3, subspace_rank=4, dtype=torch.float64):
    """Layers of a few shapes, the last of a kind without subspace and curvature, the ranks of subspaces unequal."""
    generator = torch.Generator().manual_seed(seed)
    layers = [random_layer(generator, shape, rank, dtype=dtype, name=f"layer {i}") for i, shape in enumerate(shapes)]
    subspaces: list[LayerSubspace | None] = []
    for index, (rows, columns) in enumerate(shapes):
        own = max(1, min(rows, subspace_rank - index % 2))
        subspaces.append(random_subspace(generator, rows, columns, own))
    curvature: list[TaskCurvature | None] = [random_curvature(generator, *shape) for shape in shapes]
    return layers, subspaces, curvature


def dense_layers(layers, subspaces, curvature, weights: list[Tensor] | None = None) -> list[DenseLayer]:
    weights = weights or [layer.base.weight for layer in layers]
    parts = zip(layers, weights, subspaces, curvature, strict=True)
    return [DenseLayer.of(layer, weight, space, metric) for layer, weight, space, metric in parts]


def compare_with_dense(
    layers,
    subspaces,
    curvature,
    options: PenaltyOptions,
    weights: PenaltyWeights = WEIGHTS,
    base: list[Tensor] | None = None,
    tolerance: float = 1e-6,
) -> PenaltyResult:
    """Compare every value, and every layer's gradients in norm."""
    penalty = GuardPenalty(layers, subspaces, SCALE, options, curvature)
    result = penalty.evaluate(weights)
    values, gradients = dense_penalty(dense_layers(layers, subspaces, curvature, base), SCALE, options, weights)
    for name in (*TERMS, "total"):
        found = getattr(result, name)
        if name == "overlap" and weights.collision * options.alpha == 0:
            assert math.isnan(found)
        else:
            assert found == pytest.approx(values[name], rel=tolerance, abs=1e-12), name
    for layer, found, expected in zip(layers, result.gradients, gradients, strict=True):
        for factor, one, other in zip("AB", found, expected, strict=True):
            error = torch.linalg.vector_norm(one.double() - other)
            size = torch.linalg.vector_norm(other)
            assert float(error) <= tolerance * float(size) + 1e-12, (layer.name, factor, float(error / size))
    return result
