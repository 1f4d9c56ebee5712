"""Linear algebra on factored matrices ``L R`` with ``L (m, k)``, ``R (k, n)`` and a small inner size ``k``.

Nothing here ever forms the ``(m, n)`` product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# What the host decomposes faster than a GPU: at most so many rows, and so many matrices at a time.
_HOST_SIZE = 256
_HOST_MATRICES = 8


@dataclass(frozen=True)
class Basis:
    """Orthonormal basis of the column space of a tall factor ``F (d, r)``.

    Attributes:
        Q: ``(d, r)``; orthonormal columns for the numerically non-zero directions and zero columns for the others, so
            that ``Q Qᵀ`` is the orthogonal projector on ``col(F)`` whatever the rank.
        singular_values: ``(r,)`` float64, those of ``F``, descending; zero where the column of ``Q`` is zero.
        rotation: ``(r, r)`` float64 orthogonal ``V`` with ``F = Q diag(singular_values) Vᵀ``.
    """

    Q: Tensor
    singular_values: Tensor
    rotation: Tensor

    @property
    def rank(self) -> int:
        """Number of numerically non-zero directions."""
        return int((self.singular_values > 0).sum())

    def project(self, matrix: Tensor) -> Tensor:
        """Return ``Q Qᵀ matrix`` for a ``(d, …)`` matrix."""
        return self.Q @ (self.Q.mT @ matrix)


def column_basis(factor: Tensor) -> Basis:
    """Rank-revealing orthonormal basis of the columns of one ``(d, r)`` factor. See :func:`column_bases`."""
    return column_bases([factor])[0]


def column_bases(factors: Sequence[Tensor]) -> list[Basis]:
    """Rank-revealing orthonormal bases of several factors ``(d_l, r_l)`` at once.

    The ``r × r`` Gram matrices are taken in float64 and decomposed in one batch per rank. A direction counts as zero
    when its singular value is at most ``max(d, r)·eps`` of the largest, with the machine epsilon of the factor's own
    dtype, that of float32 where it has 16 bits (numpy's rule for ``matrix_rank``). The Gram matrix squares the
    condition number, but in float64 the directions that pass this bound for a float32 factor keep eight digits.
    """
    grams: list[Tensor] = []
    for factor in factors:
        wide = factor.detach().double()
        grams.append(wide.mT @ wide)
    bases: list[Basis | None] = [None] * len(factors)
    for rank in sorted({gram.shape[0] for gram in grams}):
        members = [index for index, gram in enumerate(grams) if gram.shape[0] == rank]
        found = _bases([factors[index].detach() for index in members], torch.stack([grams[index] for index in members]))
        for index, basis in zip(members, found, strict=True):
            bases[index] = basis
    return [basis for basis in bases if basis is not None]


def _bases(factors: list[Tensor], grams: Tensor) -> list[Basis]:
    """Bases of factors of one rank with their Gram matrices ``(f, r, r)``; all that is small is done at once."""
    eigenvalues, rotations = symmetric_eigh(grams)
    eigenvalues, rotations = eigenvalues.flip(-1), rotations.flip(-1)
    values = eigenvalues.clamp_min(0).sqrt()
    resolutions = torch.tensor([_resolution(factor) for factor in factors], dtype=torch.float64)
    kept = values > values[:, :1] * resolutions.to(values.device, non_blocking=True)[:, None]
    values = torch.where(kept, values, torch.zeros_like(values))
    inverse = torch.where(kept, 1 / values, torch.zeros_like(values))
    turns = rotations * inverse[:, None, :]
    bases = []
    for factor, turn, own_values, rotation in zip(factors, turns, values, rotations, strict=True):
        work = factor.dtype if factor.dtype == torch.float64 else torch.float32
        bases.append(Basis(factor.to(work) @ turn.to(work), own_values, rotation))
    return bases


def _resolution(factor: Tensor) -> float:
    size = max(factor.shape)
    # What 16-bit factors hold is taken as it is, like that of float32: their own epsilon, times a few hundred rows, is
    # above one, and would leave no direction at all of an adapter kept in bfloat16.
    epsilon = min(torch.finfo(factor.dtype).eps, torch.finfo(torch.float32).eps)
    # float64 factors are limited by the Gram matrix's own rounding: half of their digits.
    resolution: float = max(size * epsilon, (size * torch.finfo(torch.float64).eps) ** 0.5)
    return resolution


def symmetric_eigh(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Ascending eigenvalues ``(…, n)`` and eigenvectors ``(…, n, n)`` of symmetric ``(…, n, n)``, on their device.

    A GPU's solver works through a few small matrices one after another, each many times slower than the host does
    with the two copies that this takes; larger matrices and many at once stay where they are.
    """
    size = matrices.shape[-1]
    if size == 1:
        return matrices.squeeze(-1), torch.ones_like(matrices)
    few_and_small = size <= _HOST_SIZE and matrices.numel() <= _HOST_MATRICES * size**2
    if matrices.device.type == "cpu" or not few_and_small:
        values, vectors = torch.linalg.eigh(matrices)
        return values, vectors
    values, vectors = torch.linalg.eigh(matrices.cpu())
    return values.to(matrices.device, non_blocking=True), vectors.to(matrices.device, non_blocking=True)


def factored_inner(left_1: Tensor, right_1: Tensor, left_2: Tensor, right_2: Tensor) -> Tensor:
    """Frobenius inner product ``⟨L₁R₁, L₂R₂⟩ = tr((L₁ᵀL₂)(R₂R₁ᵀ))`` as a float64 scalar."""
    left_1, right_1, left_2, right_2 = (one.detach().double() for one in (left_1, right_1, left_2, right_2))
    return ((left_1.mT @ left_2) * (right_1 @ right_2.mT)).sum()


def factored_norm(left: Tensor, right: Tensor) -> Tensor:
    """Frobenius norm ``‖L R‖`` as a float64 scalar."""
    return factored_inner(left, right, left, right).clamp_min(0).sqrt()


@dataclass(frozen=True)
class FactoredSvd:
    """Leading singular triplets of a matrix: ``U (m, q)``, ``S (q,)`` descending, ``V (n, q)``."""

    U: Tensor
    S: Tensor
    V: Tensor


def factored_svd(
    left: Tensor, right: Tensor, rank: int, *, oversampling: int = 8, iterations: int = 2, generator: torch.Generator
) -> FactoredSvd:
    """Leading ``rank`` singular triplets of ``L R`` without forming it.

    Randomised range finder with power iterations (Halko, Martinsson and Tropp, arXiv:0909.4061, algorithms 4.4 and
    5.1) on the two factors; when ``rank + oversampling`` reaches the inner size ``k``, the range is spanned exactly by
    a QR of ``L`` and the result is the exact decomposition. Signs are fixed (each column of ``V`` has its entry of
    largest magnitude positive), so that the result depends on the generator's seed alone.

    Args:
        left: ``(m, k)``.
        right: ``(k, n)``.
        rank: number of triplets, at most ``min(m, n, k)`` are returned.
        oversampling: extra random directions.
        iterations: power iterations.
        generator: source of the random test matrix, on the factors' device.
    """
    left, right = left.detach(), right.detach()
    inner = left.shape[1]
    width = rank + oversampling
    if width >= min(inner, right.shape[1]):
        frame = torch.linalg.qr(left).Q
    else:
        test = torch.randn(right.shape[1], width, generator=generator, dtype=left.dtype, device=left.device)
        frame = torch.linalg.qr(left @ (right @ test)).Q
        for _ in range(iterations):
            cobasis = torch.linalg.qr(right.mT @ (left.mT @ frame)).Q
            frame = torch.linalg.qr(left @ (right @ cobasis)).Q
    small = (frame.mT @ left) @ right
    inner_left, values, rows = torch.linalg.svd(small, full_matrices=False)
    columns = rows.mT[:, :rank]
    signs = fixed_signs(columns)
    return FactoredSvd((frame @ inner_left)[:, :rank] * signs, values[:rank], columns * signs)


def fixed_signs(columns: Tensor) -> Tensor:
    """Signs ``(q,)`` that make the entry of largest magnitude of every column of a ``(d, q)`` matrix positive."""
    peaks = columns.gather(0, columns.abs().argmax(dim=0, keepdim=True)).squeeze(0)
    return torch.where(peaks < 0, -torch.ones_like(peaks), torch.ones_like(peaks))
