"""The alignment penalty decoupled from the optimiser, as a proximal step that is stable for any weight."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from loralign.guard.subspace import LayerSubspace, Projection, soft_coefficients
from loralign.lora import LoraFactors


@torch.no_grad()
def proximal_step(
    layers: Sequence[LoraFactors],
    subspaces: Sequence[LayerSubspace | None],
    scale: float,
    steps: Sequence[float],
    projection: Projection = "hard",
) -> None:
    """Replace every ``B (m, r)`` by ``argmin_X ½‖X − B‖² + t·s²·tr(MᵀM K)``, ``M = Λ^½ C UᵀX``, ``K = A Aᵀ``.

    This is the implicit form of a gradient step of size ``t`` on the alignment penalty (alignguard.md, Penalties and
    When it acts). With ``K = V Σ Vᵀ`` the coefficients ``Y = UᵀB V`` shrink one by one,
    ``Y_ij ← Y_ij / (1 + 2 t s² c_i² λ_i σ_j)``, so no ``t`` overshoots; as ``t → ∞`` what ``A`` can read of the part
    in the subspace vanishes, which is ``project`` with strength 1.

    Args:
        layers: the ``L`` LoRA layers, changed in place; arithmetic in float32 or better.
        subspaces: one each, or ``None`` for a layer that is left alone.
        scale: by which the eigenvalues ``Λ`` are divided.
        steps: ``t ≥ 0`` of every layer: learning rate times ``λ_A``.
        projection: ``hard`` or ``soft`` coefficients ``C``.
    """
    for layer, subspace, step in zip(layers, subspaces, steps, strict=True):
        if subspace is None or step == 0:
            continue
        work = torch.promote_types(layer.B.dtype, torch.float32)
        basis = subspace.basis.to(layer.B.device, work)
        factor, down = layer.B.to(work), layer.A.to(work)
        coefficients = soft_coefficients(subspace.eigenvalues, projection).to(basis)
        weights = coefficients**2 * subspace.eigenvalues.to(basis) / scale
        values, vectors = torch.linalg.eigh(down @ down.mT)
        inside = basis.mT @ factor @ vectors
        curvature = 2 * step * layer.scaling**2 * weights[:, None] * values.clamp_min(0)
        change = -inside * curvature / (1 + curvature)
        layer.B.copy_(factor + basis @ (change @ vectors.mT))
