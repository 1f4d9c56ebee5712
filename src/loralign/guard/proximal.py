"""The penalty's energies decoupled from the optimiser, as a proximal step that is stable for any weight."""

from __future__ import annotations

from collections import defaultdict
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
    ``t`` on the alignment penalty and ``u`` on the stability penalty with ``H`` the identity (docs/adapting.md,
    Penalties and Decoupled). With ``K = V Σ Vᵀ`` the coefficients of ``X V`` shrink one by one: those along ``U``,
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
    acting = [
        (layer, subspace, step, other)
        for layer, subspace, step, other in zip(layers, subspaces, steps, others, strict=True)
        if other != 0 or (subspace is not None and step != 0)
    ]
    decomposed = _gram_eigenpairs([layer for layer, *_ in acting])
    for (layer, subspace, step, other), (values, vectors) in zip(acting, decomposed, strict=True):
        factor = layer.B.to(_work(layer))
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


def _work(layer: LoraFactors) -> torch.dtype:
    return torch.promote_types(layer.B.dtype, torch.float32)


def _gram_eigenpairs(layers: Sequence[LoraFactors]) -> list[tuple[Tensor, Tensor]]:
    """Eigenvalues ``σ (r,)`` and eigenvectors ``V (r, r)`` of every layer's ``A Aᵀ``.

    Layers of one rank are decomposed in one call: on a GPU each call waits for all work before it.
    """
    grams = []
    for layer in layers:
        down = layer.A.to(_work(layer))
        grams.append(down @ down.mT)
    groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for index, gram in enumerate(grams):
        groups[(len(gram), gram.device, gram.dtype)].append(index)
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for members in groups.values():
        values, vectors = torch.linalg.eigh(torch.stack([grams[index] for index in members]))
        found |= {index: (values[row], vectors[row]) for row, index in enumerate(members)}
    return [found[index] for index in range(len(layers))]


def _shrinking(curvature: Tensor) -> Tensor:
    """What a coefficient changes by, relative to itself: ``1/(1 + x) − 1``, without cancellation."""
    return -curvature / (1 + curvature)
