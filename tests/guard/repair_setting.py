"""Made-up subspaces and dense updates for the tests of repairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from loralign.guard.repair_methods import update_curvatures
from loralign.guard.subspace import AlignmentSubspace, LayerSubspace, SubspaceInfo
from loralign.lora import LoraFactors, canonical_name, lora_layers


def made_subspace(
    model: nn.Module,
    *,
    rank: int = 5,
    seed: int = 0,
    only: Callable[[str], bool] = lambda name: True,
    loudness: Callable[[str], float] = lambda name: 1.0,
) -> AlignmentSubspace:
    """Random directions with falling eigenvalues for the layers whose names pass; ``loudness`` scales eigenvalues."""
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for layer in lora_layers(model):
        name = canonical_name(layer.name)
        m, n = layer.B.shape[0], layer.A.shape[1]
        basis = torch.linalg.qr(torch.randn(m, rank, generator=generator, dtype=torch.float64)).Q.float()
        eigenvalues = loudness(name) * (torch.rand(rank, generator=generator) + 0.1).sort(descending=True).values
        if only(name):
            layers[name] = LayerSubspace(basis, eigenvalues, trace=2 * float(eigenvalues.sum()), columns=n)
    return AlignmentSubspace(layers, SubspaceInfo(seed=seed))


def dense_updates(layers: Sequence[LoraFactors]) -> list[Tensor]:
    """``ΔW = s·B A`` in float64."""
    return [layer.scaling * layer.B.detach().double() @ layer.A.detach().double() for layer in layers]


def factors(model: nn.Module) -> list[Tensor]:
    """Copies of ``A`` and ``B`` of every layer, in turn."""
    return [factor.detach().clone() for layer in lora_layers(model) for factor in (layer.A, layer.B)]


def drift_of_the_subspace(model, subspace):
    """Energy left in the subspace: what a Fisher quadratic would call the drift."""
    layers = lora_layers(model)
    damages, _ = update_curvatures(layers, subspace.match(layers))
    return float(damages.sum())
