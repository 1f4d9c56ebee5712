"""Sums of one LoRA layer's per-objective gradients, in the compressed form that the Gramians need."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loralign.errors import StateError
from loralign.lora import Basis, LoraFactors, column_basis

# What has less than this outside row(A) is not worth a direction, and what is left of it by that counts as covered.
_NEGLIGIBLE = 1e-3
_COVERED = 10 * _NEGLIGIBLE


@dataclass(frozen=True)
class LayerGramians:
    """One layer's contributions to the three Gramians, each ``(K, K)`` float64 on the CPU."""

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
        invertible: bool | None = None,
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
        # Known beforehand where many layers are made during backward: to ask here would wait for a GPU each time.
        invertible = invertible_cores([basis_a])[0] if invertible is None else invertible
        self._from_inner = (basis_a.rotation / basis_a.singular_values).to(q_b.dtype) if invertible else None
        if directions is None or not directions.shape[1]:
            self.directions = q_b.new_zeros(columns, 0)
        else:
            self.directions = _outside(directions.to(q_b), basis_a)
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

    @property
    def stack(self) -> Tensor:
        """``s·[Q_Bᵀ; Ψᵀ(I − Π_B)] G_i``, ``(K, r + k, n)``, or ``s·G_i`` in exact mode.

        The expectation of its ``stackᵀ stack`` is ``s²·G_iᵀ G_i``.
        """
        return self._stacked if self.exact is None else self.exact

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

    def without(self, directions: Tensor) -> LayerAccumulator:
        """The sums of the gradients ``G_i (I − V Vᵀ)``, from which the input directions ``V`` are taken out.

        Every sum is linear in ``G_i``, and ``left``, ``sketch`` and ``exact`` hold all inputs, so ``V`` comes off them
        directly. Of ``G_i V`` itself only the part along ``U = [Q_A, directions]`` is at hand, as ``[right, shared]``:
        in sketch mode ``V`` must lie there, and then ``G_i (I − V Vᵀ) U`` is exact too.

        Args:
            directions: ``V (n, p)``, orthonormal columns or zero ones, which take nothing out.

        Raises:
            StateError: sketch mode, and the sums were not taken along these directions.
        """
        if not directions.shape[1]:
            return self
        known = torch.cat([self.basis_a.Q, self.directions], dim=1).double()
        wide = directions.to(known)
        # In float64, since a remainder much smaller than the gradient is a difference of large numbers.
        inner = known.mT @ wide
        basis = column_basis(wide if self.exact is not None else known @ inner)
        taken = basis.Q
        if self.exact is None and torch.linalg.vector_norm(wide - taken @ (taken.mT @ wide), dim=0).amax() > _COVERED:
            raise StateError(
                "the gradients were not measured along the directions to take out",
                fix="give them to capture.reset(directions) before the backward passes",
            )
        rest = copy.copy(self)
        dtype = self._inside.dtype
        rest._stacked = _off(self._stacked, taken).to(dtype)
        if self.exact is not None:
            exact = _off(self.exact, taken)
            rest.exact, rest._inside = exact.to(dtype), (exact @ known).to(dtype)
            return rest
        inverse = torch.where(basis.singular_values > 0, 1 / basis.singular_values, 0.0)
        along = self._inside.double() @ (inner @ (basis.rotation * inverse))
        rest._inside = (self._inside.double() - along @ (taken.mT @ known)).to(dtype)
        return rest

    def buffers(self) -> list[Tensor]:
        """All sums, for an all-reduce."""
        return [self._inside, self._stacked] if self.exact is None else [self._inside, self._stacked, self.exact]

    def gramians(self) -> LayerGramians:
        """The layer's part of the three Gramians (docs/concepts.md, accessible and full part).

        ``⟨PG_i, PG_j⟩ = ⟨G_iQ_A, G_jQ_A⟩ + ⟨Q_BᵀG_i, Q_BᵀG_j⟩ − ⟨Q_BᵀG_iQ_A, Q_BᵀG_jQ_A⟩``; the full inner product adds
        that of the residuals, estimated from the sketches; the Euclidean one is over the parameters ``A`` and ``B``,
        ``∇_A L = s BᵀG`` and ``∇_B L = s G Aᵀ``, read through the singular values of the factors.
        """
        return gramians_of([self])[0]

    def _products(self) -> Tensor:
        """Gram matrices ``(p, K, K)`` that the Gramians are sums of: see :func:`gramians_of`."""
        q_a = self.basis_a.Q
        sigma_a = self.basis_a.singular_values.to(q_a.dtype)
        sigma_b = self.basis_b.singular_values.to(q_a.dtype)
        products = [_gram(self.right), _gram(self.left), _gram(self.left @ q_a)]
        products += [_gram(self.right * sigma_a), _gram(self.left * sigma_b[:, None])]
        if self.exact is not None:
            products.append(_gram(self.exact))
        else:
            products.append(_gram(self.shared - self.basis_b.Q @ (self.basis_b.Q.mT @ self.shared)))
            products.append(_gram(self._residual_sketch()))
        return torch.stack(products)

    def leading_directions(self, count: int, iterations: int = 3) -> Tensor:
        """``(n, count)`` input directions in which the residuals of all objectives are largest, for the next sums.

        Orthogonal iteration on the sketches outside ``row(A)``, each objective's divided by its own norm, begun at
        the directions of this time or, the first time, at the sketches' largest rows.
        """
        outside = self.sketch - (self.sketch @ self.basis_a.Q) @ self.basis_a.Q.mT
        norms = torch.linalg.vector_norm(outside, dim=(1, 2), keepdim=True)
        rows = (outside / torch.where(norms > 0, norms, torch.ones_like(norms))).flatten(0, 1)
        if self.directions.shape[1] == count:
            frame = self.directions
        else:
            frame = rows[torch.linalg.vector_norm(rows, dim=1).topk(count).indices].mT
        for _ in range(iterations):
            frame = _orthonormal(rows.mT @ (rows @ frame))
        # Chosen on the device, since to ask would wait for a GPU: no directions where a gradient is not finite.
        return torch.where(norms.isfinite().all(), frame, torch.zeros_like(frame))

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


def gramians_of(layers: Sequence[LayerAccumulator]) -> list[LayerGramians]:
    """:meth:`LayerAccumulator.gramians` of several layers, all exact or all sketched, on the CPU.

    What is left to add up is tiny, so all of it is copied to the host at once.
    """
    read = torch.stack([layer._products() for layer in layers]).cpu().double()
    results = []
    for layer, products in zip(layers, read, strict=True):
        right, left, core, on_b, on_a, *others = products
        accessible = right + left - core
        # In exact mode the one other product is the full Gramian; else they are those of the residuals.
        full = others[0] if layer.exact is not None else accessible + others[0] + others[1]
        square = layer.scaling**2
        results.append(LayerGramians(full / square, accessible / square, on_b + on_a))
    return results


def invertible_cores(bases: Sequence[Basis]) -> list[bool]:
    """Per basis of ``row(A)``, whether ``V Σ⁻¹ (r, r)`` may turn ``A x`` into ``Q_Aᵀ x``; one copy to the host.

    ``A = V Σ Q_Aᵀ``. Rounding in ``A x`` is magnified by at most the condition number, here a thousand.
    """
    smallest = torch.stack([basis.singular_values[-1] for basis in bases])
    largest = torch.stack([basis.singular_values[0] for basis in bases])
    answers: list[bool] = (smallest * 1e3 > largest).tolist()
    return answers


def _off(stack: Tensor, taken: Tensor) -> Tensor:
    """``stack (I − V Vᵀ)`` in float64 for orthonormal or zero columns ``V``."""
    wide = stack.double()
    return wide - (wide @ taken) @ taken.mT


def _outside(directions: Tensor, basis: Basis) -> Tensor:
    """Orthonormalise directions outside ``row(A)``; what has nothing outside becomes a zero column."""
    outside = directions - basis.project(directions)
    own = column_basis(outside - basis.project(outside))
    return own.Q * (own.singular_values > _NEGLIGIBLE).to(own.Q.dtype)


def _orthonormal(columns: Tensor) -> Tensor:
    """``Q`` of a QR decomposition; for a single column on a GPU without its solver, which costs more than all else."""
    if columns.shape[1] != 1 or columns.device.type == "cpu":
        frame: Tensor = torch.linalg.qr(columns).Q
        return frame
    norm = torch.linalg.vector_norm(columns)
    # As the decomposition has it: a zero column becomes the first unit vector, from which the iteration can go on.
    first = torch.zeros_like(columns)
    first[0] = 1
    return torch.where(norm > 0, columns / norm, first)


def _gram(stack: Tensor) -> Tensor:
    """``(K, …) → (K, K)`` Frobenius Gram matrix."""
    flat = stack.flatten(1)
    return flat @ flat.mT
