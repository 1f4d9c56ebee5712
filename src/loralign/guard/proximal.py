"""The penalty's energies decoupled from the optimiser, as a proximal step that is stable for any weight."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from loralign.guard.subspace import LayerSubspace, Projection, soft_coefficients
from loralign.lora import LoraFactors


@torch.no_grad()
def proximal_step(
    layers: Sequence[LoraFactors],
    subspaces: Sequence[LayerSubspace | None],
    scale: float,
    steps: Sequence[float],
    projection: Projection = "hard",
    stability_steps: Sequence[float] | None = None,
) -> None:
    """Replace every ``B (m, r)`` by ``argmin_X ½‖X − B‖² + t·s²·tr(MᵀM K) + u·s²·tr(X_TᵀX_T K)``.

    With ``M = Λ^½ C UᵀX``, ``X_T = X − U C UᵀX`` and ``K = A Aᵀ`` this is the implicit form of a gradient step of size
    ``t`` on the alignment penalty and ``u`` on the stability penalty with ``H`` the identity (alignguard.md, Penalties
    and When it acts). With ``K = V Σ Vᵀ`` the coefficients of ``X V`` shrink one by one: those along ``U``,
    ``Y = UᵀB V``, as ``Y_ij ← Y_ij / (1 + 2 s² σ_j (t c_i² λ_i + u (1 − c_i)²))`` and those across it by
    ``1 / (1 + 2 s² σ_j u)``. So no step overshoots; as ``t → ∞`` what ``A`` can read of the part in the subspace
    vanishes, which is ``project`` with strength 1, and as ``u → ∞`` that of the rest.

    Args:
        layers: the ``L`` LoRA layers, changed in place; arithmetic in float32 or better.
        subspaces: one each, or ``None`` for a layer whose update is all of the second kind.
        scale: by which the eigenvalues ``Λ`` are divided.
        steps: ``t ≥ 0`` of every layer: learning rate times ``λ_A``.
        projection: ``hard`` or ``soft`` coefficients ``C``.
        stability_steps: ``u ≥ 0`` of every layer: learning rate times ``λ_T``; zeros by default.
    """
    others = [0.0] * len(layers) if stability_steps is None else stability_steps
    for layer, subspace, step, other in zip(layers, subspaces, steps, others, strict=True):
        if other == 0 and (subspace is None or step == 0):
            continue
        work = torch.promote_types(layer.B.dtype, torch.float32)
        factor, down = layer.B.to(work), layer.A.to(work)
        values, vectors = torch.linalg.eigh(down @ down.mT)
        curvature = 2 * layer.scaling**2 * values.clamp_min(0)
        turned = factor @ vectors
        if subspace is None:
            shrunk = _shrinking(other * curvature) * turned
        else:
            basis = subspace.basis.to(factor)
            coefficients = soft_coefficients(subspace.eigenvalues, projection).to(basis)
            eigenvalues = subspace.eigenvalues.to(basis) / scale
            along = step * coefficients**2 * eigenvalues + other * (1 - coefficients) ** 2
            inside = basis.mT @ turned
            shrunk = basis @ (_shrinking(along[:, None] * curvature) * inside)
            if other > 0:
                shrunk = shrunk + _shrinking(other * curvature) * (turned - basis @ inside)
        layer.B.copy_(factor + shrunk @ vectors.mT)


def _shrinking(curvature: Tensor) -> Tensor:
    """What a coefficient changes by, relative to itself: ``1/(1 + x) − 1``, without cancellation."""
    return -curvature / (1 + curvature)
