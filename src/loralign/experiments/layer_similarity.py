"""How alike two subspaces of a layer are, and the alignment-critical parts of two updates of it."""

from __future__ import annotations

from collections.abc import Mapping

from loralign.guard import AlignmentSubspace
from loralign.guard.layer_subspace import LayerSubspace, Projection, soft_coefficients
from loralign.lora.factors import factored_inner, factored_norm
from loralign.models.adapter_factors import SavedFactors

# Rounding of float32 factors leaves this of an update whose part in the subspace was taken out.
_NOTHING_LEFT = 1e-5


def chance_similarity(first: LayerSubspace, second: LayerSubspace) -> float:
    """What two independent random subspaces of these ranks have on average.

    ``E‖UᵀV‖²_F / min(q, p) = max(q, p) / m`` for ``U (m, q)`` and uniformly distributed ``V (m, p)``.
    """
    return max(first.rank, second.rank) / first.rows


def chance_similarities(first: AlignmentSubspace, second: AlignmentSubspace) -> dict[str, float]:
    """:func:`chance_similarity` of every layer that both have."""
    shared = [name for name in first.layers if name in second.layers]
    return {name: chance_similarity(first.layers[name], second.layers[name]) for name in shared}


def update_similarity(
    first: SavedFactors, second: SavedFactors, subspace: LayerSubspace, projection: Projection = "hard"
) -> float | None:
    """Cosine of the alignment-critical parts of two updates, ``⟨ΔW_A, ΔW_A'⟩ / (‖ΔW_A‖‖ΔW_A'‖)`` in -1 to 1.

    ``ΔW_A = P_A ΔW`` with ``P_A = U diag(c) Uᵀ`` (docs/adapting.md, Parts). With ``M = diag(c) UᵀB (q, r)`` and
    orthonormal ``U``, the inner product is ``s s' tr((MᵀM')(A'Aᵀ))``: matrices of the ranks' sizes only, in float64.
    The scalings ``s`` are positive and cancel. Independent random updates have 0 on average.

    Args:
        first: of the layer.
        second: of the same layer.
        subspace: of the layer.
        projection: ``"hard"`` or ``"soft"``.

    Returns:
        ``None`` where an update has no part in the subspace beyond rounding: then there is no direction to compare.
    """
    basis, eigenvalues = subspace.basis.double(), subspace.eigenvalues.double()
    coefficients = soft_coefficients(eigenvalues, projection)
    pairs = [(one.A.double(), one.B.double()) for one in (first, second)]
    (A, B), (other_A, other_B) = pairs
    M, other_M = (coefficients[:, None] * (basis.mT @ one) for one in (B, other_B))
    norms = [float(factored_norm(M, A)), float(factored_norm(other_M, other_A))]
    wholes = [float(factored_norm(up, down)) for down, up in pairs]
    if any(norm <= _NOTHING_LEFT * whole for norm, whole in zip(norms, wholes, strict=True)):
        return None
    cosine = float(factored_inner(M, A, other_M, other_A)) / (norms[0] * norms[1])
    return max(-1.0, min(1.0, cosine))


def update_similarities(
    first: Mapping[str, SavedFactors],
    second: Mapping[str, SavedFactors],
    subspace: AlignmentSubspace,
    projection: Projection = "hard",
) -> dict[str, float]:
    """:func:`update_similarity` of every layer of both adapters and the subspace, those left out that have none."""
    found = {}
    for name, layer in subspace.layers.items():
        if name in first and name in second:
            cosine = update_similarity(first[name], second[name], layer, projection)
            if cosine is not None:
                found[name] = cosine
    return found
