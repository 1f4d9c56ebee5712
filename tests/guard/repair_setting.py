"""Made-up subspaces and dense updates for the tests of repairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

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
    info = SubspaceInfo(
        model=None,
        revision=None,
        fingerprint="",
        data_fingerprint="",
        kind="empirical",
        method="exact",
        reduction="mean",
        samples=1,
        tokens=1,
        energy=None,
        sketch_width=0,
        half_agreement=None,
        seed=seed,
        created="",
        version="",
    )
    return AlignmentSubspace(layers, info)


def dense_updates(layers: Sequence[LoraFactors]) -> list[Tensor]:
    """``ΔW = s·B A`` in float64."""
    return [layer.scaling * layer.B.detach().double() @ layer.A.detach().double() for layer in layers]


def factors(model: nn.Module) -> list[Tensor]:
    """Copies of ``A`` and ``B`` of every layer, in turn."""
    return [factor.detach().clone() for layer in lora_layers(model) for factor in (layer.A, layer.B)]
