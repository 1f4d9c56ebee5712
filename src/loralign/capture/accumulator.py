"""Sums of one LoRA layer's per-objective gradients, in the compressed form that the Gramians need."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from loralign.lora import Basis, LoraFactors, column_basis


@dataclass(frozen=True)
class LayerGramians:
    """One layer's contributions to the three Gramians, each ``(K, K)`` float64, and the core norms they came from."""

    full: Tensor
    accessible: Tensor
    euclidean: Tensor


class LayerAccumulator:
    """Per-objective sums for one layer, all linear in the gradients ``G_i (m, n)``, so they add over micro-batches.

    With ``Q_A (n, r)``, ``Q_B (m, r)`` the orthonormal bases of ``row(A)`` and ``col(B)`` and ``Ψ (m, k)`` the sketch:

    - ``right[i] = s·G_i Q_A`` ``(m, r)``
    - ``left[i] = s·Q_Bᵀ G_i`` ``(r, n)``
    - ``shared[i] = s·G_i V`` ``(m, d)``, with ``V (n, d)`` orthonormal directions outside ``row(A)`` in which the
      gradients are known to be large: what lies along them is exact and need not be estimated
    - ``sketch[i] = s·Ψᵀ (I − Π_B) G_i`` ``(k, n)``, or ``exact[i] = s·G_i`` ``(m, n)`` in exact mode.

    The factor ``s`` of the LoRA branch is kept in the sums and divided out where they are read. Sums that one product
    yields live in one buffer: ``right`` and ``shared``, ``left`` and ``sketch``.
    """

    def __init__(
        self,
        layer: LoraFactors,
        basis_a: Basis,
        basis_b: Basis,
        sketch: Tensor | None,
        objectives: int,
        directions: Tensor | None = None,
    ) -> None:
        self.scaling = layer.scaling
        self.basis_a = basis_a
        self.basis_b = basis_b
        self.sketch_size = 0 if sketch is None else sketch.shape[1]
        rows, rank = layer.B.shape
        columns = layer.A.shape[1]
        q_b = basis_b.Q
        self._rank = rank
        if sketch is None:
            self._probe_matrix = q_b
        else:
            self._probe_matrix = torch.cat([q_b, sketch - basis_b.project(sketch)], dim=1)
        self._from_inner = _inner_to_basis(basis_a)
        self.directions = q_b.new_zeros(columns, 0) if directions is None else _outside(directions.to(q_b), basis_a)
        self._inside = q_b.new_zeros(objectives, rows, rank + self.directions.shape[1])
        self._stacked = q_b.new_zeros(objectives, self._probe_matrix.shape[1], columns)
        self.exact = q_b.new_zeros(objectives, rows, columns) if sketch is None else None

    @property
    def right(self) -> Tensor:
        """``s·G_i Q_A``, ``(K, m, r)``."""
        return self._inside[:, :, : self._rank]

    @property
    def shared(self) -> Tensor:
        """``s·G_i V``, ``(K, m, d)``."""
        return self._inside[:, :, self._rank :]

    @property
    def left(self) -> Tensor:
        """``s·Q_Bᵀ G_i``, ``(K, r, n)``."""
        return self._stacked[:, : self._rank]

    @property
    def sketch(self) -> Tensor:
        """``s·Ψᵀ(I − Π_B)G_i``, ``(K, k, n)``; empty in exact mode."""
        return self._stacked[:, self._rank :]

    def add(self, x: Tensor, inner: Tensor, gradient: Tensor, runs: list[tuple[int, int, int]]) -> None:
        """Add the tokens of one backward pass.

        Args:
            x: ``(rows, …, n)`` layer inputs.
            inner: ``(rows, …, r)`` their products ``A x``, which the branch has at hand.
            gradient: ``(rows, …, m)`` gradients ``s·g`` at the LoRA branch's output.
            runs: rows of one objective each.
        """
        dtype = self._inside.dtype
        same = inner.dtype == x.dtype == dtype
        x, gradient = x.to(dtype), gradient.to(dtype)
        inside = inner @ self._from_inner if same and self._from_inner is not None else x @ self.basis_a.Q
        if self.directions.shape[1]:
            inside = torch.cat([inside, x @ self.directions], dim=-1)
        outside = gradient @ self._probe_matrix
        for start, stop, objective in runs:
            xs = x[start:stop].flatten(0, -2)
            gs = gradient[start:stop].flatten(0, -2)
            self._inside[objective].addmm_(gs.mT, inside[start:stop].flatten(0, -2))
            self._stacked[objective].addmm_(outside[start:stop].flatten(0, -2).mT, xs)
            if self.exact is not None:
                self.exact[objective].addmm_(gs.mT, xs)

    def buffers(self) -> list[Tensor]:
        """All sums, for an all-reduce."""
        return [self._inside, self._stacked] if self.exact is None else [self._inside, self._stacked, self.exact]

    def gramians(self) -> LayerGramians:
        """The layer's part of the three Gramians (geometry.md, accessible and full part).

        ``⟨PG_i, PG_j⟩ = ⟨G_iQ_A, G_jQ_A⟩ + ⟨Q_BᵀG_i, Q_BᵀG_j⟩ − ⟨Q_BᵀG_iQ_A, Q_BᵀG_jQ_A⟩``; the full inner product adds
        that of the residuals, estimated from the sketches; the Euclidean one is over the parameters ``A`` and ``B``,
        ``∇_A L = s BᵀG`` and ``∇_B L = s G Aᵀ``, read through the singular values of the factors.
        """
        q_a = self.basis_a.Q
        core = self.left @ q_a
        accessible = _gram(self.right) + _gram(self.left) - _gram(core)
        if self.exact is not None:
            full = _gram(self.exact)
        else:
            off_b = self.shared - self.basis_b.Q @ (self.basis_b.Q.mT @ self.shared)
            full = accessible + _gram(off_b) + _gram(self._residual_sketch())
        sigma_a = self.basis_a.singular_values.to(q_a.dtype)
        sigma_b = self.basis_b.singular_values.to(q_a.dtype)
        euclidean = _gram(self.right * sigma_a) + _gram(self.left * sigma_b[:, None])
        square = self.scaling**2
        return LayerGramians(full / square, accessible / square, euclidean)

    def leading_directions(self, count: int, iterations: int = 3) -> Tensor:
        """``(n, count)`` input directions in which the residuals of all objectives are largest, for the next sums.

        Orthogonal iteration on the sketches outside ``row(A)``, each objective's divided by its own norm, begun at
        the directions of this time or, the first time, at the sketches' largest rows.
        """
        outside = self.sketch - (self.sketch @ self.basis_a.Q) @ self.basis_a.Q.mT
        norms = torch.linalg.vector_norm(outside, dim=(1, 2), keepdim=True)
        if not bool(norms.isfinite().all()):
            return outside.new_zeros(outside.shape[-1], count)
        rows = (outside / torch.where(norms > 0, norms, torch.ones_like(norms))).flatten(0, 1)
        if self.directions.shape[1] == count:
            frame = self.directions
        else:
            frame = rows[torch.linalg.vector_norm(rows, dim=1).topk(count).indices].mT
        for _ in range(iterations):
            frame = torch.linalg.qr(rows.mT @ (rows @ frame)).Q
        return frame

    def _residual_sketch(self) -> Tensor:
        """The sketches without what is known exactly: ``S (I − Π_A − V Vᵀ)``."""
        known = torch.cat([self.basis_a.Q, self.directions], dim=1)
        return self.sketch - (self.sketch @ known) @ known.mT

    def inner_with_step(self, step_a: Tensor, step_b: Tensor) -> Tensor:
        """``⟨∇_A L_i, ΔA⟩ + ⟨∇_B L_i, ΔB⟩ = ⟨G_i, s(BΔA + ΔB A)⟩`` for every objective, ``(K,)`` float64.

        Args:
            step_a: ``ΔA (r, n)``.
            step_b: ``ΔB (m, r)``.
        """
        dtype = self.right.dtype
        # A = V_A Σ_A Q_Aᵀ and B = Q_B Σ_B V_Bᵀ turn the compressed sums back into gradients of the factors.
        turn_a = (self.basis_a.rotation * self.basis_a.singular_values).to(dtype)
        turn_b = (self.basis_b.rotation * self.basis_b.singular_values).to(dtype)
        on_b = torch.einsum("kmr,mr->k", self.right, step_b.to(dtype) @ turn_a)
        on_a = torch.einsum("krn,rn->k", self.left, turn_b.mT @ step_a.to(dtype))
        return (on_a + on_b).double()


def _inner_to_basis(basis: Basis) -> Tensor | None:
    """``V Σ⁻¹ (r, r)``, by which ``A x`` becomes ``Q_Aᵀ x``; ``None`` where ``A`` is too ill-conditioned for that.

    ``A = V Σ Q_Aᵀ``. Rounding in ``A x`` is magnified by at most the condition number, here a thousand.
    """
    values = basis.singular_values
    if not bool(values[-1] * 1e3 > values[0]):
        return None
    return (basis.rotation / values).to(basis.Q.dtype)


def _outside(directions: Tensor, basis: Basis) -> Tensor:
    """Orthonormalise directions outside ``row(A)``; what has nothing outside becomes a zero column."""
    outside = directions - basis.project(directions)
    own = column_basis(outside - basis.project(outside))
    return own.Q * (own.singular_values > 1e-3).to(own.Q.dtype)


def _gram(stack: Tensor) -> Tensor:
    """``(K, …) → (K, K)`` Frobenius Gram matrix in float64."""
    flat = stack.flatten(1)
    return (flat @ flat.mT).double()
