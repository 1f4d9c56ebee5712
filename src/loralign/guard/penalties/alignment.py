"""The alignment term ``‖F^½ΔW_A‖²_F``: what the update costs the must-survive behaviour, to second order."""

from __future__ import annotations

from torch import Tensor

from loralign.guard.penalties.cotangents import Cotangents
from loralign.guard.penalties.split import LayerStack, Parts


def alignment_term(stack: LayerStack, parts: Parts, weight: float, cotangents: Cotangents | None) -> Tensor:
    """``‖F^½ΔW_A‖² = s² tr(MᵀM K)`` with ``M = Λ^½ C UᵀB``, ``(L,)`` float64 (docs/adapting.md, Penalties).

    Args:
        stack: the layers; ``Λ`` holds normalised eigenvalues.
        parts: of their updates.
        weight: of the gradient.
        cotangents: where ``weight`` times the gradient is added.
    """
    energies = stack.eigenvalues * stack.coefficients.square()
    root = energies.sqrt()[..., None] * parts.coordinates
    inner = (root.mT @ root).double()
    squared = stack.scaling[:, None, None].square()
    if cotangents is not None and weight > 0:
        through = (2 * weight * squared * parts.gram).to(parts.coordinates.dtype)
        cotangents.coordinates += energies[..., None] * (parts.coordinates @ through)
        cotangents.gram += weight * squared * inner
    return (squared * inner * parts.gram).sum(dim=(1, 2))
