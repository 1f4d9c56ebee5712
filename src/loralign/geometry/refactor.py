"""Rewriting one layer's factors: same function, better conditioned, with unused rows of ``A`` given new directions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from loralign.lora import column_bases
from loralign.lora.factors import fixed_signs, symmetric_eigh


@dataclass(frozen=True)
class Refactored:
    """New factors of one layer and how they came from the old ones; everything float64.

    Attributes:
        A: ``(r, n)``.
        B: ``(m, r)``.
        kept: number ``q`` of leading directions of ``B A`` that were kept; the last ``r − q`` rows of ``A`` are new and
            have zero columns in ``B``.
        spectrum: ``(r,)`` singular values of the old ``B A``, descending, without the scaling ``s``; on the CPU.
        dropped: share of ``‖B A‖²`` in the directions given up.
        energy_moved: share of the candidates' energy that lies in the new rows.
        rotation: mean squared sine of the principal angles between the old and the new ``row(A)``.
        mix_a: ``T (q, r)`` with ``A'_kept = T A``.
        mix_b: ``M (r, q)`` with ``B'_kept = B M``.
    """

    A: Tensor
    B: Tensor
    kept: int
    spectrum: Tensor
    dropped: float
    energy_moved: float
    rotation: float
    mix_a: Tensor
    mix_b: Tensor


def refactor(
    A: Tensor, B: Tensor, candidates: Tensor | None = None, *, tolerance: float = 0.0, scale: str = "balanced"
) -> Refactored:
    """Same-rank refactor through the SVD of the ``r × r`` core (docs/concepts.md, adaptive subspace refinement).

    ``B = Q_B R_B``, ``Aᵀ = Q_A R_A``, ``R_B R_Aᵀ = U Σ Vᵀ``; then ``B' = Q_B U Σ^½`` and ``A' = Σ^½ Vᵀ Q_Aᵀ``.
    Directions without weight, and with ``candidates`` the trailing ones whose share of ``‖B A‖²`` stays within
    ``tolerance``, give up their rows of ``A``: these become the leading row directions of the candidates outside the
    kept ones (of the old ``A`` where there are none), with zero columns in ``B``. New rows have the mean row norm of
    the old ``A``, so that the size of a step does not change with the direction.

    Args:
        A: ``(r, n)``.
        B: ``(m, r)``.
        candidates: ``(c, n)``, rows weighted by their importance.
        tolerance: largest share of ``‖B A‖²`` that may be dropped.
        scale: ``"balanced"`` as above; ``"rows"`` gives every row of ``A'`` the mean row norm of ``A`` and puts the
            spectrum into ``B'``, which leaves the size of an optimiser step on ``B`` as it was.
    """
    A, B = A.detach().double(), B.detach().double()
    rank = A.shape[0]
    basis_a, basis_b = column_bases([A.mT, B])
    core = (basis_b.singular_values[:, None] * basis_b.rotation.mT) @ (basis_a.rotation * basis_a.singular_values)
    # What is as small as the rank is decomposed and decided on the host: on a GPU each such step costs more than all
    # products with the long sides of the factors together.
    small = torch.cat([core, basis_a.singular_values[None]]).cpu()
    inner_u, spectrum, inner_vt = torch.linalg.svd(small[:-1])
    rank_a = int((small[-1] > 0).sum())
    kept = _kept(spectrum, tolerance if candidates is not None else 0.0)
    inner_u, inner_v, values = (
        part.to(A.device, non_blocking=True) for part in (inner_u[:, :kept], inner_vt.mT[:, :kept], spectrum[:kept])
    )
    signs = fixed_signs(basis_a.Q @ inner_v)
    inner_u, inner_v = inner_u * signs, inner_v * signs
    rows = basis_a.Q @ inner_v
    row_norm = A.square().sum(dim=1).mean().sqrt()
    new, energy = _new_rows(candidates, rows, basis_a.Q, rank - kept)
    weight_a = values.sqrt() if scale == "balanced" else row_norm.expand(kept)
    weight_b = values / weight_a
    new_A = torch.cat([weight_a[:, None] * rows.mT, row_norm * new.mT])
    new_B = torch.cat([(basis_b.Q @ inner_u) * weight_b, B.new_zeros(B.shape[0], rank - kept)], dim=1)
    total = float(spectrum.square().sum())
    overlap = (basis_a.Q.mT @ torch.cat([rows, new], dim=1)).square().sum()
    return Refactored(
        A=new_A,
        B=new_B,
        kept=kept,
        spectrum=spectrum,
        dropped=float(spectrum[kept:].square().sum()) / total if total > 0 else 0.0,
        energy_moved=energy,
        rotation=float((1 - overlap / max(rank_a, 1)).clamp(0, 1)),
        mix_a=weight_a[:, None] * (inner_v.mT @ (_inverse(basis_a.singular_values)[:, None] * basis_a.rotation.mT)),
        mix_b=((basis_b.rotation * _inverse(basis_b.singular_values)) @ inner_u) * weight_b,
    )


def _kept(spectrum: Tensor, tolerance: float) -> int:
    energy = spectrum.square()
    total = float(energy.sum())
    if total == 0:
        return 0
    # Energy that would be lost by keeping the first q directions only, for q = 0..r.
    lost = torch.cat([energy.flip(0).cumsum(0).flip(0), energy.new_zeros(1)])
    numerically_zero = len(spectrum) * torch.finfo(spectrum.dtype).eps ** 2
    return int((lost > max(tolerance, numerically_zero) * total).sum())


def _inverse(values: Tensor) -> Tensor:
    return torch.where(values > 0, 1 / values, torch.zeros_like(values))


def _new_rows(candidates: Tensor | None, rows: Tensor, old: Tensor, count: int) -> tuple[Tensor, float]:
    """``(n, count)`` orthonormal directions outside ``rows (n, q)``, and the share of candidate energy they hold."""
    found = rows.new_zeros(rows.shape[0], 0)
    energy = 0.0
    sources = [old.mT] if candidates is None else [candidates.double(), old.mT]
    for position, source in enumerate(sources):
        missing = count - found.shape[1]
        if not missing:
            break
        taken = torch.cat([rows, found], dim=1)
        outside = source - (source @ taken) @ taken.mT
        # Once more: a single pass leaves a trace of the removed directions that the SVD would blow up.
        outside = outside - (outside @ taken) @ taken.mT
        values, directions = leading_rows(outside, missing)
        norm, total = torch.stack([torch.linalg.matrix_norm(source), source.square().sum()]).cpu()
        usable = int((values > 1e-6 * norm).sum())
        fresh = directions[:, :usable]
        found = torch.cat([found, fresh * fixed_signs(fresh)], dim=1)
        if candidates is not None and position == 0 and usable:
            energy = float(values[:usable].square().sum() / total)
    return found, energy


def leading_rows(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Leading ``count`` singular values, on the CPU, and right singular vectors ``(n, count)`` of a wide ``(c, n)``.

    Through the ``c × c`` Gram matrix in float64, several times faster than the SVD itself, and a QR that restores the
    orthonormality which division by small values costs.
    """
    eigenvalues, vectors = symmetric_eigh(matrix @ matrix.mT)
    leading = slice(-min(count, len(eigenvalues)), None)
    values = eigenvalues[leading].flip(0).clamp_min(0).sqrt()
    raw = (matrix.mT @ vectors[:, leading].flip(1)) / values.clamp_min(torch.finfo(values.dtype).tiny)
    columns, triangle = torch.linalg.qr(raw)
    return values.cpu(), columns * triangle.diagonal().sign()
