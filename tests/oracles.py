"""Dense float64 formulas of docs/concepts.md, written for plainness, against which the fast paths are compared."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from loralign.lora import LoraFactors, lora_layers


def dense_projector(columns: Tensor) -> Tensor:
    """Orthogonal projector on the column space, through the pseudo-inverse."""
    return columns @ torch.linalg.pinv(columns)


def accessible_part(gradient: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """``P(G) = Π_B G + G Π_A − Π_B G Π_A``."""
    on_b, on_a = dense_projector(B), dense_projector(A.mT)
    return on_b @ gradient + gradient @ on_a - on_b @ gradient @ on_a


def base_weight(model: nn.Module, layer: LoraFactors) -> tuple[Tensor, bool]:
    """The frozen weight of a layer, and whether it is stored as ``(n, m)`` (Conv1D)."""
    base = model.get_submodule(layer.name).get_base_layer()
    return base.weight, type(base).__name__ == "Conv1D"


def full_gradients(model: nn.Module, losses: Tensor, ids: Tensor, objectives: int) -> list[list[Tensor]]:
    """``G_i (m, n)`` per layer and objective of ``losses.mean()``, by ``K`` separate dense backward passes."""
    layers = lora_layers(model)
    weights = [base_weight(model, layer) for layer in layers]
    rows = [
        torch.autograd.grad(
            (losses * (ids == objective)).sum() / len(losses), [w for w, _ in weights], retain_graph=True
        )
        for objective in range(objectives)
    ]
    return [
        [row[index].mT if transposed else row[index] for row in rows] for index, (_, transposed) in enumerate(weights)
    ]


def lora_gradients(model: nn.Module, losses: Tensor, ids: Tensor, objectives: int) -> list[list[tuple[Tensor, Tensor]]]:
    """``(∇_A L_i, ∇_B L_i)`` per layer and objective, by ``K`` separate backward passes."""
    layers = lora_layers(model)
    factors = [factor for layer in layers for factor in (layer.A, layer.B)]
    rows = [
        torch.autograd.grad((losses * (ids == objective)).sum() / len(losses), factors, retain_graph=True)
        for objective in range(objectives)
    ]
    return [[(row[2 * index], row[2 * index + 1]) for row in rows] for index in range(len(layers))]


def gram(matrices: list[Tensor]) -> Tensor:
    """Frobenius Gram matrix."""
    return torch.stack([torch.stack([(left * right).sum() for right in matrices]) for left in matrices])


def require_base_gradients(model: nn.Module) -> None:
    """Let autograd reach the frozen weights, for the oracles only."""
    for layer in lora_layers(model):
        base_weight(model, layer)[0].requires_grad_(True)
