"""The tangent space of the LoRA factorisation: what a first-order step of the factors can reach."""

from __future__ import annotations

import torch
from torch import Tensor

from loralign.lora import column_basis


def project_on_tangent_space(gradient: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """``P(G) = Π_B G + G Π_A − Π_B G Π_A``, the orthogonal projection on ``{B X + Y A}`` (docs/concepts.md).

    The dense form, for one layer at a time; the training path never forms it.

    Args:
        gradient: ``G (m, n)``.
        A: ``(r, n)``; numerically zero directions of either factor contribute nothing.
        B: ``(m, r)``.
    """
    basis_a, basis_b = column_basis(A.mT), column_basis(B)
    off_b = gradient - basis_b.project(gradient)
    return gradient - (off_b - (off_b @ basis_a.Q) @ basis_a.Q.mT)


def tangent_norm(A: Tensor, B: Tensor, step_a: Tensor, step_b: Tensor) -> Tensor:
    """``‖ΔB A + B ΔA‖``, the size of the first-order change of ``B A`` under a step, as a float64 scalar.

    From ``r × r`` products only:
    ``‖ΔB A‖² + ‖B ΔA‖² + 2⟨ΔB A, B ΔA⟩`` with ``⟨ΔB A, B ΔA⟩ = tr((ΔBᵀB)(ΔA Aᵀ))``.

    Args:
        A: ``(r, n)``.
        B: ``(m, r)``.
        step_a: ``ΔA (r, n)``.
        step_b: ``ΔB (m, r)``.
    """
    A, B, step_a, step_b = (factor.detach().double() for factor in (A, B, step_a, step_b))
    on_b = ((step_b.mT @ step_b) * (A @ A.mT)).sum()
    on_a = ((B.mT @ B) * (step_a @ step_a.mT)).sum()
    cross = ((step_b.mT @ B) * (A @ step_a.mT)).sum()
    return (on_b + on_a + 2 * cross).clamp_min(0).sqrt()


def step_norm(layers: list[tuple[float, Tensor, Tensor, Tensor, Tensor]]) -> Tensor:
    """``‖s(ΔB A + B ΔA)‖`` over layers given as ``(s, A, B, ΔA, ΔB)``, a float64 scalar."""
    norms = [scaling * tangent_norm(A, B, step_a, step_b) for scaling, A, B, step_a, step_b in layers]
    # One copy to the host for all layers.
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms).cpu())
    return total
