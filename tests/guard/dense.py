"""The penalties of docs/adapting.md as dense float64 formulas on (m, n) matrices, differentiated by autograd."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from loralign.guard.layer_subspace import LayerSubspace, soft_coefficients
from loralign.guard.penalties import PenaltyOptions, PenaltyWeights
from loralign.guard.task_curvature import TaskCurvature
from loralign.lora import LoraFactors

TERMS = ("alignment", "stability", "overlap", "geodesic")


@dataclass(frozen=True)
class DenseLayer:
    """One layer in float64, with its frozen weight."""

    A: Tensor
    B: Tensor
    scaling: float
    weight: Tensor
    subspace: LayerSubspace | None
    curvature: TaskCurvature | None

    @classmethod
    def of(cls, layer: LoraFactors, weight: Tensor, subspace=None, curvature=None) -> DenseLayer:
        """Leaf copies of a layer's factors."""
        A, B = (one.detach().double().clone().requires_grad_(True) for one in (layer.A, layer.B))
        return cls(A, B, layer.scaling, weight.detach().double(), subspace, curvature)

    @property
    def update(self) -> Tensor:
        return self.scaling * self.B @ self.A


def projector(subspace: LayerSubspace | None, size: int, projection: str) -> Tensor:
    if subspace is None:
        return torch.zeros(size, size, dtype=torch.float64)
    basis = subspace.basis.double()
    return basis @ torch.diag(soft_coefficients(subspace.eigenvalues.double(), projection)) @ basis.mT


def fisher_root(subspace: LayerSubspace | None, size: int, scale: float) -> Tensor:
    if subspace is None:
        return torch.zeros(size, size, dtype=torch.float64)
    basis = subspace.basis.double()
    return basis @ torch.diag((subspace.eigenvalues.double() / scale).sqrt()) @ basis.mT


def curvature_sides(layer: DenseLayer, form: str) -> tuple[Tensor, Tensor]:
    rows, columns = (torch.eye(size, dtype=torch.float64) for size in layer.weight.shape)
    if layer.curvature is None or form == "identity":
        return rows, columns
    output = layer.curvature.output
    dense = torch.diag(output.diagonal.double()) + output.columns.double() @ output.columns.double().mT
    if form == "diagonal":
        return torch.diag(dense.diagonal()), columns
    side = layer.curvature.input
    return dense, torch.diag(side.diagonal.double()) + side.columns.double() @ side.columns.double().mT


def layer_terms(layer: DenseLayer, scale: float, options: PenaltyOptions) -> Tensor:
    """The four terms of one layer, ``(4,)``."""
    size = len(layer.B)
    update = layer.update
    aligned = projector(layer.subspace, size, options.projection) @ update
    task = update - aligned
    alignment = (fisher_root(layer.subspace, size, scale) @ aligned).square().sum()
    output, inputs = curvature_sides(layer, options.task_curvature)
    stability = torch.trace(task.mT @ output @ task @ inputs)
    eta = 1 + options.beta * torch.sigmoid((layer.weight + update).abs() - options.tau)
    overlap = (eta * (aligned * task).abs()).sum()
    norms = aligned.square().sum() * task.square().sum()
    if float(norms.detach()) == 0:
        geodesic = torch.zeros((), dtype=torch.float64)
    elif options.geodesic == "row":
        geodesic = (aligned @ task.mT).square().sum() / norms
    else:
        geodesic = (aligned * task).sum().square() / norms
    return torch.stack([alignment, stability, overlap, geodesic])


def dense_penalty(
    layers: list[DenseLayer], scale: float, options: PenaltyOptions, weights: PenaltyWeights
) -> tuple[dict[str, float], list[tuple[Tensor, Tensor]]]:
    """Values of the terms with their weighted ``total``, and gradients on ``(A, B)``.

    The terms are summed over layers, but for the angle, which is the mean over those with a subspace.
    """
    terms = torch.stack([layer_terms(layer, scale, options) for layer in layers]).sum(dim=0)
    covered = sum(layer.subspace is not None for layer in layers)
    terms = terms / torch.tensor([1.0, 1.0, 1.0, max(1, covered)], dtype=torch.float64)
    factors = torch.tensor(
        [
            weights.alignment,
            weights.stability,
            weights.collision * options.alpha,
            weights.collision * (1 - options.alpha),
        ],
        dtype=torch.float64,
    )
    total = (terms * factors).sum()
    leaves = [leaf for layer in layers for leaf in (layer.A, layer.B)]
    found = torch.autograd.grad(total, leaves, allow_unused=True)
    gradients = [torch.zeros_like(leaf) if one is None else one for leaf, one in zip(leaves, found, strict=True)]
    values = dict(zip((*TERMS, "total"), [*terms.tolist(), total.item()], strict=True))
    return values, list(zip(gradients[::2], gradients[1::2], strict=True))
